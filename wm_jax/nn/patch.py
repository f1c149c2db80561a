"""Moving pixels between the grid and the channels; exact in both directions."""

from einops import rearrange
from jaxtyping import Array, Shaped


def space_to_depth(x: Shaped[Array, "*b h w c"], size: int):
    """`[... h w c]` -> `[... h/size w/size size*size*c]`."""
    return rearrange(x, "... (h p) (w q) c -> ... h w (p q c)", p=size, q=size)


def depth_to_space(x: Shaped[Array, "*b y x c"], size: int):
    """`[... y x size*size*c]` -> `[... y*size x*size c]`."""
    return rearrange(x, "... h w (p q c) -> ... (h p) (w q) c", p=size, q=size)
