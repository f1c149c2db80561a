"""The meaning of block_causal_attention, in plain jax.numpy."""

import jax.numpy as jnp

from pallas_kernels.softmax_attention import attend_frames, softmax_attention


def times(frames, drafts):
    """`Int[t]`: when each frame is; the drafts are the second half and stand at the times of the first."""
    return jnp.arange(frames) % (frames - drafts)


def frame_mask(segment, window_frames, drafts=0):
    """`Bool[b t u]`: frame t may see frame u: itself, or one of its segment, earlier by at most `window_frames`, no
    draft."""
    frames = segment.shape[1]
    time = times(frames, drafts)
    age = time[:, None] - time[None, :]
    earlier = (age > 0) & (age <= window_frames) & (jnp.arange(frames) < frames - drafts)[None, :]
    near = earlier | jnp.eye(frames, dtype=bool)
    return near[None] & (segment[:, :, None] == segment[:, None, :])


def sink_mask(segment, window_frames, sinks, drafts=0):
    """`Bool[b t u]` over the first `sinks` frames: same segment and already out of the window."""
    age = times(segment.shape[1], drafts)[:, None] - jnp.arange(sinks)[None, :]
    return (age > window_frames)[None] & (segment[:, :, None] == segment[:, None, :sinks])


def block_causal_attention(q, k, v, segment, q_sink, k_sink, *, window_frames, is_per_site, drafts=0):
    if q.shape[1] == 1 and k_sink is None and not is_per_site:
        return softmax_attention(q, k, v, None)  # a frame alone sees all of itself
    sink = None
    if k_sink is not None:
        sinks = k_sink.shape[1]
        sink = (q_sink, k_sink, v[:, :sinks], sink_mask(segment, window_frames, sinks, drafts))
    return attend_frames(q, k, v, frame_mask(segment, window_frames, drafts), sink, is_per_site)
