"""Without a server: a file of controls in, or a recording, and a video out."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np
from jaxtyping import UInt8

from wm_jax.export.artifact import NEEDS_GIVEN_NOISE, Artifact
from wm_jax.export.programs import playing, rollout_program
from wm_jax.serving.batcher import Batcher, Delivery, show_all
from wm_jax.serving.codec import Mp4Writer
from wm_jax.serving.engine import Engine, Scenes
from wm_jax.serving.events import Events
from wm_jax.serving.noise import HostNoise
from wm_jax.serving.protocol import Refusal
from wm_jax.serving.real import Arcade
from wm_jax.serving.recording import RecordingInfo
from wm_jax.serving.replay import Film, Report, film, film_worker, frames_of
from wm_jax.types import Controls, ControlSpace, Params, Prompt
from wm_jax.world import Playable, rollout, start
from wm_jax.world.step import pick_prompt

CHUNK_FRAMES = 8

Dream = Callable[[Controls], UInt8[np.ndarray, "t h w 3"]]
"""The next `CHUNK_FRAMES` frames under these controls `[t ...]`."""


def read_controls(path: Path, space: ControlSpace) -> Controls:
    """What is done in each frame, from an .npz file: `keys`, bool `[t keys]`, and where the world has a mouse `mouse`, `[t 2]`,
    in frame heights right and down (still where it is left out).

    Raises:
      ValueError: no such file, no keys in it, or arrays of another size or kind than the world's.
    """
    arrays = _arrays(path)
    if "keys" not in arrays:
        raise ValueError(
            f"{path} holds {', '.join(arrays) or 'nothing'}, a rollout needs an array `keys`: bool [t keys]"
        )
    keys, wanted = arrays["keys"], len(space.keys)
    if keys.ndim != 2 or keys.shape[1] != wanted:
        raise ValueError(
            f"{path}: keys is {list(keys.shape)}, this world wants [t, {wanted}]: {', '.join(space.codes)}"
        )
    if not len(keys):
        raise ValueError(f"{path}: keys has no frames")
    if keys.dtype.kind not in "biuf" or not np.isin(keys, (0, 1)).all():
        raise ValueError(f"{path}: keys is {keys.dtype}; a key is held or not: bool, or 0 and 1 only")
    return Controls(keys.astype(bool), _mouse(path, arrays, space, len(keys)))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = [name for name in ("keys", "mouse") if name in arrays.files]
            return {name: np.asarray(arrays[name]) for name in names or arrays.files}
    # TypeError and AttributeError: an .npy file, one array without a name.
    except (OSError, ValueError, BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no readable .npz file: {error}") from None


def _mouse(path: Path, arrays: Mapping[str, np.ndarray], space: ControlSpace, frames: int) -> np.ndarray | None:
    if "mouse" not in arrays:
        return np.zeros((frames, 2), np.float32) if space.has_mouse else None
    mouse = arrays["mouse"]
    if not space.has_mouse:
        raise ValueError(f"{path} has an array `mouse`, this world listens to none")
    if mouse.shape != (frames, 2) or mouse.dtype.kind not in "iuf" or not np.isfinite(mouse).all():
        raise ValueError(f"{path}: mouse is {mouse.dtype}{list(mouse.shape)}, it must be [{frames}, 2] finite numbers")
    return mouse.astype(np.float32)


def write_rollout(
    world: Playable[Any],
    params: Params,
    prompts: Prompt,
    controls: Controls,
    out: Path,
    seed: int,
    report: Callable[[int, int], None],
) -> None:
    """Dreams under these controls `[t ...]` and writes an MP4; tells `report` how many frames of how many are done.

    The same seed in a session dreams the same frames.
    """
    begin = dream_of_given_noise if jax.default_backend() in NEEDS_GIVEN_NOISE else dream_of_own_noise
    dream, count = begin(world, params, pick_prompt(prompts, seed), seed), len(controls.keys)
    out.parent.mkdir(parents=True, exist_ok=True)
    with Mp4Writer(out, world.config.fps, world.config.image) as video:
        for first in range(0, count, CHUNK_FRAMES):
            for frame in dream(_chunk(controls, first))[: count - first]:
                video.write(frame)
            report(min(first + CHUNK_FRAMES, count), count)


def _chunk(controls: Controls, first: int) -> Controls:
    """A whole chunk, nothing done in what is beyond the last frame."""

    def cut(leaf: Any) -> np.ndarray:
        part = leaf[first : first + CHUNK_FRAMES]
        return np.concatenate([part, np.zeros((CHUNK_FRAMES - len(part), *part.shape[1:]), part.dtype)])

    return jax.tree.map(cut, controls)


def dream_of_own_noise(world: Playable[Any], params: Params, prompt: Prompt, seed: int) -> Dream:
    """A session whose noise the device draws."""
    params = world.for_playing(params)
    state = start(world, params, prompt, jax.random.key(seed))

    def dream(controls: Controls) -> UInt8[np.ndarray, "t h w 3"]:
        nonlocal state
        state, frames = rollout(world, params, state, jax.tree.map(lambda leaf: leaf[None], controls))
        return np.asarray(frames)[0]

    return dream


def dream_of_given_noise(world: Playable[Any], params: Params, prompt: Prompt, seed: int) -> Dream:
    """A session whose noise is drawn here, as a server for such a device draws it."""
    noise, active = HostNoise(world, 1), np.ones(1, bool)
    params = world.for_playing(params)
    begin = playing(world, 1, prompt, is_noise_given=True).start.function
    state = begin(params, prompt, noise.seat(0, seed, prompt))
    rolling = rollout_program(world, 1, CHUNK_FRAMES).function

    def dream(controls: Controls) -> UInt8[np.ndarray, "t h w 3"]:
        nonlocal state
        rows = jax.tree.map(lambda leaf: leaf[:, None], controls)
        given = np.stack([noise.draw(range(1), active) for _ in controls.keys])
        state, frames = rolling(params, state, rows.keys, rows.mouse, active, given)
        return np.asarray(frames)[:, 0]

    return dream


def write_replay(
    world: Playable[Any],
    params: Params,
    prompts: Prompt,
    recorded: tuple[RecordingInfo, Events],
    out: Path,
    lossless: Path | None,
    report: Report,
    artifact: Artifact | None = None,
) -> str:
    """Makes the frames of a recording again and writes an MP4, and where asked all pixels as .npy; their SHA-256.

    By the program of the server that played them, with as many slots: another one may round otherwise.

    Raises:
      ValueError: the artifact is for another number of slots, or the frames cannot be made here.
    """
    info, events = recorded
    if artifact is not None and artifact.manifest.slots != info.slots:
        raise ValueError(
            f"{artifact.folder} was made for {artifact.manifest.slots} slots, the recording with {info.slots}: "
            "replay it with the world's own folder"
        )
    engine = Engine(world, params, Scenes(prompts), info.slots, artifact)
    out.parent.mkdir(parents=True, exist_ok=True)
    reel = Film(out, lossless, info.fps, world.config.image, events.frames)
    try:
        return asyncio.run(_replay(engine, info, events, reel, report))
    except Refusal as refusal:
        raise ValueError(refusal.message) from None


async def _replay(engine: Engine, info: RecordingInfo, events: Events, reel: Film, report: Report) -> str:
    loop = asyncio.get_running_loop()

    def deliver(delivery: Delivery) -> None:
        loop.call_soon_threadsafe(show_all, delivery)

    config = engine.world.config
    batcher = Batcher(engine, Arcade(config.env, deliver), info.fps, deliver)
    batcher.begin()
    try:
        with film_worker() as worker:
            frames = frames_of(events, config.controls, info.fps, batcher, info.history)
            return await film(frames, reel, worker, report)
    finally:
        await asyncio.to_thread(batcher.stop)
