"""norm_modulate on Hopper GPUs: a warpgroup takes some tokens of a frame one after the other, its sums in registers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.block_sizes import Sizes, sizes_of
from pallas_kernels.norm_modulate import one_pass
from pallas_kernels.norm_modulate.one_pass import Kernels, Norm, backward_rows, forward_rows

NEEDS_MEASUREMENT = True
"""XLA fuses most of this by itself: `auto` takes the kernel where `tuned.json` says that it was faster."""
THREADS = 128
"""Of a warpgroup."""
WIDEST = 2048
"""Channels that the gradient can work on without leaving the registers of a warpgroup."""
WARPGROUPS = 8 * 132
"""So many and no core of an H100 waits for memory: eight for each."""
SUMMED = 8
"""The fewest tokens that share a sum, which is written in float32: of one alone it would be more than all the rest."""


def refusal(x: Any, *_: Any, **__: Any) -> str | None:
    """Why these arguments are not for this kernel; None where they are."""
    if x.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        return f"the stream is {x.dtype}, it needs bfloat16, float16 or float32"
    if x.shape[3] % THREADS or x.shape[3] > WIDEST:
        return f"tokens have {x.shape[3]} channels, it needs a multiple of {THREADS} up to {WIDEST}"
    return None


def norm_modulate(*arguments: Any, is_centred: bool, epsilon: float, interpret: Any = False) -> Any:
    kernels = _kernels(sizes_of("norm_modulate"))
    return one_pass.norm_modulate(kernels, *arguments, is_centred=is_centred, epsilon=epsilon, interpret=interpret)


@functools.cache
def _kernels(sizes: Sizes) -> Kernels:
    return Kernels(functools.partial(_forward, sizes), functools.partial(_backward, sizes))


class _Blocks:
    """Which tokens of a frame each warpgroup takes, and how its threads share the channels of one."""

    def __init__(self, x: Any, sizes: Sizes, least: int):
        batch, frames, self.tokens, self.width = x.shape
        most = min(max(batch * frames * self.tokens // WARPGROUPS, least), sizes.rows)
        self.rows = -(-self.tokens // -(-self.tokens // most))
        self.grid = (batch, frames, -(-self.tokens // self.rows))
        vector = max(size for size in (1, 2, 4) if self.width % (size * THREADS) == 0)
        self.layout = plgpu.Layout.WG_STRIDED((self.width,), vector)

    def load(self, ref: Any) -> Any:
        return plgpu.load(ref, layout=self.layout, optimized=False)

    def zeros(self) -> Any:
        return plgpu.layout_cast(jnp.zeros((self.width,), jnp.float32), self.layout)

    def place(self) -> tuple[Any, Any, Any]:
        """(row of the batch, frame, block) of this warpgroup."""
        row, frame, block = (lax.axis_index(axis) for axis in ("row", "frame", "block"))
        return row, frame, block

    def each_token(self, turn: Any, start: Any) -> Any:
        """Carries `turn(place of a token, carry)` through the tokens of this warpgroup."""
        row, frame, block = self.place()
        first = block * self.rows

        def body(step: Any, carry: Any) -> Any:
            return turn((row, frame, first + step), carry)

        return lax.fori_loop(0, lax.min(self.rows, self.tokens - first), body, start)

    def launch(self, kernel: Any, results: Any, interpret: Any, arrays: Any) -> Any:
        choice = {"interpret": interpret} if interpret else {}
        return plgpu.kernel(
            kernel, out_type=results, grid=self.grid, grid_names=("row", "frame", "block"), **choice
        )(*arrays)  # fmt: skip


def _forward(sizes: Sizes, norm: Norm, x: Any, shift: Any, scale: Any, joined: Any, interpret: Any) -> tuple[Any, ...]:
    blocks = _Blocks(x, sizes, least=1)

    def kernel(x, shift, scale, joined, results):
        here = blocks.place()[:2]
        my_shift, my_scale, *gate = (blocks.load(rows.at[here]) for rows in (shift, scale, *joined[1:]))

        def turn(place, _):
            row, *branch = (blocks.load(tokens.at[place]) for tokens in (x, *joined[:1]))
            values = forward_rows(norm, row, my_shift, my_scale, (*branch, *gate))
            for result, value in zip(results, values, strict=True):
                result[place] = value

        blocks.each_token(turn, None)

    results = (jax.ShapeDtypeStruct(x.shape, x.dtype),) * (2 if joined else 1)
    return blocks.launch(_named(kernel, "norm_modulate"), (results,), interpret, (x, shift, scale, joined))[0]


def _backward(
    sizes: Sizes, norm: Norm, stream: Any, scale: Any, d_h: Any, d_stream: Any, joined: Any, interpret: Any
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    blocks = _Blocks(stream, sizes, least=SUMMED)
    batch, frames, parts = blocks.grid

    def kernel(stream, scale, d_h, d_stream, joined, d_rows, sums):
        here = blocks.place()
        my_scale, *gate = (blocks.load(rows.at[here[:2]]) for rows in (scale, *joined[1:]))

        def turn(place, totals):
            tokens = (stream, d_h, d_stream, *joined[:1])
            row, d_h_row, d_row, *branch = (blocks.load(ref.at[place]) for ref in tokens)
            values, added = backward_rows(norm, row, my_scale, d_h_row, d_row, (*branch, *gate))
            for result, value in zip(d_rows, values, strict=True):
                result[place] = value
            return tuple(total + rows for total, rows in zip(totals, added, strict=True))

        totals = blocks.each_token(turn, tuple(blocks.zeros() for _ in sums))
        for ref, total in zip(sums, totals, strict=True):
            ref[here] = total

    d_rows = (jax.ShapeDtypeStruct(stream.shape, stream.dtype),) * (2 if joined else 1)
    sums = (jax.ShapeDtypeStruct((batch, frames, parts, blocks.width), jnp.float32),) * (3 if joined else 2)
    arrays = (stream, scale, d_h, d_stream, joined)
    return blocks.launch(_named(kernel, "norm_modulate_d"), (d_rows, sums), interpret, arrays)


def _named(kernel: Any, name: str) -> Any:
    kernel.__name__ = name
    return kernel
