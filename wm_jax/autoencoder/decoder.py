"""Latents to frames, streaming: every block also sees its own input of the frame before, and nothing older."""

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wm_jax.nn.conv import Conv3x3
from wm_jax.nn.linear import Linear
from wm_jax.nn.patch import depth_to_space


@flax.struct.dataclass
class DecoderState:
    """What the streaming decoder carries over.

    Attributes:
      memory: For each block, its input at the last frame, `[b y x c]`; zeros before the first.
    """

    memory: dict[str, Float[Array, "b y x c"]]


class MemoryBlock(nnx.Module):
    """A residual block whose first convolution sees the frame before as well. Source: TAEHV's memory blocks (idea)."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.first = Conv3x3(2 * width, width, rngs)
        self.second = Conv3x3(width, width, rngs, scale=0.3)

    def __call__(self, x, before):
        both = jnp.concatenate([x, before], axis=-1)
        return x + self.second(jax.nn.silu(self.first(jax.nn.silu(both))))


class Up(nnx.Module):
    """Double the grid: a 1 x 1 convolution and depth-to-space, the repeated input added as a shortcut."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.mix = Linear(inputs, 4 * outputs, rngs, use_bias=True)
        self.outputs = outputs

    def __call__(self, x):
        repeated = jnp.repeat(jnp.repeat(x[..., : self.outputs], 2, axis=-3), 2, axis=-2)
        return depth_to_space(self.mix(x), 2) + repeated


class Decoder(nnx.Module):
    """Latents `[b t y x c]` -> frames `[b t h w 3]`, about [-1, 1], not clipped."""

    def __init__(self, patch: int, widths: tuple[int, ...], blocks: tuple[int, ...], channels: int, rngs: nnx.Rngs):
        self.patch = patch
        self.embed = Linear(channels, widths[-1], rngs, use_bias=True)
        layers: dict[str, nnx.Module] = {}
        for i in reversed(range(len(widths))):
            layers.update({f"stage{i}_block{j}": MemoryBlock(widths[i], rngs) for j in range(blocks[i])})
            if i:
                layers[f"stage{i}_up"] = Up(widths[i], widths[i - 1], rngs)
        self.names = tuple(layers)
        self.layers = nnx.Dict(layers)
        self.head = Linear(widths[0], 3 * patch * patch, rngs, use_bias=True)

    def __call__(self, latents: Float[Array, "b t y x c"], state: DecoderState):
        """Frames and the state after the last of them; one call with t frames equals t calls with one."""
        x, memory = self.embed(latents), {}
        for name in self.names:
            if name in state.memory:
                before = jnp.concatenate([state.memory[name][:, None].astype(x.dtype), x[:, :-1]], axis=1)
                memory[name] = x[:, -1]
                x = self.layers[name](x, before)
            else:
                x = self.layers[name](x)
        return depth_to_space(self.head(x), self.patch), DecoderState(memory)
