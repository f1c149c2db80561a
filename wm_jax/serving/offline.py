"""A rollout without a server: a file of keys in, a video out."""

from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import jax
import numpy as np
from jaxtyping import Bool

from wm_jax.serving.codec import Mp4Writer
from wm_jax.types import Controls, ControlSpace, Params, Prompt
from wm_jax.world import World, rollout, start
from wm_jax.world.step import pick_prompt

CHUNK_FRAMES = 32


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
    state = start(world, params, pick_prompt(prompts, seed), jax.random.key(seed))
    padded = np.concatenate([keys, np.zeros((-len(keys) % CHUNK_FRAMES, keys.shape[1]), bool)])
    out.parent.mkdir(parents=True, exist_ok=True)
    with Mp4Writer(out, world.config.fps, world.config.image) as video:
        for first in range(0, len(keys), CHUNK_FRAMES):
            chunk = padded[None, first : first + CHUNK_FRAMES]
            state, frames = rollout(world, params, state, Controls(chunk))
            for frame in np.asarray(frames)[0, : len(keys) - first]:
                video.write(frame)
            report(min(first + CHUNK_FRAMES, len(keys)), len(keys))
