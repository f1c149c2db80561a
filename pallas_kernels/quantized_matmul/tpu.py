"""quantized_matmul on a TPU: a block's rows are rounded once, in its memory, and meet all columns; no copy of x in 8 bits is made."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.block_sizes import sizes_of
from pallas_kernels.implementation import compiled_for
from pallas_kernels.quantized_matmul.quantize import in_steps, products, scaled

NEEDS_MEASUREMENT = True
"""No TPU has shown yet that this is faster than XLA: `auto` takes it where `tuned.json` says so of the device."""
ROW_TILE, LANES = 32, 128
BLOCK = 2**21
"""Bytes of a block of rows or columns, so that two of each fit the 16 MiB of vector memory that a kernel gets."""
MISSING = {"int8": ("TPU v4", "TPU7x"), "float8_e4m3fn": ("TPU v4", "TPU v5", "TPU v6")}
"""The TPUs whose matrix unit has no product of this type (`TpuInfo.is_matmul_supported` of JAX 0.12). Mosaic may compile one by
another: int8 on TPU7x by bfloat16, summed in float32, which is not exact."""


def refusal(x: Any, weight: Any) -> str | None:
    """Why these arguments are not for this kernel; None where they are."""
    dtype, kind = weight.values.dtype.name, compiled_for().device_kind
    if kind.startswith(MISSING[dtype]):
        return f"{kind} has no products of {dtype}"
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        return f"x is {x.dtype}, it needs bfloat16 or float32"
    if x.shape[1] * LANES > BLOCK:
        return f"rows have {x.shape[1]} channels, it needs at most {BLOCK // LANES}"
    return None


def quantized_matmul(x: Any, weight: Any, *, interpret: Any = False) -> Any:
    (m, i), o, dtype = x.shape, weight.values.shape[1], weight.values.dtype
    row = _even(m, min(sizes_of("quantized_matmul").rows, BLOCK // (i * x.dtype.itemsize)), ROW_TILE)
    column = _even(o, min(1024, BLOCK // i), LANES)
    grid = (pl.cdiv(m, row), pl.cdiv(o, column))

    def kernel(x, values, scale, out, steps, row_scale):
        @pl.when(pl.program_id(1) == 0)
        def _():
            steps[...], row_scale[...] = in_steps(x[...], 1, dtype.name)

        out[...] = scaled(products(steps[...], values[...]), row_scale[...], scale[...]).astype(out.dtype)

    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[
            pl.BlockSpec((row, i), lambda r, c: (r, 0)),
            pl.BlockSpec((i, column), lambda r, c: (0, c)),
            pl.BlockSpec((1, column), lambda r, c: (0, c)),
        ],
        out_specs=pl.BlockSpec((row, column), lambda r, c: (r, c)),
        out_shape=jax.ShapeDtypeStruct((m, o), x.dtype),
        scratch_shapes=[pltpu.VMEM((row, i), dtype), pltpu.VMEM((row, 1), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * m * i * o, transcendentals=0, bytes_accessed=x.dtype.itemsize * m * (i + o) + grid[0] * i * o
        ),
        interpret=interpret,
        name="quantized_matmul",
    )(x, weight.values, weight.scale[None])


def _even(size: int, most: int, tile: int) -> int:
    """The size of a block, a multiple of the tile: as few as `most` allows, all about as large; the last may pass the end."""
    blocks = pl.cdiv(size, most // tile * tile)
    return pl.cdiv(size, blocks * tile) * tile
