"""Attention site by site to a ring of frames on Hopper GPUs: a block of threads takes one site and one group of heads.

A site has only a few queries (its heads of one group), so the work is to read the ring once and as it lies: no copy that
brings a site's frames together. The few rows are padded to the 64 of a wgmma, which costs less than waiting for memory.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.flash_gpu import FAST, LOG2_E, TILE, multiply, spread, store, tiles
from pallas_kernels.frame_flash import NOTHING
from pallas_kernels.softmax_attention import attend_site

MOST_FRAMES = 256
"""All of a site's frames lie in shared memory at once."""
_TILED = plgpu.Layout.WGMMA


def refusal(q: Any, ring: Any) -> str | None:
    """Why the kernel cannot take queries `[b f s n k]` and a ring `[b r s g k]`; None where it can."""
    rows = q.shape[1] * q.shape[3] // ring.shape[3]
    if rows > TILE:
        return f"a site has {rows} queries a group of heads, it takes {TILE}"
    if ring.shape[1] % 64 or ring.shape[1] > MOST_FRAMES:
        return f"the ring has {ring.shape[1]} frames, it takes multiples of 64 up to {MOST_FRAMES}"
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(q: Any, k: Any, v: Any, seen: Any, interpret: Any = False) -> tuple[Any, Any]:
    """`softmax_attention.attend_site`, whose gradient it takes, for a ring of r frames."""
    (batch, frames, sites, heads, channels), (ring, groups) = q.shape, (k.shape[1], k.shape[3])
    shared, scale = heads // groups, channels**-0.5
    rows = -(-frames * shared // 8) * 8
    few = q.reshape(batch, frames, sites, groups, shared, channels).transpose(0, 2, 3, 1, 4, 5)
    few = few.reshape(batch, sites, groups, frames * shared, channels)
    few = jnp.pad(few, ((0, 0), (0, 0), (0, 0), (0, rows - frames * shared), (0, 0)))
    bias = jnp.where(jnp.repeat(seen, shared, axis=1), 0.0, jnp.float32(NOTHING))
    bias = jnp.pad(bias, ((0, 0), (0, TILE - frames * shared), (0, 0)))

    def kernel(q, k, v, bias, out, lse, queries, keys, values, weights, loaded):
        row, site, group = (lax.axis_index(axis) for axis in ("row", "site", "group"))
        plgpu.copy_gmem_to_smem(q.at[row, site, group], queries.at[0, :rows], loaded.at[0])
        plgpu.copy_gmem_to_smem(k.at[row, :, site, group], keys.at[0], loaded.at[1])
        plgpu.copy_gmem_to_smem(v.at[row, :, site, group], values.at[0], loaded.at[2])
        hidden = plgpu.load(bias.at[row], layout=_TILED, optimized=False)
        plgpu.barrier_wait(loaded.at[0])
        plgpu.barrier_wait(loaded.at[1])
        products = multiply(queries.at[0], keys.at[0].T) + hidden
        best = jnp.max(products, axis=1)
        share = jnp.exp2((products - spread(best, ring)) * (scale * LOG2_E))
        total = jnp.sum(share, axis=1)
        store(weights.at[0], share)
        plgpu.barrier_wait(loaded.at[2])
        answer = multiply(weights.at[0], values.at[0]) / spread(total, channels)
        lse[row, site, group] = best * scale + jnp.log(total)
        store(queries.at[0], answer)
        plgpu.copy_smem_to_gmem(queries.at[0, :rows], out.at[row, site, group])
        plgpu.wait_smem_to_gmem(0)

    choice = {"interpret": interpret} if interpret else {}
    out, lse = plgpu.kernel(
        kernel,
        out_type=(
            jax.ShapeDtypeStruct(few.shape, q.dtype),
            jax.ShapeDtypeStruct((batch, sites, groups, TILE), jnp.float32),
        ),
        scratch_types=[
            tiles(1, TILE, channels, q.dtype), tiles(1, ring, channels, k.dtype), tiles(1, ring, channels, v.dtype),
            tiles(1, TILE, ring, v.dtype), plgpu.Barrier(num_barriers=3),
        ],
        grid=(batch, sites, groups),
        grid_names=("row", "site", "group"),
        compiler_params=FAST,
        **choice,
    )(few, k, v, bias)  # fmt: skip
    out = out[:, :, :, : frames * shared].reshape(batch, sites, groups, frames, shared, channels)
    lse = lse[..., : frames * shared].reshape(batch, sites, groups, frames, shared)
    return (
        out.transpose(0, 3, 1, 2, 4, 5).reshape(q.shape),
        lse.transpose(0, 3, 2, 4, 1).reshape(batch, frames, heads, sites),
    )


def _forward(q, k, v, seen, interpret):
    return attend(q, k, v, seen, interpret), (q, k, v, seen)


def _backward(_interpret, kept, given):
    q, k, v, seen = kept
    _, pull = jax.vjp(lambda q, k, v: attend_site(q, k, v, seen), q, k, v)
    return *pull(given), None


attend.defvjp(_forward, _backward)
