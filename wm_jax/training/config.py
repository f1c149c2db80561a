"""One run, as numbers: what is trained, on what, for how long."""

import dataclasses

from wm_jax.data.loader import DataConfig
from wm_jax.training.objectives.reconstruction import Reconstruction
from wm_jax.training.objectives.shortcut_forcing import ShortcutForcing
from wm_jax.training.optimizer import OptimizerConfig
from wm_jax.world import WorldConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run.

    Attributes:
      name: For people and for the default output folder, `runs/<name>`.
      world: What is trained.
      objective: The loss; it also says which half of the world learns.
      data: Recordings and batches.
      optimizer: How weights move.
      steps: Updates in all.
      seed: Of weights, noise and shuffling.
      log_every: Updates between lines of metrics.jsonl.
      picture_every: Updates between pictures.
      save_every: Updates between checkpoints.
      keep: Checkpoints kept, the newest ones.
      record_frames: Where `data.episodes` does not exist, record so many frames of the world's game (and a sixteenth
        of that from held-out levels); 0 refuses instead.
      autoencoder_from: A run or world folder whose autoencoder is taken over, frozen; needed by dynamics. A config
        file in its place is trained first, unless that run is finished.
      init_from: A run or world folder whose weights are the starting point (fine-tuning).
      tensorboard: Also write TensorBoard events (extra `track`).
    """

    name: str
    world: WorldConfig
    objective: Reconstruction | ShortcutForcing
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: int = 5000
    seed: int = 0
    log_every: int = 20
    picture_every: int = 500
    save_every: int = 500
    keep: int = 2
    record_frames: int = 0
    autoencoder_from: str | None = None
    init_from: str | None = None
    tensorboard: bool = False
