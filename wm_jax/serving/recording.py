"""A recording as a file: a zip of `session.json`, `events.jsonl`, what these name, and the video that follows from them."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import io
import itertools
import json
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from wm_jax.export.programs import bare_shapes
from wm_jax.serving.codec import decode_image, encode
from wm_jax.serving.events import Chapter, Events
from wm_jax.serving.history import History, Opening
from wm_jax.serving.protocol import Source
from wm_jax.serving.snapshots import arrays_of, fingerprint, opening_of
from wm_jax.types import Params, Prompt
from wm_jax.world import Playable

FORMAT = 1

SESSION, EVENTS = "session.json", "events.jsonl"

MAX_FRAMES = 10_000_000
"""A file that speaks of more is not believed."""

MAX_TEXT = 1 << 30
MAX_IMAGE = 1 << 26


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RecordingInfo(_Written):
    """`session.json`: what a replay must be made with to be the same to the bit, and what it is of.

    Attributes:
      world: The fingerprint of world and weights.
      scenes: That of the first frames that the world ships with.
      device: What computed it.
      slots: Rows of the batch: another number is another program.
      keys: The world's, in its order.
      first_frame: Index of the first frame.
      is_cut: Whether there were frames before it; then it begins with a state that the session kept.
      kept_frames: How many states the session kept, about one every `kept_every` frames.
      recorded_at: Seconds since the epoch.
      frames_sha256: Of all pixels, if they were made.
    """

    format: int = FORMAT
    model: str
    world: str
    scenes: str
    wm_jax: str
    jax: str
    device: str
    slots: int
    fps: float
    width: int
    height: int
    keys: list[str]
    mouse: bool
    first_frame: int
    frames: Annotated[int, Field(gt=0, le=MAX_FRAMES)]
    is_cut: bool
    kept_frames: int
    kept_every: Annotated[int, Field(ge=1)]
    recorded_at: float
    frames_sha256: str | None = None

    @property
    def history(self) -> History:
        """As that of the session that was recorded."""
        return History(self.kept_frames, self.kept_every)


class Begin(_Written):
    """A line of `events.jsonl`: before this frame the session begins anew.

    Attributes:
      image: File of its first image.
      memory: File of what it remembers; it goes on from there.
      stream: Where its noise stands, if that is drawn on the host.
      back_to: It goes on as it was before this earlier frame.
    """

    type: Literal["begin"] = "begin"
    frame: int
    source: Source
    seed: int
    prompt: int | None = None
    image: str | None = None
    memory: str | None = None
    stream: dict[str, Any] | None = None
    back_to: int | None = None


class Frames(_Written):
    """A line of `events.jsonl`: so many frames under the same keys; the mouse was moved that far in each of them."""

    type: Literal["frames"] = "frames"
    frame: int
    n: Annotated[int, Field(gt=0)]
    held: list[str]
    mouse: tuple[float, float] | None = None


_LINE: TypeAdapter[Begin | Frames] = TypeAdapter(Annotated[Begin | Frames, Field(discriminator="type")])


@dataclasses.dataclass(frozen=True, eq=False)
class Identity:
    """What must be the same for the same frames: world, weights, first frames, program.

    Attributes:
      shapes: Of what a session remembers.
      scenes: How many first frames the world ships with.
    """

    world: Playable[Any]
    shapes: Any
    scenes: int
    slots: int
    weights_sha256: str
    scenes_sha256: str

    def info(self, events: Events, history: History, sha256: str | None, fps: float) -> RecordingInfo:
        """`session.json` of a recording made here."""
        config = self.world.config
        return RecordingInfo(
            model=config.name,
            world=self.weights_sha256,
            scenes=self.scenes_sha256,
            wm_jax=importlib.metadata.version("wm_jax"),
            jax=jax.__version__,
            device=jax.devices()[0].device_kind,
            slots=self.slots,
            fps=fps,
            width=config.image[1],
            height=config.image[0],
            keys=list(config.controls.codes),
            mouse=config.controls.has_mouse,
            first_frame=events.first,
            frames=events.frames,
            is_cut=events.is_cut,
            kept_frames=history.depth,
            kept_every=history.every,
            recorded_at=time.time(),
            frames_sha256=sha256,
        )

    def check(self, path: Path, info: RecordingInfo) -> None:
        """Passes where this world dreams what was recorded.

        Raises:
          ValueError: it does not; names both sides.
        """
        config = self.world.config
        if info.world != self.weights_sha256:
            raise ValueError(
                f"{path} is of {info.model!r} with weights {info.world[:12]}, "
                f"this is {config.name!r} with weights {self.weights_sha256[:12]}: replay it with the world it was played in"
            )
        if info.scenes != self.scenes_sha256:
            raise ValueError(
                f"{path} began with other first frames ({info.scenes[:12]}) than this world has ({self.scenes_sha256[:12]}): "
                "give the same --prompt, or the same folder"
            )


def differences(info: RecordingInfo, here: RecordingInfo) -> list[str]:
    """In what a recording was made by another build than one made here: then frames may differ in their lowest bits."""
    there = {"wm_jax": info.wm_jax, "jax": info.jax, "device": info.device}
    return [f"{name} {told}, here {getattr(here, name)}" for name, told in there.items() if told != getattr(here, name)]


def identity(world: Playable[Any], params: Params, prompts: Prompt, slots: int) -> Identity:
    """That of this world served with so many slots."""
    scenes = 0 if prompts.frames is None else int(prompts.frames.shape[0])
    weights = fingerprint(world, params)
    return Identity(world, bare_shapes(world, 1), scenes, slots, weights, scenes_sha256(prompts))


def scenes_sha256(prompts: Prompt) -> str:
    """A name for the first frames that a world ships with."""
    known = hashlib.sha256()
    for leaf in jax.tree.leaves(prompts):
        array = np.ascontiguousarray(leaf)
        known.update(f"{array.dtype}{array.shape}".encode())
        known.update(array.reshape(-1).view(np.uint8))
    return known.hexdigest()


# ---- writing


def write(path: Path, info: RecordingInfo, events: Events, made: Sequence[Path] = ()) -> None:
    """The zip; `made` are files that go in as they are: the video, and frames without loss."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        out.writestr(SESSION, info.model_dump_json(indent=2, exclude_none=True))
        files: dict[str, bytes] = {}
        lines = [line.model_dump_json(exclude_none=True) for line in _lines(events, info.keys, files)]
        out.writestr(EVENTS, "\n".join(lines) + "\n")
        for name, data in files.items():
            out.writestr(name, data)
        for file in made:
            packed = zipfile.ZIP_STORED if file.suffix == ".mp4" else zipfile.ZIP_DEFLATED
            out.write(file, file.name, packed)


