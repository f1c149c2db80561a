"""What a recording is on disk: an episode folder of raw frames, the keys that led to them, and where episodes start.

    coinrun/
      meta.json                what was recorded: game, split, keys, size, counts, a checksum for every file
      shard_00000.frames.npy   uint8 [frames h w 3], raw: any cut is one read
      shard_00000.keys.npy     bool [frames keys]; keys[t] led to frame t, so the first row of an episode is all False
      shard_00000.index.json   start, length, level, policy and seed of each episode
      DONE                     written last; holds the checksum of meta.json
      CHECKED                  written by `check_once`: size and time of change of the frame files that were found whole

A folder that is cut short, unfinished, of another kind, or whose meta, keys or index were changed is refused by
`EpisodeError` whenever it is opened, never skipped. Damage inside the frames is found where they are all read:
`open(check_frames=True)` (wm_jax.data.inspect) and `check_once`, which training calls first.
"""

import contextlib
import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from rich.progress import Progress

from wm_jax.envs import NAMES
from wm_jax.types import Clip, Controls, ControlSpace, KeyBinding

FORMAT = "wm_jax.episodes"
VERSION = 1
DONE = "DONE"
CHECKED = "CHECKED"
KINDS = ("frames.npy", "keys.npy", "index.json")


class EpisodeError(ValueError):
    """A recording cannot be used; the message names the file, what it holds, and what was expected."""


@dataclasses.dataclass(frozen=True)
class Episode:
    """One unbroken stretch of play.

    Attributes:
      start: Its first frame, counted over the whole folder.
      length: Frames.
      level: Which level of the game.
      policy: Who played.
      seed: What the player's randomness was drawn from.
      shard: Which shard holds it.
    """

    start: int
    length: int
    level: int
    policy: str
    seed: int
    shard: int


def frame_bytes(image: Sequence[int]) -> int:
    """What one frame takes on disk."""
    return image[0] * image[1] * 3


def shard_file(shard: int, kind: str) -> str:
    return f"shard_{shard:05d}.{kind}"


