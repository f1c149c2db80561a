"""block_causal_attention by any platform's flash kernels: the frames near by, and the sinks joined to them."""

from typing import Any

from pallas_kernels.block_causal_attention.reference import frame_mask, sink_mask
from pallas_kernels.frame_flash import Kernels, frame_flash, join


def block_causal_attention(
    kernels: Kernels, q: Any, k: Any, v: Any, segment: Any, q_sink: Any, k_sink: Any, *,
    window_frames: int, drafts: int, interpret: Any,
) -> Any:  # fmt: skip
    near = frame_flash(
        kernels, q, k, v, frame_mask(segment, window_frames, drafts), most_seen=window_frames + 1,
        # A frame is seen by those after it, and with drafts by as many drafts.
        most_seen_by=window_frames + 1 + (window_frames if drafts else 0), interpret=interpret,
    )  # fmt: skip
    if k_sink is None:
        return near[0]
    sinks = k_sink.shape[1]
    far = frame_flash(
        kernels, q_sink, k_sink, v[:, :sinks], sink_mask(segment, window_frames, sinks, drafts), most_seen=sinks,
        most_seen_by=q.shape[1], interpret=interpret,
    )  # fmt: skip
    return join([near, far])