def _lines(events: Events, codes: Sequence[str], files: dict[str, bytes]) -> Iterator[Begin | Frames]:
    known: dict[int, str] = {}  # one file, however often a session begins with it

    def name(kind: str, what: Any, suffix: str, data: Any) -> str | None:
        if what is None:
            return None
        if id(what) not in known:
            known[id(what)] = f"{kind}-{len(known)}{suffix}"
            files[known[id(what)]] = data()
        return known[id(what)]

    for chapter in events.chapters:
        opening = chapter.opening
        image = name("image", opening.image, ".png", lambda opening=opening: encode(opening.image, "png", 100))
        bare = dataclasses.replace(opening, image=None)
        memory = name("memory", opening.memory, ".safetensors", lambda bare=bare: save(arrays_of(bare)))
        yield Begin(
            frame=chapter.first,
            source=chapter.source,
            seed=opening.seed,
            prompt=opening.prompt,
            image=image,
            memory=memory,
            stream=None if opening.memory is None else opening.memory.stream,
            back_to=opening.back_to,
        )
        yield from _runs(chapter, codes)


def _runs(chapter: Chapter, codes: Sequence[str]) -> Iterator[Frames]:
    """One line where frame after frame is told the same."""
    told = chapter.keys.astype(np.float32)
    told = told if chapter.mouse is None else np.concatenate([told, chapter.mouse], 1)
    starts = np.flatnonzero(np.any(told[1:] != told[:-1], axis=1)) + 1
    bounds = [0, *starts.tolist(), len(told)]
    for start, stop in itertools.pairwise(bounds):
        row = chapter.rows(start, start + 1)[0]
        held = [code for code, is_held in zip(codes, row.keys, strict=True) if is_held]
        moved = row.mouse if row.mouse is not None and any(row.mouse) else None
        yield Frames(frame=chapter.first + start, n=stop - start, held=held, mouse=moved)


# ---- reading


def read(path: Path, known: Identity) -> tuple[RecordingInfo, Events]:
    """A recording of this world, for a replay.

    Raises:
      ValueError: the file is broken, of another world, or of another version.
    """
    with _opened(path) as file:
        info = _info(file)
        known.check(path, info)
        return info, _events(file, info, known)