def checksum(path: Path, chunk: int = 1 << 24) -> str:
    """CRC-32 of a file as eight hexadecimal digits: it finds damage, not malice."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(chunk):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


@dataclasses.dataclass(frozen=True, eq=False)
class EpisodeFolder:
    """A finished recording; holds its keys in memory, reads frames when asked, and may be sent to another process.

    Attributes:
      path: Where it is.
      meta: All of meta.json.
      controls: What could be held; column i of the keys.
      image: Height and width of a frame in pixels.
      fps: Frames a second at which the game is played.
      episodes: In the order they lie on disk.
    """

    path: Path
    meta: Mapping[str, Any]
    controls: ControlSpace
    image: tuple[int, int]
    fps: float
    episodes: tuple[Episode, ...]
    _starts: np.ndarray
    _offset: int
    _keys: np.ndarray
    _is_first: np.ndarray

    @classmethod
    def open(cls, path: str | Path, *, check_frames: bool = False) -> "EpisodeFolder":
        """Opens a recording.

        Args:
          path: The episode folder.
          check_frames: Also read every frame and compare checksums (about a second a gigabyte), as `check_once` does
            once. Sizes, keys and index are always checked.

        Raises:
          EpisodeError: it is not a finished, whole recording; names the file and both sides.
        """
        path = Path(path)
        meta = _read_meta(path)
        controls = ControlSpace(tuple(KeyBinding(**key) for key in meta["controls"]))
        image = (int(meta["image"][0]), int(meta["image"][1]))
        starts, offset, keys, episodes = [0], 0, [], []
        for shard, entry in enumerate(meta["shards"]):
            count = int(entry["frames"])
            _check_sums(path, shard, entry["checksums"], KINDS if check_frames else KINDS[1:])
            frames = _read_array(path / shard_file(shard, "frames.npy"), (count, *image, 3), np.uint8)
            assert isinstance(frames, np.memmap)
            offset = frames.offset
            keys.append(_read_array(path / shard_file(shard, "keys.npy"), (count, len(controls.keys)), np.bool_))
            episodes += _read_index(path / shard_file(shard, "index.json"), shard, starts[-1], count)
            starts.append(starts[-1] + count)
        _check_counts(path, meta, episodes)
        is_first = np.zeros(starts[-1], np.bool_)
        is_first[[episode.start for episode in episodes]] = True
        return cls(path, meta, controls, image, float(meta["fps"]), tuple(episodes), np.array(starts), offset,
                   np.concatenate(keys), is_first)  # fmt: skip

    def check_once(self) -> None:
        """Reads every frame and compares checksums, unless that was done since the files last changed.

        Raises:
          EpisodeError: frames are damaged; names the file.
        """
        noted = self.path / CHECKED
        now = json.dumps({file.name: _stamp(file) for file in self._frame_files()}) + "\n"
        if noted.is_file() and noted.read_bytes() == now.encode():
            return
        shards = self.meta["shards"]
        with Progress() as bar:
            task = bar.add_task(f"checking {self.path}", total=len(shards))
            for shard, entry in enumerate(shards):
                _check_sums(self.path, shard, entry["checksums"], KINDS[:1])
                bar.advance(task)
        with contextlib.suppress(OSError):  # a folder that cannot be written to is checked every time
            noted.write_text(now)

    def _frame_files(self) -> list[Path]:
        return [self.path / shard_file(shard, "frames.npy") for shard in range(len(self.meta["shards"]))]

    @property
    def num_frames(self) -> int:
        return len(self._keys)

    @property
    def num_episodes(self) -> int:
        return len(self.episodes)

    def frames(self, episode: int, start: int = 0, length: int | None = None) -> UInt8[np.ndarray, "t h w 3"]:
        """Frames `[start, start + length)` of one episode, to its end by default."""
        return self.read_frames(*self._within(episode, start, length))

    def keys(self, episode: int, start: int = 0, length: int | None = None) -> Bool[np.ndarray, "t keys"]:
        """The keys that led to those frames."""
        start, length = self._within(episode, start, length)
        return self._keys[start : start + length].copy()

    def read_frames(self, start: int, length: int) -> UInt8[np.ndarray, "t h w 3"]:
        """Frames `[start, start + length)` counted over the whole folder; may cross episodes."""
        self._in_folder(start, length)
        out = np.empty((length, *self.image, 3), np.uint8)
        done = 0
        while done < length:
            shard = int(np.searchsorted(self._starts, start + done, side="right")) - 1
            inside = start + done - int(self._starts[shard])
            part = out[done : done + int(self._starts[shard + 1]) - int(self._starts[shard]) - inside]
            self._read_part(shard, inside, part)
            done += len(part)
        return out

    def read(self, start: int, length: int) -> Clip:
        """Frames, keys and episode starts of `[start, start + length)` over the whole folder, without batch axis."""
        return Clip(self.read_frames(start, length), *self.read_controls(start, length))

    def read_controls(self, start: int, length: int) -> tuple[Controls, Bool[np.ndarray, " t"]]:
        """`read` without the frames: what led to each, and which start an episode."""
        self._in_folder(start, length)
        part = slice(start, start + length)
        return Controls(self._keys[part].copy()), self._is_first[part].copy()

    def _read_part(self, shard: int, inside: int, out: np.ndarray) -> None:
        """Fills `out` from one shard. A plain read: mapped pages count as this process's memory and fault one by one."""
        file = self.path / shard_file(shard, "frames.npy")
        with file.open("rb", buffering=0) as raw:
            raw.seek(self._offset + inside * frame_bytes(self.image))
            view = memoryview(out).cast("B")
            while len(view):
                if not (count := raw.readinto(view)):
                    raise EpisodeError(
                        f"{file} ended {len(view)} bytes early while it was read: it was whole when opened"
                    )
                view = view[count:]

    def _in_folder(self, start: int, length: int) -> None:
        if start < 0 or length < 0 or start + length > self.num_frames:
            raise IndexError(f"frames {start}..{start + length} of {self.path}, which has {self.num_frames}")

    def _within(self, episode: int, start: int, length: int | None) -> tuple[int, int]:
        whole = self.episodes[episode]
        length = whole.length - start if length is None else length
        if start < 0 or length < 0 or start + length > whole.length:
            raise IndexError(
                f"frames {start}..{start + length} of episode {episode} of {self.path}, which has {whole.length}"
            )
        return whole.start + start, length


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EpisodeError(f"{path} is missing: not a whole episode folder") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise EpisodeError(f"{path} is not JSON: {error}") from None


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        command = f"python -m wm_jax.data.record --env GAME --out {path}"
        raise EpisodeError(f"{path} is no folder; record one: {command} (GAME: {', '.join(NAMES)})")
    if not (path / "meta.json").exists():
        raise EpisodeError(f"{path} holds no meta.json: it is not an episode folder, or its recording never finished")
    if not (path / DONE).exists():
        raise EpisodeError(f"{path} holds no {DONE} mark: its recording never finished; record it again")
    meta = _read_json(path / "meta.json")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise EpisodeError(f"{path / 'meta.json'} has format {found!r}, an episode folder has {FORMAT!r}")
    if meta.get("version") != VERSION:
        raise EpisodeError(
            f"{path / 'meta.json'} has version {meta.get('version')!r}, this wm_jax reads version "
            f"{VERSION}; record again or use the wm_jax that wrote it ({meta.get('writer')})"
        )
    expected, actual = (path / DONE).read_text().strip(), checksum(path / "meta.json")
    if expected != actual:
        raise EpisodeError(f"{path / 'meta.json'} has checksum {actual}, {DONE} says {expected}: it was changed")
    if missing := {"controls", "image", "fps", "shards", "num_frames", "num_episodes"} - meta.keys():
        raise EpisodeError(f"{path / 'meta.json'} lacks {sorted(missing)}")
    return meta


