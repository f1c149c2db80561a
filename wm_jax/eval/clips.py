"""Held-out clips to dream against, and the streams of keys for long dreams; the same for a seed on every machine."""

import dataclasses
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8

from wm_jax.data import Episode, EpisodeFolder
from wm_jax.data.record import RecordConfig, record
from wm_jax.types import Controls, Prompt
from wm_jax.world import WorldConfig

SHORTEST_DREAM = 16


@dataclasses.dataclass(frozen=True)
class Clips:
    """Cuts that never cross the end of an episode; what lies beyond it repeats the last frame and is not scored.

    Attributes:
      frames: A prompt of p frames, then the truth.
      keys: `keys[:, t]` led to frame t.
      lengths: True frames of each clip, prompt included.
      prompt_frames: p.
    """

    frames: UInt8[np.ndarray, "n t h w 3"]
    keys: Bool[np.ndarray, "n t keys"]
    lengths: Int[np.ndarray, " n"]
    prompt_frames: int

    @property
    def horizon(self) -> int:
        return self.frames.shape[1] - self.prompt_frames

    @property
    def is_true(self) -> Bool[np.ndarray, "n horizon"]:
        """Whether the frame `horizon` after the prompt (counted from 1) belongs to the episode."""
        return np.arange(1, self.horizon + 1) <= (self.lengths - self.prompt_frames)[:, None]

    @property
    def prompt(self) -> Prompt:
        p = self.prompt_frames
        return Prompt(frames=self.frames[:, :p], controls=Controls(keys=self.keys[:, :p]))

    @property
    def truth(self) -> UInt8[np.ndarray, "n horizon h w 3"]:
        return self.frames[:, self.prompt_frames :]

    @property
    def held(self) -> Bool[np.ndarray, "n horizon keys"]:
        return self.keys[:, self.prompt_frames :]

    def batches(self, rows: int) -> Iterator[tuple["Clips", int]]:
        """Batches of exactly `rows` clips (one compilation) and how many of them are meant; the rest repeat."""
        for start in range(0, len(self.lengths), rows):
            places = np.arange(start, start + rows)
            meant = int((places < len(self.lengths)).sum())
            places = np.minimum(places, len(self.lengths) - 1)
            yield Clips(self.frames[places], self.keys[places], self.lengths[places], self.prompt_frames), meant


@dataclasses.dataclass(frozen=True)
class Recording:
    """The first frames of a held-out recording: a longer one of the same seed gives the same clips.

    Attributes:
      folder: The whole recording.
      episodes: Those that end within the frames that count.
    """

    folder: EpisodeFolder
    episodes: tuple[Episode, ...]

    @property
    def num_frames(self) -> int:
        return sum(episode.length for episode in self.episodes)

    @property
    def checksum(self) -> str:
        """CRC-32 of the frames and keys that count: equal where the same play is measured."""
        value = 0
        for episode in self.episodes:
            part = self.folder.read(episode.start, episode.length)
            value = zlib.crc32(part.controls.keys.tobytes(), zlib.crc32(part.frames.tobytes(), value))
        return f"{value:08x}"


def open_held_out(path: Path, config: WorldConfig, frames: int) -> Recording:
    """The recording at `path`; plays and writes it first where there is none.

    Raises:
      EpisodeError: it is broken.
      ValueError: it is of another game than the world, or not held out.
      MissingGameError: it must be recorded and the game's library is not installed.
    """
    if not path.exists():
        # Starting processes takes longer than playing a few frames.
        workers = 2 if frames > 5_000 else 0
        record(RecordConfig(env=config.env, out=path, frames=frames, split="held_out", workers=workers))  # pyright: ignore
    folder = EpisodeFolder.open(path)
    check_match(folder, config)
    if folder.meta.get("split") != "held_out":
        raise ValueError(
            f"{path} holds the split {folder.meta.get('split')!r}: a world is measured on levels that its "
            f"training never saw, record them with --split held_out"
        )
    folder.check_once()
    # An episode that ends with the last frame may have been cut short there, so it never counts.
    limit = min(frames, folder.num_frames)
    whole = [episode for episode in folder.episodes if episode.start + episode.length < limit] or folder.episodes
    return Recording(folder, tuple(whole))


