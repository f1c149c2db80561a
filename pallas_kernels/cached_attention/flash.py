"""cached_attention by any platform's flash kernels: the ring, the frames in flight and the sinks each by one call, joined.

One frame in flight is too little to keep a large device busy, so the ring may be split: each part answers on its own.
Source: Flash-Decoding (Dao, Haziza, Massa, Sizov, 2023).
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from pallas_kernels.cached_attention.reference import visible
from pallas_kernels.frame_flash import Kernels, frame_flash, join
from pallas_kernels.softmax_attention import is_narrow


def cached_attention(
    kernels: Kernels, q: Any, k: Any, v: Any, ring_k: Any, ring_v: Any, ring_age: Any, is_block_seen: Any, sink: Any,
    ring_scale: Any, *, window_frames: int, interpret: Any, parts: int = 1,
) -> Any:  # fmt: skip
    """`parts` divides the length of the ring."""
    mask, length, frames = visible(ring_age, is_block_seen, window_frames), ring_k.shape[1], q.shape[1]

    def attend(q: Any, k: Any, v: Any, mask: Any, worth: Any = None) -> tuple[Any, Any]:
        return frame_flash(
            kernels, q, k, v, mask, most_seen=mask.shape[2], most_seen_by=frames, worth=worth, interpret=interpret
        )

    if not is_narrow(ring_k):  # a ring of 8 bits is widened block by block, inside the kernel
        ring_k, ring_v = ring_k.astype(k.dtype), ring_v.astype(v.dtype)
    ring = _in_parts(attend, q, ring_k, ring_v, mask[..., :length], ring_scale, parts)
    answers = [*ring, attend(q, k, v, mask[..., length:])]
    return join(answers if sink is None else [*answers, attend(*sink)])


def _in_parts(attend: Any, q: Any, k: Any, v: Any, mask: Any, worth: Any, parts: int) -> list[tuple[Any, Any]]:
    """The ring's frames dealt to several rows of a larger batch, and the answers of each."""
    if parts == 1:
        return [attend(q, k, v, mask, worth)]
    out, lse = attend(
        repeat(q, "b f s n k -> (b p) f s n k", p=parts),
        *(rearrange(a, "b (p r) s g k -> (b p) r s g k", p=parts) for a in (k, v)),
        rearrange(mask, "b f (p r) -> (b p) f r", p=parts),
        jax.tree.map(lambda a: rearrange(a, "b (p r) s g -> (b p) r s g", p=parts), worth),
    )
    outs, sums = (jnp.moveaxis(a.reshape(-1, parts, *a.shape[1:]), 1, 0) for a in (out, lse))
    return list(zip(outs, sums, strict=True))
