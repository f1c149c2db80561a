"""adaLN: shift and scale what goes into a sub-block, gate what comes out."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from wm_jax.nn.norm import rms_norm


def modulate(x: Float[Array, "b t s d"], shift: Float[Array, "#b t d"], scale: Float[Array, "#b t d"]):
    """`(1 + scale) * rms(x) + shift`, one row of modulation a frame, shared by its tokens."""
    one = jnp.ones((), x.dtype)
    return rms_norm(x) * (one + scale[:, :, None]) + shift[:, :, None]


def gate(x: Float[Array, "b t s d"], by: Float[Array, "#b t d"]):
    """`(1 + by) * x`: open at initialisation, so that an untrained block is a plain pre-norm block."""
    return x * (jnp.ones((), x.dtype) + by[:, :, None])
