"""cached_attention by any platform's flash kernels: the ring, the frames in flight and the sinks each by one call, joined;
no copy of the ring."""

from typing import Any

from pallas_kernels.cached_attention.reference import visible
from pallas_kernels.frame_flash import Kernels, frame_flash, join


def cached_attention(
    kernels: Kernels, q: Any, k: Any, v: Any, ring_k: Any, ring_v: Any, ring_age: Any, is_block_seen: Any, sink: Any,
    *, window_frames: int, interpret: Any,
) -> Any:  # fmt: skip
    mask, length, frames = visible(ring_age, is_block_seen, window_frames), ring_k.shape[1], q.shape[1]
    parts = [
        (q, ring_k.astype(k.dtype), ring_v.astype(v.dtype), mask[..., :length]),
        (q, k, v, mask[..., length:]),
        *([sink] if sink is not None else []),
    ]
    return join(
        [
            frame_flash(kernels, *part, most_seen=part[3].shape[2], most_seen_by=frames, interpret=interpret)
            for part in parts
        ]
    )
