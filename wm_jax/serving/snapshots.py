"""What outlives the process: one safetensors file a session, with all it remembers and what a server must know of it.

Several servers may share the folder. A session that a server takes up gets a new epoch, which stands in the name of its file:
taking up is giving `<id>.3.safetensors` the name `<id>.4.safetensors` as well, which only one of many can do, and a server that has not
noticed can write epoch 3 as often as it likes: the newest epoch counts.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from wm_jax.export.programs import bare_shapes
from wm_jax.serving.history import Filed, Memory, Writing
from wm_jax.serving.protocol import Codec, ErrorCode, Mode, Refusal
from wm_jax.serving.session import Moment, Opening
from wm_jax.serving.tokens import Permit
from wm_jax.types import Params
from wm_jax.world import Playable

log = logging.getLogger(__name__)

FORMAT = 1
SUFFIX = ".safetensors"
PAST = ".past"
"""Of files like those, with a state that a session had before the one under its name."""
OWNER = f"{socket.gethostname().replace('.', '-')}.{os.getpid()}"
"""In the names of half-written files: of all servers that share a folder, the one that writes."""

NAME = re.compile(r"[A-Za-z0-9_-]{16,64}")
PREFIX = "snap_"
"""Of the names of snapshots that were asked for; whoever knows one may start from it."""

ABANDONED_S = 600.0
"""Age at which a half-written file is nobody's: no save takes that long, and other servers may be writing now."""

LOOKS = 5
LOOK_S = 0.002
"""A listing that is read while a file changes its name may show neither its old nor its new one; the next one shows it."""

FULL = (errno.ENOSPC, errno.EDQUOT)

HASHED_BYTES = 65_536
"""Of each array of weights: enough to tell two trainings apart, and little enough for weights of many gigabytes."""


class Superseded(Exception):
    """Another server has taken the session up: what this one would write is not its history any more."""