def read_info(path: Path) -> RecordingInfo:
    """What a recording is of.

    Raises:
      ValueError: the file is broken, or of another version.
    """
    with _opened(path) as file:
        return _info(file)


BROKEN = (
    OSError, EOFError, KeyError, RuntimeError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error,
    json.JSONDecodeError, SafetensorError, ValidationError,
)  # fmt: skip
"""What reading a file that is no recording ends in."""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as file:
            yield file
    except BROKEN as error:
        text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ValueError(f"{path} is no readable recording: {text}") from None


def _info(file: zipfile.ZipFile) -> RecordingInfo:
    told = json.loads(_bytes(file, SESSION, MAX_IMAGE))
    version = told.get("format") if isinstance(told, dict) else None
    if version != FORMAT:
        raise ValueError(f"{file.filename} is a recording of version {version}, this program reads version {FORMAT}")
    return RecordingInfo.model_validate(told)


def _bytes(file: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """One file of the zip, which may lie about its size."""
    with file.open(name) as opened:
        data = opened.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{file.filename}: {name} is larger than {limit} bytes")
    return data


def _events(file: zipfile.ZipFile, info: RecordingInfo, known: Identity) -> Events:
    chapters: list[tuple[Begin, list[Frames]]] = []
    at = info.first_frame
    for text in io.BytesIO(_bytes(file, EVENTS, MAX_TEXT)):
        line = _LINE.validate_json(text)
        if line.frame != at or (isinstance(line, Frames) and not chapters):
            raise ValueError(f"{file.filename}: {EVENTS} speaks of frame {line.frame} where {at} is next")
        if isinstance(line, Begin):
            chapters.append((line, []))
        else:
            chapters[-1][1].append(line)
            at += line.n
        if at > info.first_frame + info.frames:
            break
    if at != info.first_frame + info.frames or not all(runs for _, runs in chapters):
        raise ValueError(f"{file.filename}: {EVENTS} has {at - info.first_frame} frames, {SESSION} says {info.frames}")
    if chapters[0][0].back_to is not None:
        raise ValueError(f"{file.filename}: it goes back to a frame before its first one")
    reader = _Reader(file, known)
    return Events([reader.chapter(begin, runs) for begin, runs in chapters], info.is_cut)


class _Reader:
    """Lines -> chapters; a file that is named often is read once."""

    def __init__(self, file: zipfile.ZipFile, known: Identity) -> None:
        self._file = file
        self._known = known
        self._read: dict[str, Any] = {}
        self._columns = {code: index for index, code in enumerate(known.world.config.controls.codes)}

    def chapter(self, begin: Begin, runs: list[Frames]) -> Chapter:
        counts = [run.n for run in runs]
        keys = np.zeros((len(runs), len(self._columns)), bool)
        for row, run in zip(keys, runs, strict=True):
            row[[self._columns[code] for code in run.held]] = True
        mouse = None
        if self._known.world.config.controls.has_mouse:
            mouse = np.repeat(np.array([run.mouse or (0.0, 0.0) for run in runs], np.float32), counts, 0)
        return Chapter(begin.frame, begin.source, self._opening(begin), np.repeat(keys, counts, 0), mouse)

    def _opening(self, begin: Begin) -> Opening:
        arrays: dict[str, np.ndarray] = {}
        if begin.image is not None:
            arrays["image"] = self._once(begin.image, self._image)
        if begin.memory is not None:
            arrays |= self._once(begin.memory, self._memory)
        bare = Opening(begin.seed, begin.prompt, back_to=begin.back_to)
        image_shape = (*self._known.world.config.image, 3)
        return opening_of(arrays, bare, begin.stream, self._known.shapes, image_shape, self._known.scenes)

    def _once(self, name: str, read_it: Any) -> Any:
        if name not in self._read:
            self._read[name] = read_it(name)
        return self._read[name]

    def _image(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        return decode_image(_bytes(self._file, name, MAX_IMAGE), self._known.world.config.image)

    def _memory(self, name: str) -> dict[str, np.ndarray]:
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self._known.shapes))
        with tempfile.NamedTemporaryFile() as unpacked:  # only from a file it reads bfloat16
            unpacked.write(_bytes(self._file, name, size + MAX_IMAGE))
            unpacked.flush()
            with safe_open(unpacked.name, framework="numpy") as file:
                return {key: file.get_tensor(key) for key in list(file.keys())}
