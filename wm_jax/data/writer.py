"""Writes an episode folder so that it either opens whole or does not open at all.

Everything goes to a folder beside the wanted one, `<name>.unfinished`; the done-mark is written last, then the folder
is renamed. A full disk or an interruption removes it; a killed process leaves `<name>.unfinished`, which does not open.
"""

import errno
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from jaxtyping import Bool, UInt8

from wm_jax.data.episode import DONE, FORMAT, KINDS, VERSION, EpisodeError, checksum, shard_file
from wm_jax.types import ControlSpace

SHARD_FRAMES = 20_000


class EpisodeWriter:
    """Collects episodes into shards; use as a context manager: leaving it well finishes the folder, else removes it.

    Raises:
      EpisodeError: the folder exists already, or an episode does not fit the recording.
      OSError: the disk is full or not writable; names the file, what it needed, and what is free.
    """

    def __init__(self, path: str | Path, *, controls: ControlSpace, image: tuple[int, int], fps: float,
                 facts: dict[str, Any] | None = None, shard_frames: int = SHARD_FRAMES):  # fmt: skip
        self.path = Path(path)
        self.unfinished = self.path.with_name(self.path.name + ".unfinished")
        self.controls, self.image, self.fps = controls, image, fps
        self.facts, self.shard_frames = facts or {}, shard_frames
        self.num_frames = 0
        self._shards: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []
        self._keys: list[np.ndarray] = []
        self._file: BinaryIO | None = None
        self._policies: dict[str, dict[str, int]] = {}

    def __enter__(self) -> Self:
        if self.path.exists():
            raise EpisodeError(f"{self.path} exists already; delete it or choose another --out")
        shutil.rmtree(self.unfinished, ignore_errors=True)
        self.unfinished.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as problem:
            raise self._explain(problem) from problem
        finally:
            if self._file is not None:
                self._file.close()
            shutil.rmtree(self.unfinished, ignore_errors=True)

    def add(self, frames: UInt8[np.ndarray, "t h w 3"], keys: Bool[np.ndarray, "t keys"], *, level: int, policy: str,
            seed: int) -> None:  # fmt: skip
        """Appends one episode; `keys[t]` led to `frames[t]`, so `keys[0]` holds nothing."""
        self._check(frames, keys)
        try:
            self._append(frames)
        except OSError as problem:
            raise self._explain(problem) from problem
        start = sum(row["length"] for row in self._rows)
        self._rows.append({"start": start, "length": len(frames), "level": level, "policy": policy, "seed": seed})
        self._keys.append(keys.astype(np.bool_))
        self.num_frames += len(frames)
        table = self._policies.setdefault(policy, {"episodes": 0, "frames": 0})
        table["episodes"] += 1
        table["frames"] += len(frames)
        if start + len(frames) >= self.shard_frames:
            try:
                self._close_shard()
            except OSError as problem:
                raise self._explain(problem) from problem

    def _check(self, frames: np.ndarray, keys: np.ndarray) -> None:
        if frames.dtype != np.uint8 or frames.shape[1:] != (*self.image, 3) or len(frames) == 0:
            raise EpisodeError(
                f"frames are {frames.dtype.name} {list(frames.shape)}, this recording holds uint8 "
                f"[t {self.image[0]} {self.image[1]} 3]"
            )
        if keys.shape != (len(frames), len(self.controls.keys)):
            raise EpisodeError(
                f"keys are {list(keys.shape)} for {len(frames)} frames and "
                f"{len(self.controls.keys)} keys ({', '.join(self.controls.codes)})"
            )
        if keys[0].any():
            raise EpisodeError("keys are held at the first frame of an episode, but nothing led to that frame")

    def _append(self, frames: np.ndarray) -> None:
        if self._file is None:
            self._file = (self.unfinished / shard_file(len(self._shards), "frames.npy")).open("wb")
            _write_header(self._file, 0, self.image)
        self._file.write(np.ascontiguousarray(frames).data)

    def _close_shard(self) -> None:
        if self._file is None:
            return
        number, keys = len(self._shards), np.concatenate(self._keys)
        self._file.seek(0)
        _write_header(self._file, len(keys), self.image)
        self._file.close()
        self._file = None
        np.save(self.unfinished / shard_file(number, "keys.npy"), keys)
        _write_json(self.unfinished / shard_file(number, "index.json"), self._rows)
        sums = {kind: checksum(self.unfinished / shard_file(number, kind)) for kind in KINDS}
        self._shards.append({"frames": len(keys), "episodes": len(self._rows), "checksums": sums})
        self._rows, self._keys = [], []

    def _finish(self) -> None:
        self._close_shard()
        if not self._shards:
            raise EpisodeError(f"nothing was recorded into {self.path}")
        meta = {
            "format": FORMAT,
            "version": VERSION,
            **self.facts,
            "controls": [{"code": key.code, "label": key.label} for key in self.controls.keys],
            "image": list(self.image),
            "fps": self.fps,
            "num_frames": self.num_frames,
            "num_episodes": sum(shard["episodes"] for shard in self._shards),
            "policies": self._policies,
            "shards": self._shards,
        }
        _write_json(self.unfinished / "meta.json", meta)
        for file in sorted(self.unfinished.iterdir()):
            _to_disk(file)
        (self.unfinished / DONE).write_text(checksum(self.unfinished / "meta.json") + "\n")
        _to_disk(self.unfinished / DONE)
        os.rename(self.unfinished, self.path)
        _to_disk(self.path.parent)

    def _explain(self, problem: OSError) -> OSError:
        place = self.unfinished if self.unfinished.exists() else self.path.parent
        free = shutil.disk_usage(place).free if place.exists() else 0
        why = "the disk is full" if problem.errno == errno.ENOSPC else str(problem.strerror or problem)
        return OSError(problem.errno, f"could not write {self.path} after {self.num_frames} frames: {why} "
                       f"({free / 1e6:.0f} MB free there); the unfinished recording was removed")  # fmt: skip


def _write_header(file: BinaryIO, count: int, image: tuple[int, int]) -> None:
    """A .npy header; NumPy pads it so that the first number may grow in place."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *image, 3)}
    np.lib.format.write_array_header_1_0(file, header)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
