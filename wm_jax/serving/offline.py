"""A rollout without a server: a file of keys in, a video out."""

from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import jax
import numpy as np
from jaxtyping import Bool, UInt8

from wm_jax.export.artifact import NEEDS_GIVEN_NOISE
from wm_jax.export.programs import playing, rollout_program
from wm_jax.serving.codec import Mp4Writer
from wm_jax.serving.noise import HostNoise
from wm_jax.types import Controls, ControlSpace, Params, Prompt
from wm_jax.world import World, rollout, start
from wm_jax.world.step import pick_prompt

CHUNK_FRAMES = 32

Dream = Callable[[Bool[np.ndarray, "t keys"]], UInt8[np.ndarray, "t h w 3"]]
"""The next `CHUNK_FRAMES` frames under these keys."""


def read_keys(path: Path, controls: ControlSpace) -> Bool[np.ndarray, "t keys"]:
    """The keys held in each frame, from the array `keys` (bool `[t keys]`) of an .npz file.

    Raises:
      ValueError: no such file, no such array, or another number of keys than the world has.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays.files) if hasattr(arrays, "files") else []
            keys = np.asarray(arrays["keys"]) if "keys" in names else None
    # TypeError: an .npy file, one array without a name.
    except (OSError, ValueError, BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no readable .npz file: {error}") from None
    if keys is None:
        raise ValueError(
            f"{path} holds {', '.join(names) or 'nothing'}, a rollout needs an array `keys`: bool [t keys]"
        )
    wanted = len(controls.keys)
    if keys.ndim != 2 or keys.shape[1] != wanted:
        raise ValueError(
            f"{path}: keys is {list(keys.shape)}, this world wants [t, {wanted}]: {', '.join(controls.codes)}"
        )
    if not len(keys):
        raise ValueError(f"{path}: keys has no frames")
    if keys.dtype.kind not in "biuf" or not np.isin(keys, (0, 1)).all():
        raise ValueError(f"{path}: keys is {keys.dtype}; a key is held or not: bool, or 0 and 1 only")
    return keys.astype(bool)


def write_rollout(
    world: World,
    params: Params,
    prompts: Prompt,
    keys: Bool[np.ndarray, "t keys"],
    out: Path,
    seed: int,
    report: Callable[[int, int], None],
) -> None:
    """Dreams under these keys and writes an MP4; tells `report` how many frames of how many are done.

    The same seed in a session dreams the same frames.
    """
    begin = dream_of_given_noise if jax.default_backend() in NEEDS_GIVEN_NOISE else dream_of_own_noise
    dream = begin(world, params, pick_prompt(prompts, seed), seed)
    padded = np.concatenate([keys, np.zeros((-len(keys) % CHUNK_FRAMES, keys.shape[1]), bool)])
    out.parent.mkdir(parents=True, exist_ok=True)
    with Mp4Writer(out, world.config.fps, world.config.image) as video:
        for first in range(0, len(keys), CHUNK_FRAMES):
            for frame in dream(padded[first : first + CHUNK_FRAMES])[: len(keys) - first]:
                video.write(frame)
            report(min(first + CHUNK_FRAMES, len(keys)), len(keys))


def dream_of_own_noise(world: World, params: Params, prompt: Prompt, seed: int) -> Dream:
    """A session whose noise the device draws."""
    state = start(world, params, prompt, jax.random.key(seed))

    def dream(keys: Bool[np.ndarray, "t keys"]) -> UInt8[np.ndarray, "t h w 3"]:
        nonlocal state
        state, frames = rollout(world, params, state, Controls(keys[None]))
        return np.asarray(frames)[0]

    return dream


def dream_of_given_noise(world: World, params: Params, prompt: Prompt, seed: int) -> Dream:
    """A session whose noise is drawn here, as a server for such a device draws it."""
    noise, active = HostNoise(1, world.config.latent_shape), np.ones(1, bool)
    drawn = noise.seat(0, seed, 0 if prompt.frames is None else prompt.frames.shape[1])
    params = world.for_playing(params)
    state = playing(world, 1, prompt, is_noise_given=True).start.function(params, prompt, drawn)
    rolling = rollout_program(world, 1, CHUNK_FRAMES).function

    def dream(keys: Bool[np.ndarray, "t keys"]) -> UInt8[np.ndarray, "t h w 3"]:
        nonlocal state
        given = jax.tree.map(lambda *frames: np.stack(frames), *(noise.draw(active) for _ in keys))
        state, frames = rolling(params, state, keys[:, None], active, given)
        return np.asarray(frames)[:, 0]

    return dream
