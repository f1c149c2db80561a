"""One run, as numbers: what is trained, on what, for how long."""

import dataclasses
import difflib
import re
import sys
import traceback
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wm_jax import config as config_file
from wm_jax.config import ConfigError
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

    def __post_init__(self) -> None:
        least = {"steps": 1, "log_every": 1, "picture_every": 1, "save_every": 1, "keep": 1, "record_frames": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least {value}")
        if self.world.controls.has_mouse:
            raise ValueError("world.controls.has_mouse is true: the worlds that are trained here listen to keys only")


def load_config(path: str | Path) -> TrainConfig:
    """The config of a Python config file.

    Raises:
      ConfigError: no such file, or a field that is unknown, missing or cannot be so; names the line and what is known.
    """
    try:
        config = config_file.load(path)
    except ConfigError:
        raise
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"{_place(error)}: {_explain(error)}") from error
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"{path}: config() returned a {type(config).__name__}, a run is a TrainConfig")
    return config


def _place(error: Exception) -> str:
    """File and line of the mistake: the innermost frame that is neither ours nor Python's own."""
    others = {"wm_jax", *sys.stdlib_module_names}
    return [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] not in others
    ][-1]


def _explain(error: Exception) -> str:
    """The words of the error; for a field that a config does not have, the closest and all known ones."""
    wrong = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    kind = {kind.__name__: kind for kind in _kinds(TrainConfig)}.get(wrong[1]) if wrong else None
    if wrong is None or kind is None:
        return str(error)
    known = [field.name for field in dataclasses.fields(kind)]
    near = difflib.get_close_matches(wrong[2], known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{wrong[2]} is no field of {kind.__name__}{hint} (known: {', '.join(known)})"


def _kinds(hint: Any) -> Iterator[type]:
    """The dataclasses that a config is made of."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield hint
        for inner in typing.get_type_hints(hint).values():
            yield from _kinds(inner)
    for argument in typing.get_args(hint):
        yield from _kinds(argument)
