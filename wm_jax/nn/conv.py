"""A 3 x 3 convolution over the last three axes `[... h w c]`, any number of leading axes."""

import jax
import jax.numpy as jnp
from flax import nnx


class Conv3x3(nnx.Module):
    """Zero-padded, stride 1; kernel drawn with standard deviation `scale / sqrt(9 * inputs)`."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, *, scale: float = 1.0):
        draw = jax.random.normal(rngs.params(), (3, 3, inputs, outputs), jnp.float32)
        self.kernel = nnx.Param(draw * jnp.float32(scale * (9 * inputs) ** -0.5))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x):
        flat = x.reshape(-1, *x.shape[-3:])
        kernel = self.kernel[...].astype(x.dtype)
        y = jax.lax.conv_general_dilated(flat, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (y + self.bias[...].astype(x.dtype)).reshape(*x.shape[:-1], -1)