def check_match(folder: EpisodeFolder, config: WorldConfig) -> None:
    """Refuses a recording of another game, with other keys or another picture size than the world."""
    if folder.meta.get("env") != config.env:
        raise ValueError(
            f"{folder.path} is a recording of {folder.meta.get('env')!r}, world {config.name!r} is of {config.env!r}"
        )
    if folder.controls.codes != config.controls.codes:
        raise ValueError(
            f"{folder.path} was played with the keys {', '.join(folder.controls.codes)}, world "
            f"{config.name!r} has {', '.join(config.controls.codes)}"
        )
    if folder.image != tuple(config.image):
        raise ValueError(f"{folder.path} has frames of {folder.image}, world {config.name!r} shows {config.image}")


def choose_clips(recording: Recording, count: int, prompt_frames: int, horizon: int, seed: int) -> Clips:
    """`count` clips, spread over the episodes as evenly as can be.

    An episode of full length gives a clip at a random place; a shorter one gives all it has from its start, if that is
    16 frames beyond the prompt at least.

    Raises:
      ValueError: no episode is long enough.
    """
    rng = np.random.default_rng([seed, 1])
    fit = [e for e in recording.episodes if e.length >= prompt_frames + min(horizon, SHORTEST_DREAM)]
    if not fit:
        raise ValueError(
            f"{recording.folder.path}: no episode of its first {recording.num_frames} frames has "
            f"{prompt_frames + min(horizon, SHORTEST_DREAM)} frames"
        )
    rounds = [rng.permutation(len(fit)) for _ in range(-(-count // len(fit)))]
    whole = prompt_frames + horizon
    cuts = [_cut(recording.folder, fit[i], whole, rng) for i in np.concatenate(rounds)[:count]]
    frames, keys, lengths = zip(*cuts, strict=True)
    return Clips(np.stack(frames), np.stack(keys), np.array(lengths), prompt_frames)


def _cut(folder: EpisodeFolder, episode: Episode, whole: int, rng: np.random.Generator):
    start = int(rng.integers(max(episode.length - whole, 0) + 1))
    length = min(whole, episode.length)
    part = folder.read(episode.start + start, length)
    missing = whole - length
    frames = np.pad(part.frames, ((0, missing), (0, 0), (0, 0), (0, 0)), mode="edge")
    keys = np.pad(part.controls.keys, ((0, missing), (0, 0)))
    return frames, keys, length


def random_keys(recording: Recording, shape: tuple[int, ...], seed: int) -> Bool[np.ndarray, "*shape keys"]:
    """Keys drawn for each frame apart, evenly from the combinations that occur in the recording."""
    parts = [_keys(recording, episode) for episode in recording.episodes]
    combinations = np.unique(np.concatenate(parts), axis=0)
    return combinations[np.random.default_rng([seed, 2]).integers(len(combinations), size=shape)]


def _keys(recording: Recording, episode: Episode) -> Bool[np.ndarray, "t keys"]:
    """What was held in an episode, without the first frame, to which nothing led."""
    return recording.folder.read_controls(episode.start, episode.length)[0].keys[1:]


def long_sessions(recording: Recording, sessions: int, prompt_frames: int, length: int, seed: int):
    """Prompts from `sessions` episodes, and for each the keys of recorded play, one episode after another.

    Returns:
      The prompt (p frames a row), the keys `[sessions length keys]`, and the episodes the prompts were taken from.
    """
    rng = np.random.default_rng([seed, 3])
    fit = [i for i, e in enumerate(recording.episodes) if e.length > prompt_frames]
    chosen = [fit[i % len(fit)] for i in rng.permutation(len(fit))[:sessions]]
    chosen = [chosen[i % len(chosen)] for i in range(sessions)]
    frames = [recording.folder.read_frames(recording.episodes[i].start, prompt_frames) for i in chosen]
    streams = [_stream(recording, i, prompt_frames + length) for i in chosen]
    keys = np.stack(streams)
    prompt = Prompt(frames=np.stack(frames), controls=Controls(keys=keys[:, :prompt_frames]))
    return prompt, keys[:, prompt_frames:], [recording.episodes[i] for i in chosen]


def _stream(recording: Recording, first: int, length: int) -> np.ndarray:
    parts, have = [np.zeros((1, len(recording.folder.controls.keys)), bool)], 1
    while have < length:
        parts.append(_keys(recording, recording.episodes[first % len(recording.episodes)]))
        have += len(parts[-1])
        first += 1
    return np.concatenate(parts)[:length]
