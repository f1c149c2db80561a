"""A matrix multiplication with its weights: float32 at rest, computed in the dtype of its input."""

import jax
import jax.numpy as jnp
from flax import nnx


class Linear(nnx.Module):
    """`x @ kernel (+ bias)`; kernel drawn with standard deviation `scale / sqrt(inputs)`, zero where scale is 0."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, *, scale: float = 1.0, use_bias: bool = False):
        draw = jax.random.normal(rngs.params(), (inputs, outputs), jnp.float32)
        self.kernel = nnx.Param(draw * jnp.float32(scale * inputs**-0.5))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if use_bias else None

    def __call__(self, x):
        # As one matrix: XLA on a CPU contracts three leading axes of a gradient at half the speed of one.
        kernel = self.kernel[...].astype(x.dtype)
        y = (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)
