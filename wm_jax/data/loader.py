"""Feeds training: random clips of a recording in batches, in an order that a seed decides and a small state resumes.

The one file that knows Grain.
"""

import atexit
import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which recordings a run reads, and how.

    Attributes:
      episodes: Episode folder to train on.
      held_out: Episode folder of levels that are never trained on.
      clip_frames: Frames of a clip.
      batch: Clips of a batch.
      seed: Decides the order of the clips.
      workers: Processes that read ahead; 0 reads in this process.
    """

    episodes: str
    held_out: str
    clip_frames: int
    batch: int
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("clip_frames", 1), ("batch", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name} is {getattr(self, name)}, it must be at least {least}")


class LoaderError(ValueError):
    """Batches cannot be cut from this recording, or not from where they were left; the message names both sides."""


class ClipSource(Protocol):
    """One long stream of frames (or latents) to cut clips from; sent to the workers, so it must pickle small."""

    @property
    def num_frames(self) -> int: ...

    def read(self, start: int, length: int) -> Any:
        """A pytree of arrays `[t ...]`: frames `[start, start + length)`. Says itself where episodes start."""
        ...


class Loader(Iterator[Any]):
    """Endless batches of clips: pytrees as the source reads them, with a batch axis in front.

    Its state is the number of batches given so far, beside what else decides them: a loader of the same source, clip,
    batch and seed goes on exactly, with any number of workers.
    """

    def __init__(self, batches: Any, workers: int, identity: dict[str, int]):
        self._batches, self._workers, self._identity = batches, workers, identity
        self._given, self._iterator = 0, None

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = _read_from(self._batches, self._given, self._workers)
        batch = next(self._iterator)
        self._given += 1
        # What a worker sends lives in shared memory that Grain frees by its own clock.
        return jax.tree.map(np.array, batch) if self._workers else batch

    def get_state(self) -> dict[str, int]:
        """Where the loader is; JSON-able."""
        return {**self._identity, "batches_given": self._given}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on where the loader that gave the state was.

        Raises:
          LoaderError: the state is of a loader with other arguments; names both.
        """
        differing = [name for name in self._identity if state.get(name) != self._identity[name]]
        if differing or "batches_given" not in state:
            both = ", ".join(f"{name} {state.get(name)} there, {self._identity[name]} here" for name in differing)
            raise LoaderError(
                f"the saved loader position does not fit this loader: {both or 'it has no batches_given'}; "
                "take the recording back that the run began with, or begin another run"
            )
        self.close()
        self._given = int(state["batches_given"])

    def close(self) -> None:
        """Ends the workers, if there are any; the next batch starts them again."""
        if self._iterator is not None and self._workers:
            self._iterator.close()
        self._iterator = None


def make_loader(source: ClipSource, clip_frames: int, batch: int, seed: int, workers: int = 0) -> Loader:
    """Random clips of `source`, each start equally likely, each once an epoch, reshuffled every epoch.

    Args:
      source: An `EpisodeFolder`, or anything with `num_frames` and `read`.
      clip_frames: Frames of a clip. Clips may run over the end of an episode into the next; `is_first` shows it.
      batch: Clips of a batch.
      seed: Decides the order.
      workers: Processes that read ahead; 0 reads in this process.

    Raises:
      LoaderError: the source has not enough frames for one batch.
    """
    clips = _Clips(source, clip_frames)
    if len(clips) < batch:
        raise LoaderError(
            f"the recording has {source.num_frames} frames: {len(clips)} clips of {clip_frames}, "
            f"fewer than one batch of {batch}; record more frames, or lower --data.batch or --data.clip-frames"
        )
    import grain

    batches = grain.MapDataset.source(clips).seed(seed).shuffle().repeat().batch(batch, batch_fn=_stack)
    identity = {"num_frames": source.num_frames, "clip_frames": clip_frames, "batch": batch, "seed": seed}
    loader = Loader(batches, workers, identity)
    if workers:
        # Grain's workers must end before the interpreter does, else they fill the screen with errors.
        atexit.register(loader.close)
    return loader


def _read_from(batches: Any, start: int, workers: int) -> Any:
    """The batches from number `start` on."""
    import absl.flags
    import grain

    rest = batches.slice(slice(start, None)) if start else batches
    ahead = rest.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    if workers:
        # Grain's worker code reads absl flags, which a program that does not start through absl.app never parses.
        if not absl.flags.FLAGS.is_parsed():
            absl.flags.FLAGS.mark_as_parsed()
        ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4))
    return iter(ahead)


@dataclasses.dataclass(frozen=True)
class _Clips:
    """Clip i starts at frame i."""

    source: ClipSource
    clip_frames: int

    def __len__(self) -> int:
        return max(self.source.num_frames - self.clip_frames + 1, 0)

    def __getitem__(self, index: int) -> Any:
        return self.source.read(int(index), self.clip_frames)


def _stack(clips: Any) -> Any:
    return jax.tree.map(lambda *arrays: np.stack(arrays), *clips)
