"""Frames to latents, each frame by itself: residual convolutions between space-to-depth steps."""

import jax
import jax.numpy as jnp
from einops import reduce
from flax import nnx
from jaxtyping import Array, Float

from wm_jax.nn.conv import Conv3x3
from wm_jax.nn.linear import Linear
from wm_jax.nn.patch import space_to_depth


class ResidualBlock(nnx.Module):
    """`x + conv(silu(conv(silu(x))))`, the identity at initialisation but for a small branch."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.first = Conv3x3(width, width, rngs)
        self.second = Conv3x3(width, width, rngs, scale=0.3)

    def __call__(self, x):
        return x + self.second(jax.nn.silu(self.first(jax.nn.silu(x))))


class Down(nnx.Module):
    """Half the grid: space-to-depth and a 1 x 1 convolution, the averaged input added as a shortcut."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.mix = Linear(4 * inputs, outputs, rngs, use_bias=True)
        self.repeats = outputs // inputs

    def __call__(self, x):
        average = reduce(x, "... (y p) (x q) c -> ... y x c", "mean", p=2, q=2)
        return self.mix(space_to_depth(x, 2)) + jnp.concatenate([average] * self.repeats, axis=-1)


class Encoder(nnx.Module):
    """`[b t h w 3]` in [-1, 1] -> raw latents `[b t y x c]`, softly clamped to (-3, 3)."""

    def __init__(self, patch: int, widths: tuple[int, ...], blocks: tuple[int, ...], channels: int, rngs: nnx.Rngs):
        self.patch = patch
        self.embed = Linear(3 * patch * patch, widths[0], rngs, use_bias=True)
        layers: dict[str, nnx.Module] = {}
        for i, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
            if i:
                layers[f"stage{i}_down"] = Down(widths[i - 1], width, rngs)
            layers.update({f"stage{i}_block{j}": ResidualBlock(width, rngs) for j in range(depth)})
        self.names = tuple(layers)
        self.layers = nnx.Dict(layers)
        self.head = Linear(widths[-1], channels, rngs, use_bias=True)

    def __call__(self, frames: Float[Array, "b t h w 3"]) -> Float[Array, "b t y x c"]:
        x = self.embed(space_to_depth(frames, self.patch))
        for name in self.names:
            x = self.layers[name](x)
        raw = self.head(x)
        return jnp.tanh(raw / 3.0) * 3.0
