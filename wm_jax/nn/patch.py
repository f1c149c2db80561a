"""Moving pixels between the grid and the channels; exact in both directions."""

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Shaped


def space_to_depth(x: Shaped[Array, "*b h w c"], size: int):
    """`[... h w c]` -> `[... h/size w/size size*size*c]`."""
    return rearrange(x, "... (h p) (w q) c -> ... h w (p q c)", p=size, q=size)


def neighbourhoods(x: Shaped[Array, "*b h w c"], size: int, halo: int):
    """Each cell of `size` pixels a side with `halo` pixels around it, zeros beyond the edge:
    `[... h w c]` -> `[... h/size w/size (size + 2 halo)**2 * c]`."""
    height, width = x.shape[-3] // size, x.shape[-2] // size
    wide = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(halo, halo), (halo, halo), (0, 0)])
    reach = size + 2 * halo
    shifts = [
        wide[..., i : i + size * (height - 1) + 1 : size, j : j + size * (width - 1) + 1 : size, :]
        for i in range(reach)
        for j in range(reach)
    ]
    return jnp.concatenate(shifts, axis=-1)


def depth_to_space(x: Shaped[Array, "*b y x c"], size: int):
    """`[... y x size*size*c]` -> `[... y*size x*size c]`."""
    return rearrange(x, "... h w (p q c) -> ... (h p) (w q) c", p=size, q=size)
