"""How numbers are rounded to 8 bits: each row or channel in steps of its own largest magnitude."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Shaped

LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}
"""The largest magnitude that each type of 8 bits is used for; int8's -128 is not, so that signs are alike."""
TINY = 1e-30
"""Rows that stay below this are rounded as if it were their largest magnitude: no scale is zero, none has an infinite inverse."""


class QuantizedWeight(NamedTuple):
    """A weight of 8 bits: `values * scale` is what was quantised, to half a step.

    Attributes:
      values: int8 or float8_e4m3fn.
      scale: What one step of each output channel is worth; never zero.
    """

    values: Shaped[Array, "i o"]
    scale: Float32[Array, "o"]


def quantize(weight: Float[Array, "i o"], dtype: Literal["int8", "float8_e4m3fn"] = "int8") -> QuantizedWeight:
    """The weight in 8 bits, each output channel by its own largest magnitude; int8 rounds half to even.

    Raises:
      ValueError: there is no such type of 8 bits.
    """
    check_dtype(dtype)
    values, scale = in_steps(weight, 0, dtype)
    return QuantizedWeight(values, scale[0])


def check_dtype(dtype: str) -> None:
    """Refuses what a weight cannot be kept in.

    Raises:
      ValueError: names what was asked for and what there is.
    """
    if dtype not in LARGEST:
        raise ValueError(f"quantized weights are of {' or '.join(LARGEST)}, not of {dtype}")


def in_steps(a: Any, axis: int, dtype: str) -> tuple[Any, Any]:
    """`a` in 8 bits, and what a step is worth (float32, the axis kept): one scale for all that lies along the axis."""
    a = a.astype(jnp.float32)
    largest = jnp.maximum(jnp.max(jnp.abs(a), axis=axis, keepdims=True), TINY)
    # One division a row, products else: divisions are slow on vector units, and XLA turns those by a constant into products.
    steps = a * (LARGEST[dtype] / largest)
    return (jnp.round(steps) if dtype == "int8" else steps).astype(dtype), largest * (1.0 / LARGEST[dtype])


def products(steps: Any, values: Any) -> Any:
    """`[m i] @ [i o]` of two arrays of 8 bits, in int32 or float32."""
    kept = jnp.int32 if values.dtype == jnp.int8 else jnp.float32
    return lax.dot_general(steps, values, (((1,), (0,)), ((), ())), preferred_element_type=kept)


def scaled(sums: Any, row_scale: Any, channel_scale: Any) -> Any:
    """What the sums are worth, `[m o]` in float32; `row_scale` is `[m 1]`, `channel_scale` `[1 o]`."""
    return sums.astype(jnp.float32) * row_scale * channel_scale
