"""cached_attention on a CPU, site by site: the ring is read once, where it lies; no product of matrices, which would turn it around first.

One query against r keys of its own site is no work for a matrix product: memory decides. XLA makes one loop of each of the
two passes below, over keys and over values, if they are written as sums of shifted halves and of a few entries at a time.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax, nn

from pallas_kernels.cached_attention.reference import visible
from pallas_kernels.softmax_attention import MASKED, is_narrow

MOST_FRAMES = 4
"""In flight; more of them share what they read, and a matrix product is the better way."""
TOGETHER = 4
"""Entries of the ring whose values are summed in one loop: so many streams a core reads at full speed."""


def refusal(q: Any, k: Any, v: Any, ring_k: Any, *rest: Any, is_per_site: bool, **_: Any) -> str | None:
    """Why these arguments are not for this implementation; None where they are."""
    if not is_per_site:
        return "it attends site by site, not whole frames"
    sink = rest[3]
    if sink is not None or is_narrow(ring_k):
        return "it has no sinks and no ring of 8 bits"
    if q.shape[1] > MOST_FRAMES:
        return f"{q.shape[1]} frames are in flight, it takes at most {MOST_FRAMES}"
    if q.shape[-1] & (q.shape[-1] - 1):
        return f"heads have {q.shape[-1]} channels, it needs a power of two"
    return None


def cached_attention(
    q: Any, k: Any, v: Any, ring_k: Any, ring_v: Any, ring_age: Any, is_block_seen: Any, sink: Any = None,
    ring_scale: Any = None, *, window_frames: int, is_per_site: bool,
) -> Any:  # fmt: skip
    batch, frames, sites, heads, size = q.shape
    grouped = q.reshape(batch, frames, sites, k.shape[3], heads // k.shape[3], size)
    mask = visible(ring_age, is_block_seen, window_frames)[:, :, :, None, None, None]
    logits = jnp.concatenate([_logits(grouped, ring_k), _logits(grouped, k)], axis=2) * jnp.float32(size**-0.5)
    weights = nn.softmax(jnp.where(mask, logits, jnp.float32(MASKED)), axis=2)
    entries = ring_k.shape[1]
    answer = _sum(weights[:, :, :entries], ring_v) + _sum(weights[:, :, entries:], v)
    return answer.reshape(q.shape).astype(q.dtype)


def _logits(q: Any, k: Any) -> Any:
    """`[b f u s g m]` of queries `[b f s g m k]` and keys `[b u s g k]`."""
    products = _wide(q)[:, :, None] * _wide(k)[:, None, :, :, :, None]
    while products.shape[-1] > 1:  # a reduction over the last axis would be one addition at a time
        products = products[..., : products.shape[-1] // 2] + products[..., products.shape[-1] // 2 :]
    return products[..., 0]


def _sum(weights: Any, v: Any) -> Any:
    """`[b f s g m k]` of weights `[b f u s g m]` and values `[b u s g k]`."""
    total = None
    for start in range(0, v.shape[1], TOGETHER):
        some = range(start, min(start + TOGETHER, v.shape[1]))
        part = sum(weights[:, :, i, ..., None] * _wide(v)[:, None, i, :, :, None] for i in some)
        total = part if total is None else lax.optimization_barrier(total + part)
    return total


def _wide(a: Any) -> Any:
    return a.astype(jnp.float32)
