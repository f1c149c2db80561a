"""norm_modulate on a TPU: blocks of tokens of one frame; its sums stay in vector memory from block to block."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.block_sizes import Sizes, sizes_of
from pallas_kernels.norm_modulate import one_pass
from pallas_kernels.norm_modulate.one_pass import Kernels, Norm, backward_rows, forward_rows

NEEDS_MEASUREMENT = True
"""XLA fuses most of this by itself: `auto` takes the kernel where `tuned.json` says that it was faster."""
TILE = 16
"""Rows of a tile of bfloat16; of float32 they are 8."""
MEMORY = 8 * 2**20
"""Bytes of vector memory that a block may take, half of what a TPU v4 has: the compiler needs room of its own."""
ARRAYS, VALUES = 6, 6
"""The gradient's arrays of tokens, each in memory twice (one block is on its way), and float32 values between them."""


def refusal(x: Any, *_: Any, **__: Any) -> str | None:
    """Why these arguments are not for this kernel; None where they are."""
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        return f"the stream is {x.dtype}, it needs bfloat16 or float32"
    if _most_rows(x) < TILE:
        return (
            f"{TILE} tokens of {x.shape[3]} channels are more than {MEMORY // 2**20} MiB of vector memory can work on"
        )
    return None


def norm_modulate(*arguments: Any, is_centred: bool, epsilon: float, interpret: Any = False) -> Any:
    kernels = _kernels(sizes_of("norm_modulate"))
    return one_pass.norm_modulate(kernels, *arguments, is_centred=is_centred, epsilon=epsilon, interpret=interpret)


@functools.cache
def _kernels(sizes: Sizes) -> Kernels:
    return Kernels(functools.partial(_forward, sizes), functools.partial(_backward, sizes))


def _most_rows(x: Any) -> int:
    return MEMORY // (x.shape[3] * (2 * ARRAYS * x.dtype.itemsize + 4 * VALUES))


class _Blocks:
    """Tokens of one frame in blocks of even size, the last perhaps beyond the frame's end."""

    def __init__(self, x: Any, sizes: Sizes):
        batch, frames, self.tokens, self.width = x.shape
        most = max(min(sizes.rows, _most_rows(x)) // TILE, 1) * TILE
        count = -(-self.tokens // most)
        self.rows = self.tokens if count == 1 else -(-self.tokens // (count * TILE)) * TILE
        self.grid = (batch, frames, -(-self.tokens // self.rows))
        self.of_tokens = pl.BlockSpec((None, None, self.rows, self.width), lambda b, t, i: (b, t, i, 0))
        self.of_frame = pl.BlockSpec((None, None, 1, self.width), lambda b, t, i: (b, t, 0, 0))

    def real_only(self, rows: Any) -> Any:
        """Zero beyond the frame's end, where memory holds anything."""
        if self.tokens % self.rows == 0:
            return rows
        token = pl.program_id(2) * self.rows + jax.lax.broadcasted_iota(jnp.int32, rows.shape, 0)
        return jnp.where(token < self.tokens, rows, 0.0)


_PARAMS = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))


def _forward(sizes: Sizes, norm: Norm, x: Any, shift: Any, scale: Any, joined: Any, interpret: Any) -> tuple[Any, ...]:
    blocks = _Blocks(x, sizes)

    def kernel(x, shift, scale, joined, results):
        values = forward_rows(norm, x[...], shift[...], scale[...], tuple(ref[...] for ref in joined))
        for result, value in zip(results, values, strict=True):
            result[...] = value

    count = len(joined)
    (results,) = pl.pallas_call(
        kernel,
        grid=blocks.grid,
        in_specs=[blocks.of_tokens, blocks.of_frame, blocks.of_frame, (blocks.of_tokens, blocks.of_frame)[:count]],
        out_specs=((blocks.of_tokens, blocks.of_tokens) if joined else (blocks.of_tokens,),),
        out_shape=((jax.ShapeDtypeStruct(x.shape, x.dtype),) * (2 if joined else 1),),
        compiler_params=_PARAMS,
        cost_estimate=_cost(x, arrays=4 if joined else 2),
        interpret=interpret,
        name="norm_modulate",
    )(x, shift[:, :, None], scale[:, :, None], _as_read(joined))
    return results


def _backward(
    sizes: Sizes, norm: Norm, stream: Any, scale: Any, d_h: Any, d_stream: Any, joined: Any, interpret: Any
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    blocks = _Blocks(stream, sizes)
    batch, frames, _, width = stream.shape

    def kernel(stream, scale, d_h, d_stream, joined, d_rows, sums):
        @pl.when(pl.program_id(2) == 0)
        def _():
            for total in sums:
                total[...] = jnp.zeros_like(total)

        values, added = backward_rows(
            norm, stream[...], scale[...], d_h[...], d_stream[...], tuple(ref[...] for ref in joined)
        )
        for result, value in zip(d_rows, values, strict=True):
            result[...] = value
        for total, rows in zip(sums, added, strict=True):
            total[...] += blocks.real_only(rows).sum(0, keepdims=True)

    of_tokens, of_frame, count = blocks.of_tokens, blocks.of_frame, len(joined)
    row = jax.ShapeDtypeStruct((batch, frames, 1, width), jnp.float32)
    return pl.pallas_call(
        kernel,
        grid=blocks.grid,
        in_specs=[of_tokens, of_frame, of_tokens, of_tokens, (of_tokens, of_frame)[:count]],
        out_specs=((of_tokens,) * (2 if joined else 1), (of_frame,) * (3 if joined else 2)),
        out_shape=(
            (jax.ShapeDtypeStruct(stream.shape, stream.dtype),) * (2 if joined else 1),
            (row,) * (3 if joined else 2),
        ),
        compiler_params=_PARAMS,
        cost_estimate=_cost(stream, arrays=6 if joined else 4),
        interpret=interpret,
        name="norm_modulate_d",
    )(stream, scale[:, :, None], d_h, d_stream, _as_read(joined))


def _as_read(joined: tuple[Any, ...]) -> tuple[Any, ...]:
    """The gate `[b t 1 d]`: a block's last two axes must be whole or multiples of a tile."""
    return (joined[0], joined[1][:, :, None]) if joined else ()


def _cost(x: Any, arrays: int) -> pl.CostEstimate:
    return pl.CostEstimate(
        flops=4 * arrays * x.size,
        transcendentals=x.size // x.shape[3],
        bytes_accessed=arrays * x.size * x.dtype.itemsize,
    )
