"""The gated feed-forward layer."""

import jax
import jax.numpy as jnp
from flax import nnx

from wm_jax.nn.linear import Linear


class SwiGLU(nnx.Module):
    """`down(silu(gate(x)) * up(x))`, gate and up in one product. Source: GLU Variants Improve Transformer."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs, *, out_scale: float):
        self.gate_up = Linear(width, 2 * hidden, rngs)
        self.down = Linear(hidden, width, rngs, scale=out_scale)

    def __call__(self, x):
        gate, up = jnp.split(self.gate_up(x), 2, axis=-1)
        return self.down(jax.nn.silu(gate) * up)
