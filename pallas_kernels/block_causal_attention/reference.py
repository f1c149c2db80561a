"""The meaning of block_causal_attention, in plain jax.numpy."""

import jax.numpy as jnp
from einops import rearrange, repeat

from pallas_kernels.softmax_attention import softmax_attention


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
    mask = frame_mask(segment, window_frames)
    sinks = 0 if k_sink is None else k_sink.shape[1]
    beyond = sink_mask(segment, window_frames, sinks) if sinks else None
    if is_per_site:
        by_site = lambda a: rearrange(a, "b t s n k -> b s t n k")
        extra = (by_site(q_sink), by_site(k_sink), by_site(v[:, :sinks]), beyond[:, None]) if sinks else None
        out = softmax_attention(by_site(q), by_site(k), by_site(v), mask[:, None], extra)
        return rearrange(out, "b s t n k -> b t s n k")
    s = q.shape[2]
    flat = lambda a: rearrange(a, "b t s n k -> b (t s) n k")
    wide = lambda m: repeat(m, "b t u -> b (t s) (u z)", s=s, z=s)
    extra = (flat(q_sink), flat(k_sink), flat(v[:, :sinks]), wide(beyond)) if sinks else None
    out = softmax_attention(flat(q), flat(k), flat(v), wide(mask), extra)
    return rearrange(out, "b (t s) n k -> b t s n k", s=s)
