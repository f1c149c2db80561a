"""Flash attention between frames on Hopper GPUs: `frame_flash` says what it computes, this file how.

A block of threads is some warpgroups that compute, each with 64 rows of its own, and one that fetches: it walks the list
of frames and copies tiles of 64 tokens by TMA into a ring of a few stages, which all the others read. Products are wgmma
with both operands in shared memory.

Source: FlashAttention-3, section 3.1 (a producer, several consumers).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from pallas_kernels.block_sizes import Sizes
from pallas_kernels.frame_flash import NOTHING, Kernels, Lists, Saved

TILE = 64
LOG2_E = 1.4426950408889634
"""exp(x) is 2 ** (x * LOG2_E): a GPU has an instruction for powers of two, and the scale of the logits is folded into the factor."""
FAST = plgpu.CompilerParams(approx_math=True)
REGISTERS = {2: (232, 40), 3: (160, 32)}
"""By the number of workers: what a thread of a worker and one of the fetcher may have. A core has 65,536 for all of them; a block that
asks for more waits for ever."""
_TILED = plgpu.Layout.WGMMA
_A_ROW, _A_COLUMN = _TILED.reduce(1), _TILED.reduce(0)


def refusal(q: Any, *keys: Any) -> str | None:
    """Why the kernel has no tiles for these arrays; None where it has."""
    if q.shape[4] not in (64, 128):
        return f"heads have {q.shape[4]} channels, it needs 64 or 128"
    if any(a.dtype not in (jnp.bfloat16, jnp.float16) for a in (q, *keys)):
        return f"the queries are {q.dtype}, it needs bfloat16 or float16"
    return None


@functools.cache
def kernels(sizes: Sizes) -> Kernels:
    """The three kernels, cut so."""
    return Kernels(TILE, *(functools.partial(one, sizes) for one in (_forward, _backward_queries, _backward_keys)))


def _workers(tokens: int, sizes: Sizes) -> int:
    return max(count for count in range(1, sizes.workers + 1) if tokens % (count * TILE) == 0)


def tiles(count: int, rows: int, columns: int, dtype: Any) -> Any:
    """Tiles in shared memory, laid out for TMA and wgmma: rows in eights, columns in 64s."""
    # pyright takes two public classes of JAX for abstract ones
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))  # pyright: ignore[reportAbstractUsage]
    return plgpu.SMEM((count, rows, columns), dtype, transforms=transforms)


def multiply(a: Any, b: Any) -> Float[Array, "rows columns"]:
    """`a @ b` of two tiles in shared memory, into registers."""

    def run(sum_: Any) -> Any:
        plgpu.wgmma(sum_, a, b)
        return sum_[...]

    return pl.run_scoped(run, plgpu.WGMMAAccumulatorRef((a.shape[0], b.shape[1]), jnp.float32))


def spread(vector: Any, columns: int) -> Any:
    """Each row's number in all its columns."""
    return lax.broadcast_in_dim(vector, (vector.shape[0], columns), (0,))


def _zeros(*shape: int, layout: Any) -> Any:
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), layout)


def _real_only(products: Any, part: Any, real: int) -> Any:
    """Nothing of the tokens that pad a frame: those from `real` on, in the last of its parts."""
    if real % TILE == 0:
        return products
    token = plgpu.broadcasted_iota(jnp.int32, (TILE, TILE), 1, layout=_TILED) + part * TILE
    return jnp.where(token < real, products, NOTHING)


def store(ref: Any, value: Any) -> None:
    """Into shared memory, where wgmma and TMA will see it."""
    ref[...] = value.astype(ref.dtype)
    plgpu.commit_smem()


class _Ring:
    """Tiles on their way from the fetcher to the workers: each stage is filled by TMA and given back by every worker."""

    def __init__(self, tiles: Any, full: Any, free: Any):
        self.tiles, self.full, self.free = tiles, full, free
        self.stages = tiles.shape[0]

    def fetch(self, step: Any, source: Any) -> None:
        stage = lax.rem(step, self.stages)

        @pl.when(step >= self.stages)
        def _():
            plgpu.barrier_wait(self.free.at[stage])

        plgpu.copy_gmem_to_smem(source, self.tiles.at[stage], self.full.at[stage])

    def take(self, step: Any) -> Any:
        """The tile of this step, once it is there."""
        stage = lax.rem(step, self.stages)
        plgpu.barrier_wait(self.full.at[stage])
        return self.tiles.at[stage]

    def give_back(self, step: Any) -> None:
        plgpu.barrier_arrive(self.free.at[lax.rem(step, self.stages)])


