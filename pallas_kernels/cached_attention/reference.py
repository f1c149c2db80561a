"""The meaning of cached_attention, in plain jax.numpy."""

import jax.numpy as jnp
from einops import rearrange, repeat

from pallas_kernels.softmax_attention import softmax_attention


def visible(ring_age, is_block_seen, window_frames):
    """`Bool[b f r+f]`: what frame i of the block may see, ring entries first, then the block itself, causally.

    `ring_age` counts from the first frame of the block, so frame i sees an entry at age `ring_age + i`.
    """
    frames = is_block_seen.shape[1]
    later = jnp.arange(frames)
    age = ring_age[:, None, :] + later[None, :, None]
    in_ring = (ring_age[:, None, :] > 0) & (age <= window_frames)
    between = later[:, None] - later[None, :]
    itself = between == 0
    in_block = ((between >= 0) & (between <= window_frames))[None] & (is_block_seen[:, None, :] | itself[None])
    return jnp.concatenate([in_ring, in_block], axis=-1)


def cached_attention(q, k, v, ring_k, ring_v, ring_age, is_block_seen, sink, *, window_frames, is_per_site):
    mask = visible(ring_age, is_block_seen, window_frames)
    keys = jnp.concatenate([ring_k.astype(k.dtype), k], axis=1)
    values = jnp.concatenate([ring_v.astype(v.dtype), v], axis=1)
    if is_per_site:
        by_site = lambda a: rearrange(a, "b t s n k -> b s t n k")
        extra = None if sink is None else (*(by_site(a) for a in sink[:3]), sink[3][:, None])
        out = softmax_attention(by_site(q), by_site(keys), by_site(values), mask[:, None], extra)
        return rearrange(out, "b s t n k -> b t s n k")
    s = q.shape[2]
    flat = lambda a: rearrange(a, "b t s n k -> b (t s) n k")
    wide = lambda m: repeat(m, "b t u -> b (t s) (u z)", s=s, z=s)
    extra = None if sink is None else (*(flat(a) for a in sink[:3]), wide(sink[3]))
    out = softmax_attention(flat(q), flat(keys), flat(values), wide(mask), extra)
    return rearrange(out, "b (t s) n k -> b t s n k", s=s)