class Record(BaseModel):
    """What is written of a session beside its arrays.

    Attributes:
      world: The fingerprint of world and weights that dreamt it; others would make nothing of its memory.
      resume_sha256: Of the token that lets a client come back to it.
      saved_at: Seconds since the epoch.
      permit, ends_at: Of the ephemeral token that opened it: it may last no longer for having slept.
      frame_id: Its next frame.
      held: Keys held before that, in the world's own order.
      is_fork: Whether it began as another one's copy, so that a reset cannot begin at the seed.
      stream: Where its noise stands, if that is drawn on the host.
      past: Epochs and frames of earlier states that lie beside it, oldest first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    world: str
    session_id: str
    resume_sha256: str
    saved_at: float
    linger_s: float
    permit: Permit | None = None
    ends_at: float | None = None
    mode: Mode
    codec: Codec
    quality: int
    stride: int
    seed: int
    prompt: int | None
    frame_id: int
    held: list[bool]
    is_fork: bool
    stream: dict[str, Any] | None
    past: list[tuple[int, int]] = []


PASTS = TypeAdapter(list[tuple[int, int]])


def fingerprint(world: Playable[Any], params: Params) -> str:
    """A name for this world with these weights; reads the beginning of each array."""
    known = hashlib.sha256(repr(world.config).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        known.update(f"{jax.tree_util.keystr(path)} {array.dtype}{array.shape}".encode())
        known.update(array.reshape(-1).view(np.uint8)[:HASHED_BYTES].tobytes())
    return known.hexdigest()


class Found(NamedTuple):
    """A file of ours in the folder, by how long it is kept: what compares as more stays longer.

    Attributes:
      is_played: It is the only copy of a session that somebody plays.
      is_whole: It is a session or a snapshot, not a state that a session had before.
      is_session: It is a session's, not a snapshot that was asked for.
    """

    is_played: bool
    is_whole: bool
    is_session: bool
    saved_at: float
    size: int
    path: Path


class SnapshotStore:
    """A folder of snapshots by name. Its methods wait for the disk; each may be called from any thread.

    Attributes:
      max_mb: What the folder may hold; the oldest make room, and none that is being played.
      max_age_s: How long a snapshot is kept.
      awake_s: Age below which a session's file is somebody's who plays: its server writes or touches it more often.
    """

    def __init__(
        self,
        folder: Path,
        world: Playable[Any],
        weights: str,
        scenes: int,
        max_mb: float,
        max_age_s: float,
        awake_s: float = 0.0,
    ) -> None:
        self.world = weights
        self.max_mb = max_mb
        self.max_age_s = max_age_s
        self.awake_s = awake_s
        self._is_full = False
        self._scenes = scenes
        self._folder = folder
        self._shapes = bare_shapes(world, 1)
        self._image = (*world.config.image, 3)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._remove_abandoned()
        self._room = self._free(self._found(()))  # bytes for states that sessions had before, until the next sweep

    def save(self, name: str, record: Record, moment: Moment, epoch: int = 0, writing: Writing | None = None) -> int:
        """Writes a session, whole or not at all; the bytes it takes.

        Args:
          writing: What becomes of its earlier states; None: they are replaced.

        Raises:
          Superseded: a later epoch of it is there.
          OSError: the disk is full or broken; what was there under that name is left as it was.
        """
        path, partial = self._path(name, epoch), self._folder / f"{name}.{OWNER}.{time.monotonic_ns()}.tmp"
        try:
            self._check_newest(name, epoch)
            try:
                size = _write(partial, record, moment)
            except OSError as error:
                if error.errno not in FULL or not self._give_up_pasts(name):
                    raise
                size = _write(partial, record, moment)
            if writing is not None and writing.before is not None and size <= self._room:
                self._room -= size
                with contextlib.suppress(OSError):  # it is not there any more, or the disk has no links
                    os.link(path, self._past(name, writing.before))
            partial.replace(path)
            try:
                self._check_newest(name, epoch)
            except Superseded:
                path.unlink(missing_ok=True)
                raise
        finally:
            partial.unlink(missing_ok=True)
        for filed in writing.dropped if writing is not None else ():
            with contextlib.suppress(OSError):
                self._past(name, filed).unlink(missing_ok=True)
        return size

    def claim(self, name: str) -> int:
        """Takes a session up: its new epoch, which no other server has.

        Raises:
          Refusal: there is none of that name.
        """
        while True:
            epoch = self._newest(name)
            self.touch(name, epoch)  # under both names: no server sweeps away what is being taken up
            try:
                os.link(self._path(name, epoch), self._path(name, epoch + 1))
            except (FileNotFoundError, FileExistsError):
                continue  # another server was faster
            self._path(name, epoch).unlink(missing_ok=True)
            if self._newest(name) > epoch + 1:
                # Others went past meanwhile, and had perhaps had this very epoch: nobody keeps it.
                self._path(name, epoch + 1).unlink(missing_ok=True)
                continue
            return epoch + 1

    def read(self, name: str) -> Record:
        """What is written of a session.

        Raises:
          Refusal: there is none of that name, or one that is broken or of another world.
        """
        with self._opened(lambda: self._open(name)) as file:
            return self._record(name, file)

    def load(self, name: str) -> tuple[Record, Moment]:
        """A session as it was saved.

        Raises:
          Refusal: as `read`, or its arrays are not those of this world.
        """
        return self._load(name, lambda: self._open(name))

    def recall(self, name: str, filed: Filed) -> Memory:
        """A state that a session had before.

        Raises:
          Refusal: it is not there any more, or broken.
        """
        memory = self._load(name, lambda: self._open_past(name, filed))[1].opening.memory
        if memory is None:
            raise Refusal(ErrorCode.UNKNOWN_SNAPSHOT, f"frame {filed.frame_id} of session {name} holds no state")
        return memory

    def forget(self, name: str, epoch: int = 0) -> None:
        """There is none of that name any more, unless another server has taken it up since."""
        with contextlib.suppress(OSError):
            for known in range(epoch + 1):  # a server that slept may have written an earlier one again
                self._path(name, known).unlink(missing_ok=True)
            if not self._epochs(name):
                for past in self._folder.glob(f"{name}.*{PAST}"):
                    past.unlink(missing_ok=True)

    def touch(self, name: str, epoch: int = 0) -> bool:
        """It is as good as written now; False: it is not there, or cannot be marked, and is to be written again."""
        try:
            os.utime(self._path(name, epoch))
        except OSError:
            return False
        return True

    def names(self) -> set[str]:
        """Of all that is in the folder, strange files among them.

        Raises:
          OSError: it cannot be read.
        """
        return {entry.partition(".")[0] for entry in os.listdir(self._folder)}

    def sweep(self, played: Collection[str] = ()) -> None:
        """Removes what is too old or superseded, then the oldest until the rest is small enough; only files of ours.

        Args:
          played: Sessions that are here. A file of one stays, however much there is: it may be the only copy.
        """
        self._remove_abandoned()
        found = sorted(self._found(played), reverse=True)
        being_played = sum(one.size for one in found if one.is_played)
        room, kept = 1e6 * self.max_mb, list[Found]()
        for one in found:
            room -= one.size
            # Until the next sweep each of those may leave its state of today behind.
            left = room if one.is_whole else room - being_played
            if one.is_played or (left >= 0 and time.time() - one.saved_at <= self.max_age_s):
                kept.append(one)
                continue
            with contextlib.suppress(OSError):
                one.path.unlink(missing_ok=True)
        self._room = self._free(kept)
        self._warn_if_full(being_played)

    # ---- inside

    def _free(self, found: Iterable[Found]) -> float:
        """What is left of the bound beside these, and of the disk beside what writing every played session once takes."""
        known = [*found]
        being_played = sum(one.size for one in known if one.is_played)
        return min(
            1e6 * self.max_mb - sum(one.size for one in known), shutil.disk_usage(self._folder).free - being_played
        )

    def _give_up_pasts(self, name: str) -> bool:
        """The disk is full: what this session was before makes room, or else what all were; whether there was anything."""
        for pattern in (f"{name}.*{PAST}", f"*{PAST}"):
            paths = [path for path in self._folder.glob(pattern) if NAME.fullmatch(path.name.partition(".")[0])]
            for path in paths:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            if paths:
                self._room = 0.0
                log.warning("the disk is full: %d states that sessions had before make room", len(paths))
                return True
        return False

    def _found(self, played: Collection[str]) -> Iterator[Found]:
        """The files of ours that count; those that do not are removed."""
        ours = {path: _parse(path) for path in self._folder.glob(f"*{SUFFIX}") if NAME.fullmatch(_parse(path)[0])}
        newest: dict[str, int] = {}
        for name, epoch in ours.values():
            newest[name] = max(epoch, newest.get(name, 0))
        for path, (name, epoch) in ours.items():
            with contextlib.suppress(FileNotFoundError):  # another server, or a session that ended meanwhile
                if epoch < newest[name]:
                    path.unlink(missing_ok=True)
                    continue
                status = path.stat()
                is_young = time.time() - status.st_mtime < min(self.awake_s, self.max_age_s)
                # Who asks for snapshot after snapshot drives out snapshots, not the sessions of others.
                is_session = not name.startswith(PREFIX)
                is_played = name in played or (is_session and is_young)
                yield Found(is_played, True, is_session, status.st_mtime, status.st_size, path)
        for path in self._folder.glob(f"*{PAST}"):
            with contextlib.suppress(FileNotFoundError):
                if NAME.fullmatch(path.name.partition(".")[0]):
                    status = path.stat()
                    yield Found(False, False, True, status.st_mtime, status.st_size, path)

    def _warn_if_full(self, size: int) -> None:
        """Says once that what may not be removed is more than the folder may hold, and again after there was room."""
        was_full, self._is_full = self._is_full, size > 1e6 * self.max_mb
        if self._is_full and not was_full:
            log.warning(
                "the sessions that are played take %.0f MB of the disk, --snapshot-mb is %g: nothing else is kept there, "
                "and no session of these is removed; start with more --snapshot-mb, or fewer --slots",
                1e-6 * size,
                self.max_mb,
            )

    def _path(self, name: str, epoch: int) -> Path:
        if not NAME.fullmatch(name):
            raise Refusal(ErrorCode.UNKNOWN_SNAPSHOT, "no such snapshot, or it has expired")
        return self._folder / f"{name}.{epoch}{SUFFIX}" if epoch else self._folder / f"{name}{SUFFIX}"

    def _past(self, name: str, filed: Filed) -> Path:
        return self._path(name, filed.epoch).with_suffix(f".{filed.frame_id}{PAST}")

    def _epochs(self, name: str) -> list[int]:
        """The epochs of a session that are on the disk."""
        first = self._path(name, 0)
        later = [_parse(path)[1] for path in self._folder.glob(f"{name}.*{SUFFIX}")]
        return [0, *later] if first.exists() else later

    def _newest(self, name: str) -> int:
        """The epoch of a session that counts.

        Raises:
          Refusal: there is none of that name.
        """
        for _ in range(LOOKS):
            epochs = self._epochs(name)
            if epochs:
                return max(epochs)
            time.sleep(LOOK_S)
        raise Refusal(ErrorCode.UNKNOWN_SNAPSHOT, "no such snapshot, or it has expired")

    def _check_newest(self, name: str, epoch: int) -> None:
        later = max(self._epochs(name), default=0)
        if later > epoch:
            raise Superseded(f"session {name} was taken up elsewhere: epoch {later} is on the disk, this is {epoch}")

    def _remove_abandoned(self) -> None:
        """Removes what a killed server left half written, and leaves alone what others are writing."""
        for path in self._folder.iterdir():
            if path.name.startswith(".tmp") or path.suffix == ".tmp":
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > ABANDONED_S:
                        path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _opened(self, opens: Callable[[], Any]) -> Iterator[Any]:
        try:
            with opens() as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise Refusal(ErrorCode.UNKNOWN_SNAPSHOT, f"the snapshot is broken ({error})") from None

    def _load(self, name: str, opens: Callable[[], Any]) -> tuple[Record, Moment]:
        with self._opened(opens) as file:
            record = self._record(name, file)
            arrays = {key: file.get_tensor(key) for key in list(file.keys())}
        opening = self._opening(name, record, arrays)
        return record, Moment(opening, record.frame_id, np.asarray(record.held, bool))

    def _open_past(self, name: str, filed: Filed) -> Any:
        path = self._past(name, filed)
        if path.is_symlink() or not path.is_file():
            raise Refusal(ErrorCode.UNKNOWN_SNAPSHOT, f"frame {filed.frame_id} of session {name} is not there any more")
        return safe_open(path, framework="numpy")

    def _open(self, name: str) -> Any:
        """The newest file of that name: while it is looked for, it may be taken up and get another."""
        for _ in range(LOOKS):
            path = self._path(name, self._newest(name))
            if path.is_symlink() or (path.exists() and not path.is_file()):
                break
            with contextlib.suppress(FileNotFoundError):
                return safe_open(path, framework="numpy")
        raise Refusal(ErrorCode.UNKNOWN_SNAPSHOT, "no such snapshot, or it has expired")

    def _record(self, name: str, file: Any) -> Record:
        metadata = file.metadata() or {}
        try:
            record = Record.model_validate_json(metadata.get("record", ""))
            # Beside the record, so that servers of an earlier version can read that.
            record = record.model_copy(update={"past": PASTS.validate_json(metadata.get("past", "[]"))})
        except ValidationError as error:
            raise Refusal(
                ErrorCode.UNKNOWN_SNAPSHOT, f"snapshot {name} is broken: {error.errors()[0]['msg']}"
            ) from None
        if record.format != FORMAT or record.world != self.world:
            text = "the snapshot is of another world, other weights or another version than are served here"
            raise Refusal(ErrorCode.UNKNOWN_SNAPSHOT, text)
        return record

    def _opening(self, name: str, record: Record, arrays: dict[str, np.ndarray]) -> Opening:
        bare_opening = Opening(record.seed, record.prompt)
        try:
            return opening_of(arrays, bare_opening, record.stream, self._shapes, self._image, self._scenes)
        except ValueError as error:
            raise Refusal(ErrorCode.UNKNOWN_SNAPSHOT, f"snapshot {name} {error}") from None


def _write(path: Path, record: Record, moment: Moment) -> int:
    """Writes a session to a file; its size.

    Raises:
      OSError: the disk is full or broken.
    """
    told = {"record": record.model_dump_json(exclude={"past"}), "past": json.dumps(record.past)}
    try:
        save_file(arrays_of(moment.opening), path, told)
    except SafetensorError as error:
        told_by = re.search(r"os error (\d+)", str(error))
        raise OSError(int(told_by[1]) if told_by else None, f"{path.parent}: {error}") from None
    with path.open("rb") as written:
        os.fsync(written.fileno())
    return path.stat().st_size


def _parse(path: Path) -> tuple[str, int]:
    """Name and epoch of a snapshot's file."""
    name, _, epoch = path.name.removesuffix(SUFFIX).partition(".")
    return name, int(epoch) if epoch.isdigit() else 0


