"""Root-mean-square normalisation, with and without a learned gain."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def rms_norm(x: Float[Array, "*b d"], epsilon: float = 1e-6) -> Float[Array, "*b d"]:
    """`x` at unit root mean square over the last axis, computed in float32."""
    wide = x.astype(jnp.float32)
    scale = jnp.reciprocal(jnp.sqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon))
    return (wide * scale).astype(x.dtype)


class RMSNorm(nnx.Module):
    """`rms_norm` with a learned gain per channel."""

    def __init__(self, size: int):
        self.gain = nnx.Param(jnp.ones((size,), jnp.float32))

    def __call__(self, x):
        return rms_norm(x) * self.gain[...].astype(x.dtype)
