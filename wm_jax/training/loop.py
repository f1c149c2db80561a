"""The only training loop: next batch, step, look at the step before, draw, save; goes on by itself where it was stopped."""

import contextlib
import dataclasses
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

from wm_jax import checkpoint
from wm_jax import config as config_file
from wm_jax.sharding import make_mesh, on_one_device, put_batch, replicate
from wm_jax.training.tracker import Tracker

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
WORLD = "world"
MAY_CHANGE = frozenset({"steps", "log_every", "picture_every", "save_every", "keep", "tensorboard"})


class TrainingError(RuntimeError):
    """A run that cannot go on; the message names the step, the folder and the way out."""


class LoopConfig(Protocol):
    """What the loop itself reads of a config."""

    @property
    def steps(self) -> int: ...
    @property
    def log_every(self) -> int: ...
    @property
    def picture_every(self) -> int: ...
    @property
    def save_every(self) -> int: ...
    @property
    def keep(self) -> int: ...


class Loader(Protocol):
    """Batches of host arrays, and a position that can be kept."""

    def __next__(self) -> Any: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the loop drives: one stage of training.

    Attributes:
      init: `is_resumed -> state`: a fresh train state with the weights in its field `params`. When resumed, all its
        leaves are overwritten: only structure and shapes matter then.
      make_loader: `state -> loader`.
      step: `(state, batch) -> (state, metrics)`, compiled, the state donated; metrics hold `loss`.
      draw: `state -> uint8 [h w 3]`.
      export: `(state, folder)` writes the world as it is now.
      frames_per_step: Frames in a batch.
    """

    init: Callable[[bool], Any]
    make_loader: Callable[[Any], Loader]
    step: Callable[[Any, Any], tuple[Any, Mapping[str, jax.Array]]]
    draw: Callable[[Any], np.ndarray]
    export: Callable[[Any, Path], None]
    frames_per_step: int


def run(config: LoopConfig, out: Path, parts: Parts, has_tensorboard: bool = False) -> None:
    """Drives any parts until `config.steps`, from the newest checkpoint in `out` where there is one.

    Writes `config.json`, `metrics.jsonl`, `pictures/`, `checkpoints/<step>/` and, with each checkpoint, `world/`.
    SIGTERM and SIGINT save a checkpoint and leave the program with 128 + the signal's number.

    Args:
      config: Any dataclass with the fields of `LoopConfig`.
      out: The run's folder.
      parts: What is to be driven.
      has_tensorboard: Write `out/tensorboard` too.

    Raises:
      TrainingError: another process trains in `out`, the config is not the folder's, or the loss is not a number.
      CheckpointError: a checkpoint cannot be saved, or is not sound; then names the one before it.
      OSError: the disk is full or not writable; names the file.
      MissingExtraError: TensorBoard is asked for and not installed.
    """
    if jax.process_count() > 1:
        raise TrainingError(f"{jax.process_count()} processes: this loop runs on the devices of one machine")
    with _locked(out):
        saved = _find_checkpoint(config, out)
        step = int(saved.name) if saved else 0
        tracker = Tracker(out, config.steps, step, parts.frames_per_step, has_tensorboard)
        state = replicate(make_mesh(), parts.init(saved is not None))
        state = checkpoint.restore_state(saved, state) if saved else state
        loader = parts.make_loader(state)
        if saved:
            loader.set_state(checkpoint.read_saved(saved).loader)
        with checkpoint.writing(out / CONFIG_FILE):
            config_file.write(config, out / CONFIG_FILE)
        with tracker, _Stop() as stop:
            if saved:
                tracker.say(f"{out}: goes on after step {step}")
            _drive(config, out, parts, loader, state, step, tracker, stop)
            tracker.say(f"{out / WORLD}: the finished world")


def _find_checkpoint(config: LoopConfig, out: Path) -> Path | None:
    """The newest complete checkpoint, if it belongs to this config."""
    folders = checkpoint.checkpoints(out / CHECKPOINTS)
    if not folders:
        return None
    saved = checkpoint.read_saved(folders[-1])
    changed = config_file.changed_fields(saved.config, config_file.to_json(config))
    refused = {name: values for name, values in changed.items() if name not in MAY_CHANGE}
    if refused:
        listed = "; ".join(f"{name} is {new!r}, the folder has {old!r}" for name, (old, new) in refused.items())
        raise TrainingError(
            f"{out}: was trained to step {saved.step} with another config: {listed}. "
            "Take those values back, choose another --out, or start there anew with --init-from"
        )
    if config.steps < saved.step:
        raise TrainingError(
            f"{out}: is at step {saved.step}, --steps {config.steps} lies behind it; steps may only grow"
        )
    return folders[-1]


def _drive(
    config: LoopConfig, out: Path, parts: Parts, loader: Loader, state: Any, step: int, tracker: Tracker, stop: "_Stop"
) -> None:
    mesh, saved_step, before = make_mesh(), -1, None
    while step < config.steps and not stop.signal:
        batch = put_batch(mesh, next(loader))
        state, metrics = parts.step(state, batch)
        step += 1
        # The device is busy with this step while the host reads the numbers of the one before.
        _settle(config, out, tracker, before)
        before = (step, metrics)
        if step % config.picture_every == 0:
            with tracker.apart():
                tracker.picture(step, parts.draw(on_one_device(state)))
        if step % config.save_every == 0:
            before = _settle(config, out, tracker, before)
            saved_step = _save(config, out, parts, loader, state, step, tracker)
    _settle(config, out, tracker, before)
    if step > saved_step:
        _save(config, out, parts, loader, state, step, tracker)
    if stop.signal:
        tracker.say(f"{out}: stopped after step {step} and saved; the same command goes on from there")
        raise SystemExit(128 + stop.signal)


def _settle(
    config: LoopConfig, out: Path, tracker: Tracker, before: tuple[int, Mapping[str, jax.Array]] | None
) -> None:
    """Reads the numbers of a step that was dispatched earlier; waits for it."""
    if before is None:
        return
    step, metrics = before
    loss = float(metrics["loss"])
    if not math.isfinite(loss):
        raise _not_a_number(out, f"the loss of step {step} is {loss}")
    tracker.done(step)
    if step % config.log_every == 0 or step == config.steps:
        tracker.log(step, {name: float(value) for name, value in metrics.items()})


def _save(config: LoopConfig, out: Path, parts: Parts, loader: Loader, state: Any, step: int, tracker: Tracker) -> int:
    """Saves a checkpoint and the world, unless the weights are spoiled: the newest one is always good to go on from."""
    with tracker.apart():
        spoiled = [name for name, leaf in checkpoint.flatten_tree(state.params).items() if not _is_finite(leaf)]
        if spoiled:
            raise _not_a_number(out, f"after step {step} the weights {', '.join(spoiled[:5])} are not finite")
        folder = out / CHECKPOINTS
        if not (folder / str(step) / checkpoint.DONE_FILE).exists():
            checkpoint.save_state(folder, step, state, config, loader=loader.get_state(), keep=config.keep)
        parts.export(state, out / WORLD)
    return step


@jax.jit
def _is_finite(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf).all()


def _not_a_number(out: Path, what: str) -> TrainingError:
    folders = checkpoint.checkpoints(out / CHECKPOINTS)
    last = f"the last good checkpoint is {folders[-1]}" if folders else "no checkpoint was saved before it"
    return TrainingError(f"{what}; {last}. A lower --optimizer.learning-rate in another --out is the usual way out")


class _Stop:
    """Notes SIGTERM and SIGINT, so that the loop can end between two steps; a second SIGINT interrupts at once."""

    signal: int = 0

    def __enter__(self) -> Self:
        self._old: dict[int, Any] = {}
        with contextlib.suppress(ValueError):  # not in the main thread: nobody sends us signals
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Holds the folder against a second run; the lock goes with the process, however it ends."""
    import fcntl

    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise TrainingError(
                f"{out}: process {file.read().strip() or '?'} trains there; wait or choose another --out"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