def _barriers(workers: int, sizes: Sizes) -> list[Any]:
    """Of one ring: full, free."""
    return [plgpu.Barrier(num_barriers=sizes.stages), plgpu.Barrier(num_arrivals=workers, num_barriers=sizes.stages)]


def _launch(
    name: str, work: Callable[..., None], fetch: Callable[..., None], results: Any, scratch: list[Any],
    grid: tuple[int, int, int, int], workers: int, interpret: Any, arrays: tuple[Any, ...],
) -> Any:  # fmt: skip
    """Runs `work` on each worker and `fetch` on the one that fetches, for each (row of the batch, head, frame, block)."""

    def kernel(*refs: Any) -> None:
        me, where = lax.axis_index("warpgroup"), _unravelled(lax.axis_index("cell"), grid)

        @pl.when(me < workers)
        def _():
            _limit_registers(workers, "increase", interpret)
            work(me, where, *refs)

        @pl.when(me == workers)
        def _():
            _limit_registers(workers, "decrease", interpret)
            fetch(where, *refs)

    kernel.__name__ = name
    choice = {"interpret": interpret} if interpret else {}
    return plgpu.kernel(
        kernel,
        out_type=results,
        scratch_types=scratch,
        grid=(math.prod(grid),),  # one axis: only the first of a GPU's grid may be longer than 65,535
        grid_names=("cell",),
        num_threads=workers + 1,
        thread_name="warpgroup",
        compiler_params=FAST,
        **choice,
    )(*arrays)


def _unravelled(cell: Any, grid: tuple[int, ...]) -> tuple[Any, ...]:
    """Where a cell of the grid is, the last axis changing fastest."""
    where = []
    for size in grid[::-1]:
        where, cell = [lax.rem(cell, size), *where], lax.div(cell, size)
    return tuple(where)


def _limit_registers(workers: int, action: Literal["increase", "decrease"], interpret: Any) -> None:
    """One worker and the fetcher may have all they want; the interpreter has no registers to give."""
    if workers > 1 and not interpret:
        plgpu.set_max_registers(REGISTERS[workers][action == "decrease"], action=action)


def _mine(block: Any, me: Any, workers: int) -> Any:
    return pl.ds((block * workers + me) * TILE, TILE)


def _part(step: Any, parts: int) -> Any:
    return pl.ds(lax.rem(step, parts) * TILE, TILE)


def _fetch_seen(
    where: tuple[Any, ...], shared: int, parts: int, order: Any, count: Any, sources: tuple[Any, Any],
    rings: tuple[_Ring, _Ring],
) -> None:  # fmt: skip
    """Brings the keys and values of the frames that this frame sees, tile by tile."""
    (row, head, frame, _), (k, v), (keys, values) = where, sources, rings
    group = lax.div(head, shared)

    def turn(step, _):
        other, part = order[row, frame, lax.div(step, parts)], _part(step, parts)
        keys.fetch(step, k.at[row, other, part, group])
        values.fetch(step, v.at[row, other, part, group])

    lax.fori_loop(0, count[row, frame] * parts, turn, None)


