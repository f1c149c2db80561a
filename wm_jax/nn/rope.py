"""Rotary positions: over frames (one axis) and over the latent grid (two axes)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num


def rotate(x: Float[Array, "*b n k"], position: Num[Array, "*#b"], base: float) -> Float[Array, "*b n k"]:
    """`x` turned by `position`, channel pair (i, i + k/2) at rate `base ** (-2i/k)`; angles in float32.

    Source: RoFormer, section 3.2.
    """
    half = x.shape[-1] // 2
    rate = jnp.asarray(base ** (-np.arange(half, dtype=np.float32) / half), jnp.float32)
    angle = position.astype(jnp.float32)[..., None, None] * rate
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
