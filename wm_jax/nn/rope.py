"""Rotary positions: over frames (one axis) and over the latent grid (two axes)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

PERIOD = 4096
"""Frames after which `rotate_frames` returns to where it was."""


def rotate(x: Float[Array, "*b n k"], position: Num[Array, "*#b"], base: float) -> Float[Array, "*b n k"]:
    """`x` turned by `position`, channel pair (i, i + k/2) at rate `base ** (-2i/k)`; angles in float32.

    Source: RoFormer, section 3.2.
    """
    angle = position.astype(jnp.float32)[..., None, None] * jnp.asarray(_rates(x.shape[-1] // 2, base))
    return _turned(x, angle)


def rotate_frames(x: Float[Array, "*b n k"], frame: Int[Array, "*#b"], base: float) -> Float[Array, "*b n k"]:
    """`rotate` by frame ids, each rate rounded to a whole number of turns in `PERIOD` frames.

    Ids that differ by a multiple of `PERIOD` turn alike to the bit, and the angle of a large id is as exact as that of a
    small one: a key may be stored turned by its id, for ever.
    """
    turns = np.maximum(np.round(_rates(x.shape[-1] // 2, base) * PERIOD / (2 * np.pi)), 1).astype(np.int32)
    step = ((frame % PERIOD)[..., None, None] * jnp.asarray(turns)) % PERIOD
    return _turned(x, step.astype(jnp.float32) * jnp.float32(2 * np.pi / PERIOD))


def _rates(half: int, base: float) -> np.ndarray:
    return (base ** (-np.arange(half, dtype=np.float32) / half)).astype(np.float32)


def _turned(x: Array, angle: Array) -> Array:
    half = x.shape[-1] // 2
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def rotate_grid(x: Float[Array, "*b s n k"], height: int, width: int, base: float) -> Float[Array, "*b s n k"]:
    """The first `height * width` tokens turned by their place on the grid, the rest (registers, actions) left alone.

    Half of the channels turn with y, half with x.
    """
    grid = height * width
    half = x.shape[-1] // 2
    y = jnp.asarray(np.repeat(np.arange(height, dtype=np.float32), width))
    col = jnp.asarray(np.tile(np.arange(width, dtype=np.float32), height))
    tokens = x[..., :grid, :, :]
    turned = jnp.concatenate([rotate(tokens[..., :half], y, base), rotate(tokens[..., half:], col, base)], axis=-1)
    return jnp.concatenate([turned, x[..., grid:, :, :]], axis=-3)