def _check_sums(path: Path, shard: int, expected: Mapping[str, str], kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        file = path / shard_file(shard, kind)
        if not file.exists():
            raise EpisodeError(f"{file} is missing, meta.json lists it")
        if (actual := checksum(file)) != expected[kind]:
            raise EpisodeError(f"{file} has checksum {actual}, meta.json says {expected[kind]}: the file is damaged")


def _read_array(file: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A memory map of a .npy file of this shape; mapping it fails if the file is too short."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise EpisodeError(f"{file} is missing, meta.json lists it") from None
    except (ValueError, OSError, EOFError) as error:
        raise EpisodeError(
            f"{file} is cut short or no .npy file; meta.json says {np.dtype(dtype).name} {list(shape)}: {error}"
        ) from None
    if array.shape != shape or array.dtype != dtype:
        raise EpisodeError(
            f"{file} holds {array.dtype.name} {list(array.shape)}, meta.json says {np.dtype(dtype).name} {list(shape)}"
        )
    return array


def _read_index(file: Path, shard: int, start: int, count: int) -> list[Episode]:
    rows = _read_json(file)
    episodes = [Episode(**{**row, "start": row["start"] + start}, shard=shard) for row in rows]
    ends = [episode.start + episode.length for episode in episodes]
    if [episode.start for episode in episodes] + [start + count] != [start, *ends]:
        raise EpisodeError(f"{file}: its episodes do not fill the {count} frames of the shard one after another")
    return episodes


def _check_counts(path: Path, meta: Mapping[str, Any], episodes: list[Episode]) -> None:
    frames = sum(episode.length for episode in episodes)
    if (frames, len(episodes)) != (meta["num_frames"], meta["num_episodes"]):
        raise EpisodeError(
            f"{path / 'meta.json'} says {meta['num_frames']} frames in {meta['num_episodes']} episodes, "
            f"its shards hold {frames} in {len(episodes)}"
        )
