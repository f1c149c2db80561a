"""One layer: attend (who meets whom is given), then the gated MLP, both modulated."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pallas_kernels import norm_modulate
from wm_jax.dynamics.config import DynamicsConfig
from wm_jax.nn.attention import AttentionProjections
from wm_jax.nn.mlp import SwiGLU

Attend = Callable[[Any, Any, Any], Any]


class Block(nnx.Module):
    """Weights of one layer; the same shapes whatever the kind, so that all layers stack."""

    def __init__(self, config: DynamicsConfig, rngs: nnx.Rngs):
        out_scale = (2 * config.depth) ** -0.5
        sizes = (config.width, config.heads, config.kv_heads, config.head_size)
        self.attention = AttentionProjections(*sizes, rngs, out_scale=out_scale)
        self.mlp = SwiGLU(config.width, config.hidden, rngs, out_scale=out_scale)
        self.modulation = nnx.Param(jnp.zeros((6 * config.width,), jnp.float32))

    def __call__(self, x: Float[Array, "b t s d"], modulation: Float[Array, "#b t m"], attend: Attend):
        """The layer's output, and its keys and values `[b t s g k]` before any rotation."""
        rows = modulation + self.modulation[...].astype(x.dtype)
        shift, scale, open_, shift_mlp, scale_mlp, open_mlp = jnp.split(rows, 6, axis=-1)
        one = jnp.ones((), x.dtype)  # gates are open at initialisation: an untrained block is a plain pre-norm block
        h, x = norm_modulate(x, shift, scale)
        q, k, v = self.attention.project(h)
        h, x = norm_modulate(x, shift_mlp, scale_mlp, self.attention.merge(attend(q, k, v)), one + open_)
        x = x + self.mlp(h) * (one + open_mlp)[:, :, None]
        return x, k, v