def _forward(
    sizes: Sizes, q: Any, k: Any, v: Any, worth: None, lists: Lists, real: int, interpret: Any
) -> tuple[Any, Any]:
    assert worth is None, "cached_attention/gpu.py widens rings of 8 bits"
    (batch, frames, tokens, heads, channels), parts = q.shape, k.shape[2] // TILE
    workers, scale, shared = _workers(tokens, sizes), channels**-0.5, heads // k.shape[3]
    power = scale * LOG2_E

    def work(me, where, q, k, v, order, count, out, lse, queries, weights, loaded, keys, values, *barriers):
        row, head, frame, block = where
        keys, values = _Ring(keys, *barriers[:2]), _Ring(values, *barriers[2:])
        mine, my_queries, my_weights = _mine(block, me, workers), queries.at[me], weights.at[me]
        plgpu.copy_gmem_to_smem(q.at[row, frame, mine, head], my_queries, loaded.at[me])
        plgpu.barrier_wait(loaded.at[me])

        def turn(step, carry):
            best, total, answer = carry
            products = _real_only(multiply(my_queries, keys.take(step).T), lax.rem(step, parts), real)
            keys.give_back(step)
            new = jnp.maximum(best, jnp.max(products, axis=1))
            keep = jnp.exp2((best - new) * power)
            share = jnp.exp2(products * power - spread(new * power, TILE))
            store(my_weights, share)
            answer = answer * spread(keep, channels) + multiply(my_weights, values.take(step))
            values.give_back(step)
            return new, total * keep + jnp.sum(share, axis=1), answer

        start = (
            _zeros(TILE, layout=_A_ROW) + NOTHING,
            _zeros(TILE, layout=_A_ROW),
            _zeros(TILE, channels, layout=_TILED),
        )
        best, total, answer = lax.fori_loop(0, count[row, frame] * parts, turn, start)
        some = jnp.where(total > 0.0, total, 1.0)
        lse[row, frame, head, mine] = best * scale + jnp.log(some)
        store(my_queries, answer / spread(some, channels))
        plgpu.copy_smem_to_gmem(my_queries, out.at[row, frame, mine, head])
        plgpu.wait_smem_to_gmem(0)

    def fetch(where, q, k, v, order, count, out, lse, queries, weights, loaded, keys, values, *barriers):
        rings = _Ring(keys, *barriers[:2]), _Ring(values, *barriers[2:])
        _fetch_seen(where, shared, parts, order, count, (k, v), rings)

    return _launch(
        "frame_flash", work, fetch,
        (jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((batch, frames, heads, tokens), jnp.float32)),
        [
            tiles(workers, TILE, channels, q.dtype), tiles(workers, TILE, TILE, q.dtype), plgpu.Barrier(num_barriers=workers),
            tiles(sizes.stages, TILE, channels, k.dtype), tiles(sizes.stages, TILE, channels, v.dtype),
            *_barriers(workers, sizes), *_barriers(workers, sizes),
        ],
        (batch, heads, frames, tokens // (TILE * workers)), workers, interpret, (q, k, v, *lists),
    )  # fmt: skip


def _backward_queries(sizes: Sizes, saved: Saved, lists: Lists, real: int, interpret: Any) -> Any:
    (batch, frames, tokens, heads, channels), parts = saved.q.shape, saved.k.shape[2] // TILE
    workers, scale, shared = _workers(tokens, sizes), channels**-0.5, heads // saved.k.shape[3]

    def work(
        me, where, q, k, v, d_out, lse, delta, order, count, d_q, queries, errors, answers, loaded, keys, values, *bs
    ):
        row, head, frame, block = where
        keys, values = _Ring(keys, *bs[:2]), _Ring(values, *bs[2:])
        mine, my_queries, my_errors, my_answers = (
            _mine(block, me, workers),
            queries.at[me],
            errors.at[me],
            answers.at[me],
        )
        plgpu.copy_gmem_to_smem(q.at[row, frame, mine, head], my_queries, loaded.at[me])
        plgpu.barrier_wait(loaded.at[me])
        plgpu.copy_gmem_to_smem(d_out.at[row, frame, mine, head], my_answers, loaded.at[me])
        plgpu.barrier_wait(loaded.at[me])
        sums = plgpu.load(lse.at[row, frame, head, mine], layout=_A_ROW, optimized=False) * LOG2_E
        means = plgpu.load(delta.at[row, frame, head, mine], layout=_A_ROW, optimized=False)

        def turn(step, gathered):
            tile = keys.take(step)
            products = _real_only(multiply(my_queries, tile.T), lax.rem(step, parts), real)
            share = jnp.exp2(products * (scale * LOG2_E) - spread(sums, TILE))
            error = share * (multiply(my_answers, values.take(step).T) - spread(means, TILE))
            values.give_back(step)
            store(my_errors, error)
            gathered = gathered + multiply(my_errors, tile)
            keys.give_back(step)
            return gathered

        gathered = lax.fori_loop(0, count[row, frame] * parts, turn, _zeros(TILE, channels, layout=_TILED))
        store(my_queries, gathered * scale)
        plgpu.copy_smem_to_gmem(my_queries, d_q.at[row, frame, mine, head])
        plgpu.wait_smem_to_gmem(0)

    def fetch(
        where, q, k, v, d_out, lse, delta, order, count, d_q, queries, errors, answers, loaded, keys, values, *bs
    ):
        rings = _Ring(keys, *bs[:2]), _Ring(values, *bs[2:])
        _fetch_seen(where, shared, parts, order, count, (k, v), rings)

    q, k = saved.q, saved.k
    return _launch(
        "frame_flash_d_q", work, fetch, jax.ShapeDtypeStruct(q.shape, q.dtype),
        [
            tiles(workers, TILE, channels, q.dtype), tiles(workers, TILE, TILE, k.dtype), tiles(workers, TILE, channels, q.dtype),
            plgpu.Barrier(num_barriers=workers), tiles(sizes.stages, TILE, channels, k.dtype), tiles(sizes.stages, TILE, channels, k.dtype),
            *_barriers(workers, sizes), *_barriers(workers, sizes),
        ],
        (batch, heads, frames, tokens // (TILE * workers)), workers, interpret, (*saved, *lists),
    )  # fmt: skip


def _backward_keys(sizes: Sizes, saved: Saved, lists: Lists, _real: int, interpret: Any) -> Any:
    (batch, frames, tokens, groups, channels), parts = saved.k.shape, saved.q.shape[2] // TILE
    shared = saved.q.shape[3] // groups
    workers, scale = _workers(tokens, sizes), channels**-0.5

    def place(step, order, row, frame):
        """Which frame, tokens and head of the queries come at this step."""
        return (
            order[row, frame, lax.div(step, parts * shared)],
            _part(step, parts),
            lax.rem(lax.div(step, parts), shared),
        )

    def work(
        me,
        where,
        q,
        k,
        v,
        d_out,
        lse,
        delta,
        order,
        count,
        d_k,
        d_v,
        keys,
        values,
        shares,
        loaded,
        queries,
        answers,
        *bs,
    ):
        row, group, frame, block = where
        queries, answers = _Ring(queries, *bs[:2]), _Ring(answers, *bs[2:])
        mine, my_keys, my_values, my_shares = _mine(block, me, workers), keys.at[me], values.at[me], shares.at[me]
        plgpu.copy_gmem_to_smem(k.at[row, frame, mine, group], my_keys, loaded.at[me])
        plgpu.barrier_wait(loaded.at[me])
        plgpu.copy_gmem_to_smem(v.at[row, frame, mine, group], my_values, loaded.at[me])
        plgpu.barrier_wait(loaded.at[me])

        def turn(step, carry):
            of_keys, of_values = carry
            other, part, member = place(step, order, row, frame)
            head = group * shared + member
            sums = plgpu.load(lse.at[row, other, head, part], layout=_A_COLUMN, optimized=False) * LOG2_E
            means = plgpu.load(delta.at[row, other, head, part], layout=_A_COLUMN, optimized=False)
            tile = queries.take(step)
            share = jnp.exp2(
                multiply(my_keys, tile.T) * (scale * LOG2_E) - lax.broadcast_in_dim(sums, (TILE, TILE), (1,))
            )
            store(my_shares, share)
            given = answers.take(step)
            of_values = of_values + multiply(my_shares, given)
            error = share * (multiply(my_values, given.T) - lax.broadcast_in_dim(means, (TILE, TILE), (1,)))
            answers.give_back(step)
            store(my_shares, error)
            of_keys = of_keys + multiply(my_shares, tile)
            queries.give_back(step)
            return of_keys, of_values

        nothing = _zeros(TILE, channels, layout=_TILED)
        of_keys, of_values = lax.fori_loop(0, count[row, frame] * parts * shared, turn, (nothing, nothing))
        store(my_keys, of_keys * scale)
        store(my_values, of_values)
        plgpu.copy_smem_to_gmem(my_keys, d_k.at[row, frame, mine, group])
        plgpu.copy_smem_to_gmem(my_values, d_v.at[row, frame, mine, group])
        plgpu.wait_smem_to_gmem(0)

    def fetch(
        where, q, k, v, d_out, lse, delta, order, count, d_k, d_v, keys, values, shares, loaded, queries, answers, *bs
    ):
        row, group, frame, _ = where
        queries, answers = _Ring(queries, *bs[:2]), _Ring(answers, *bs[2:])

        def turn(step, _):
            other, part, member = place(step, order, row, frame)
            queries.fetch(step, q.at[row, other, part, group * shared + member])
            answers.fetch(step, d_out.at[row, other, part, group * shared + member])

        lax.fori_loop(0, count[row, frame] * parts * shared, turn, None)

    k = saved.k
    return _launch(
        "frame_flash_d_kv", work, fetch, (jax.ShapeDtypeStruct(k.shape, k.dtype), jax.ShapeDtypeStruct(k.shape, k.dtype)),
        [
            tiles(workers, TILE, channels, k.dtype), tiles(workers, TILE, channels, k.dtype), tiles(workers, TILE, TILE, k.dtype),
            plgpu.Barrier(num_barriers=workers), tiles(sizes.stages, TILE, channels, k.dtype), tiles(sizes.stages, TILE, channels, k.dtype),
            *_barriers(workers, sizes), *_barriers(workers, sizes),
        ],
        (batch, groups, frames, tokens // (TILE * workers)), workers, interpret, (*saved, *lists),
    )  # fmt: skip