def opening_of(
    arrays: dict[str, np.ndarray], bare: Opening, stream: Any, shapes: Any, image_shape: tuple[int, ...], scenes: int
) -> Opening:
    """An opening of these arrays, as `arrays_of` names them; `bare` is the same without them.

    Raises:
      ValueError: they are not those of a world whose state has these shapes, or the world has no such scene.
    """
    state = {key: array for key, array in arrays.items() if key != "image"}
    image = arrays.get("image")
    known = {_key(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    wanted = {key: (leaf.dtype, leaf.shape) for key, leaf in known.items()}
    found = {key: (array.dtype, array.shape) for key, array in state.items()}
    is_image = image is None or (image.shape == image_shape and image.dtype == np.uint8)
    if not is_image or (found and found != wanted):
        raise ValueError("has other arrays than this world remembers")
    if bare.prompt is not None and bare.prompt >= scenes:
        raise ValueError(f"began with scene {bare.prompt}, this world ships {scenes} (from 0)")
    memory = None
    if found:
        memory = Memory(jax.tree.unflatten(jax.tree.structure(shapes), [state[key] for key in known]), stream)
    return dataclasses.replace(bare, image=image, memory=memory)


def arrays_of(opening: Opening) -> dict[str, np.ndarray]:
    """What an opening holds beside numbers, by name, on the host."""
    state = () if opening.memory is None else jax.tree_util.tree_leaves_with_path(opening.memory.state)
    arrays = {_key(path): np.ascontiguousarray(leaf) for path, leaf in state}
    return arrays if opening.image is None else {**arrays, "image": np.ascontiguousarray(opening.image)}


def _key(path: Any) -> str:
    return f"state{jax.tree_util.keystr(path)}"
