"""What a run stands on, made where it is missing: the recordings, and the autoencoder of a dynamics run."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from wm_jax import checkpoint
from wm_jax.data.record import RecordConfig, record
from wm_jax.envs import NAMES
from wm_jax.training import loop
from wm_jax.training.config import TrainConfig, load_config
from wm_jax.training.stage import make_parts

HELD_OUT_SHARE = 16


def train(config: TrainConfig, out: Path) -> None:
    """Records and trains what the run stands on, then the run itself; each goes on where it was stopped.

    Raises:
      TrainingError, CheckpointError, OSError: see `loop.run`.
      EpisodeError: a recording that is there cannot be used.
      MissingGameError: a recording is missing and its game is not installed.
    """
    record_missing(config)
    config = dataclasses.replace(config, autoencoder_from=_autoencoder(config, out))
    loop.run(config, out, make_parts(config), config.tensorboard)


def record_missing(config: TrainConfig) -> None:
    """Records the run's episodes where their folders do not exist and the config says how many frames to make."""
    splits: tuple[tuple[Literal["train", "held_out"], str, int], ...] = (
        ("train", config.data.episodes, 1),
        ("held_out", config.data.held_out, HELD_OUT_SHARE),
    )
    for split, folder, share in splits:
        if config.record_frames and not Path(folder).exists():
            game: Any = config.world.env
            if game not in NAMES:
                raise loop.TrainingError(
                    f"{folder} does not exist, and no game is called {game!r} to record it from (there are "
                    f"{', '.join(NAMES)}); docs/bring_your_own_game.md shows how to write it"
                )
            frames = max(config.record_frames // share, 1)
            record(RecordConfig(env=game, out=Path(folder), split=split, frames=frames))


def _autoencoder(config: TrainConfig, out: Path) -> str | None:
    """The folder to take the autoencoder from; a config file in its place is a run that must be finished first."""
    source = config.autoencoder_from
    if source is None or not source.endswith(".py"):
        return source
    if begun := checkpoint.checkpoints(out / loop.CHECKPOINTS):
        # The checkpoint holds the autoencoder already: its run may be gone, and is not trained again.
        return checkpoint.read_saved(begun[-1]).config["autoencoder_from"]
    first = load_config(source)
    folder = out.parent / first.name
    if not is_finished(first, folder):
        make_parts(config)  # what it would refuse after the hours of the first stage, it refuses now
        train(first, folder)
    return str(folder)


def is_finished(config: TrainConfig, folder: Path) -> bool:
    """Whether a run reached its last step and left its world."""
    saved = checkpoint.checkpoints(folder / loop.CHECKPOINTS)
    return bool(saved) and int(saved[-1].name) >= config.steps and (folder / loop.WORLD / "config.json").is_file()
