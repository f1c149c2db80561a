"""The meaning of block_causal_attention, in plain jax.numpy."""

import jax.numpy as jnp

from pallas_kernels.softmax_attention import attend_frames


def frame_mask(segment, window_frames):
    """`Bool[b t u]`: frame t may see frame u: same segment, not later, at most `window_frames` older."""
    frames = segment.shape[1]
    age = jnp.arange(frames)[:, None] - jnp.arange(frames)[None, :]
    near = (age >= 0) & (age <= window_frames)
    return near[None] & (segment[:, :, None] == segment[:, None, :])


def sink_mask(segment, window_frames, sinks):
    """`Bool[b t u]` over the first `sinks` frames: same segment and already out of the window."""
    age = jnp.arange(segment.shape[1])[:, None] - jnp.arange(sinks)[None, :]
    return (age > window_frames)[None] & (segment[:, :, None] == segment[:, None, :sinks])


def block_causal_attention(q, k, v, segment, q_sink, k_sink, *, window_frames, is_per_site):
    sink = None
    if k_sink is not None:
        sinks = k_sink.shape[1]
        sink = (q_sink, k_sink, v[:, :sinks], sink_mask(segment, window_frames, sinks))
    return attend_frames(q, k, v, frame_mask(segment, window_frames), sink, is_per_site)
