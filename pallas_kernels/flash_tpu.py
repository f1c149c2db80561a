"""Flash attention between frames on TPUs: `frame_flash` says what it computes, this file how.

The lists lie in scalar memory and steer what is fetched. Everything inside is transposed (keys on sublanes, queries on
lanes), so that the statistics of a query are a row.

Source: FlashAttention-2, algorithms 1 and 2; JAX's splash attention for lists of blocks in scalar memory.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.block_sizes import Sizes
from pallas_kernels.frame_flash import NOTHING, Kernels, Lists, Saved
from pallas_kernels.softmax_attention import is_narrow

LANES = 128


def refusal(q: Any, *_keys: Any) -> str | None:
    """Why the kernel has no tiles for these arrays; None where it has."""
    return f"heads have {q.shape[4]} channels, it needs a multiple of 8" if q.shape[4] % 8 else None


@functools.cache
def kernels(sizes: Sizes) -> Kernels:
    """The three kernels, cut so."""
    return Kernels(LANES, *(functools.partial(one, sizes) for one in (_forward, _backward_queries, _backward_keys)))


def _block(size: int, sizes: Sizes) -> int:
    """Rows of a block: the largest multiple of 128 that divides `size` and is not too large."""
    return max(rows for rows in range(LANES, min(size, sizes.rows) + 1, LANES) if size % rows == 0)


def _product(a: Any, b: Any, contract: tuple[int, int]) -> Any:
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


class _Grid:
    """Blocks of an outer frame against the blocks of the frames in its list; one list a row of the batch and frame."""

    def __init__(self, batch: int, groups: int, frames: int, outer: tuple[int, int], inner: tuple[int, int], most: int):
        self.frames, self.most = frames, most
        self.outer, self.inner = outer, inner
        self.across = inner[0] // inner[1]
        self.shape = (batch, groups, frames, outer[0] // outer[1], most * self.across)

    def here(self, rows: int, columns: int) -> pl.BlockSpec:
        """A block of the outer frame, `[rows columns]` of which one is the size of an outer block."""
        turned = rows == 1
        return pl.BlockSpec(
            (None, None, None, rows, columns), lambda b, g, t, i, j, *_: (b, g, t, *((0, i) if turned else (i, 0)))
        )

    def there(self, rows: int, columns: int) -> pl.BlockSpec:
        """A block of the frame at place j of the list."""
        turned = rows == 1

        def place(b, g, t, i, j, order, count):
            frame = order[(b * self.frames + t) * self.most + j // self.across]
            part = j % self.across
            return (b, g, frame, *((0, part) if turned else (part, 0)))

        return pl.BlockSpec((None, None, None, rows, columns), place)

    def turn(self, count: Any) -> tuple[Any, Any, Any]:
        """Whether this is the first, a real, or the last step of an outer block."""
        j, last = pl.program_id(4), self.shape[4] - 1
        seen = count[pl.program_id(0) * self.frames + pl.program_id(2)]
        return j == 0, j // self.across < seen, j == last


_PARAMS = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "parallel", "arbitrary"))


def _wide(a: Any, dtype: Any) -> Any:
    """Numbers of 8 bits in the type of the products; by float32, the only way that all TPUs have."""
    return a.astype(jnp.float32).astype(dtype) if is_narrow(a) else a


def _rows(a: Any, groups: int) -> Any:
    """Tokens of all heads that share keys under each other."""
    return rearrange(a, "b t s (g m) k -> b g t (m s) k", g=groups)


def _columns(a: Any) -> Any:
    return rearrange(a, "b u s g k -> b g u s k")


def _statistic(a: Any, groups: int) -> Any:
    return rearrange(a, "b t (g m) s -> b g t 1 (m s)", g=groups)


def _of(lists: Lists) -> tuple[Any, Any]:
    """As scalar memory wants them: flat."""
    return lists.order.reshape(-1), lists.count.reshape(-1)


def _real_only(logits: Any, grid: _Grid, column: int, real: int) -> Any:
    """Nothing of the tokens that pad a frame: those from `real` on."""
    if real == grid.across * column:
        return logits
    first = pl.program_id(4) % grid.across * column
    token = first + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
    return jnp.where(token < real, logits, NOTHING)


def _forward(
    sizes: Sizes, q: Any, k: Any, v: Any, worth: Any, lists: Lists, real: int, interpret: Any
) -> tuple[Any, Any]:
    most, tokens = lists.order.shape[-1], q.shape[2]
    worths = [rearrange(a.astype(jnp.float32), "b u s g -> b g u 1 s") for a in worth or ()]
    q, k, v = _rows(q, k.shape[3]), _columns(k), _columns(v)
    (batch, groups, frames, rows, head), columns = q.shape, k.shape[3]
    row, column = _block(rows, sizes), _block(columns, sizes)
    grid, scale = _Grid(batch, groups, frames, (rows, row), (columns, column), most), head**-0.5

    def kernel(order, count, q, k, v, *refs):
        *worth, out, lse, best, total, answer = refs
        is_first, is_real, is_last = grid.turn(count)

        @pl.when(is_first)
        def _():
            best[...] = jnp.full_like(best, NOTHING)
            total[...] = jnp.zeros_like(total)
            answer[...] = jnp.zeros_like(answer)

        @pl.when(is_real)
        def _():
            keys, values = _wide(k[...], q.dtype), _wide(v[...], q.dtype)
            logits = _product(keys, q[...], (1, 1)) * scale
            if worth:
                logits *= worth[0][...].T
            logits = _real_only(logits, grid, column, real)
            new = jnp.maximum(best[...], logits.max(0, keepdims=True))
            weights, keep = jnp.exp(logits - new), jnp.exp(best[...] - new)
            total[...] = total[...] * keep + weights.sum(0, keepdims=True)
            if worth:
                weights *= worth[1][...].T
            answer[...] = answer[...] * keep + _product(values, weights.astype(values.dtype), (0, 0))
            best[...] = new

        @pl.when(is_last)
        def _():
            some = jnp.where(total[...] > 0.0, total[...], 1.0)
            out[...] = (answer[...] / some).T.astype(out.dtype)
            lse[...] = best[...] + jnp.log(some)

    pairs = rows * columns * frames * batch * groups * most
    out, lse = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid.shape,
            in_specs=[
                grid.here(row, head), grid.there(column, head), grid.there(column, head),
                *(grid.there(1, column) for _ in worths),
            ],
            out_specs=[grid.here(row, head), grid.here(1, row)],
            scratch_shapes=[
                pltpu.VMEM((1, row), jnp.float32),
                pltpu.VMEM((1, row), jnp.float32),
                pltpu.VMEM((head, row), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((batch, groups, frames, 1, rows), jnp.float32),
        ],
        compiler_params=_PARAMS,
        cost_estimate=pl.CostEstimate(
            flops=4 * pairs * head, transcendentals=pairs, bytes_accessed=2 * q.size * q.dtype.itemsize + 2 * k.nbytes
        ),
        interpret=interpret,
        name="frame_flash",
    )(*_of(lists), q, k, v, *worths)  # fmt: skip
    out = rearrange(out, "b g t (m s) k -> b t s (g m) k", s=tokens)
    return out, rearrange(lse, "b g t 1 (m s) -> b t (g m) s", s=tokens)


def _arrays(saved: Saved) -> tuple[Any, ...]:
    groups = saved.k.shape[3]
    return (
        _rows(saved.q, groups), _columns(saved.k), _columns(saved.v), _rows(saved.d_out, groups),
        _statistic(saved.lse, groups), _statistic(saved.delta, groups),
    )  # fmt: skip


def _backward_queries(sizes: Sizes, saved: Saved, lists: Lists, real: int, interpret: Any) -> Any:
    q, k, v, d_out, lse, delta = _arrays(saved)
    most, tokens = lists.order.shape[-1], saved.q.shape[2]
    (batch, groups, frames, rows, head), columns = q.shape, k.shape[3]
    row, column = _block(rows, sizes), _block(columns, sizes)
    grid, scale = _Grid(batch, groups, frames, (rows, row), (columns, column), most), head**-0.5

    def kernel(order, count, q, k, v, d_out, lse, delta, d_q, gathered):
        is_first, is_real, is_last = grid.turn(count)

        @pl.when(is_first)
        def _():
            gathered[...] = jnp.zeros_like(gathered)

        @pl.when(is_real)
        def _():
            logits = _real_only(_product(k[...], q[...], (1, 1)) * scale, grid, column, real)
            weights = jnp.exp(logits - lse[...])
            error = weights * (_product(v[...], d_out[...], (1, 1)) - delta[...])
            gathered[...] += _product(k[...], error.astype(k.dtype), (0, 0))

        @pl.when(is_last)
        def _():
            d_q[...] = (gathered[...] * scale).T.astype(d_q.dtype)

    d_q = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid.shape,
            in_specs=[
                grid.here(row, head), grid.there(column, head), grid.there(column, head), grid.here(row, head),
                grid.here(1, row), grid.here(1, row),
            ],
            out_specs=grid.here(row, head),
            scratch_shapes=[pltpu.VMEM((head, row), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=_PARAMS,
        interpret=interpret,
        name="frame_flash_d_q",
    )(*_of(lists), q, k, v, d_out, lse, delta)  # fmt: skip
    return rearrange(d_q, "b g t (m s) k -> b t s (g m) k", s=tokens)


def _backward_keys(sizes: Sizes, saved: Saved, lists: Lists, _real: int, interpret: Any) -> Any:
    q, k, v, d_out, lse, delta = _arrays(saved)
    (batch, groups, _, rows, head), (frames, columns) = q.shape, k.shape[2:4]
    row, column = _block(rows, sizes), _block(columns, sizes)
    grid, scale = _Grid(batch, groups, frames, (columns, column), (rows, row), lists.order.shape[-1]), head**-0.5

    def kernel(order, count, q, k, v, d_out, lse, delta, d_k, d_v, of_keys, of_values):
        is_first, is_real, is_last = grid.turn(count)

        @pl.when(is_first)
        def _():
            of_keys[...] = jnp.zeros_like(of_keys)
            of_values[...] = jnp.zeros_like(of_values)

        @pl.when(is_real)
        def _():
            weights = jnp.exp(_product(k[...], q[...], (1, 1)) * scale - lse[...])
            error = weights * (_product(v[...], d_out[...], (1, 1)) - delta[...])
            of_values[...] += _product(weights.astype(d_out.dtype), d_out[...], (1, 0))
            of_keys[...] += _product(error.astype(q.dtype), q[...], (1, 0))

        @pl.when(is_last)
        def _():
            d_k[...] = (of_keys[...] * scale).astype(d_k.dtype)
            d_v[...] = of_values[...].astype(d_v.dtype)

    d_k, d_v = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid.shape,
            in_specs=[
                grid.there(row, head), grid.here(column, head), grid.here(column, head), grid.there(row, head),
                grid.there(1, row), grid.there(1, row),
            ],
            out_specs=[grid.here(column, head), grid.here(column, head)],
            scratch_shapes=[pltpu.VMEM((column, head), jnp.float32), pltpu.VMEM((column, head), jnp.float32)],
        ),
        out_shape=[jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)],
        compiler_params=_PARAMS,
        interpret=interpret,
        name="frame_flash_d_kv",
    )(*_of(lists), q, k, v, d_out, lse, delta)  # fmt: skip
    return tuple(rearrange(a, "b g u s k -> b u s g k") for a in (d_k, d_v))
