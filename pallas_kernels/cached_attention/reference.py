"""The meaning of cached_attention, in plain jax.numpy."""

import jax.numpy as jnp

from pallas_kernels.softmax_attention import attend_frames, is_narrow, widened


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


def cached_attention(q, k, v, ring_k, ring_v, ring_age, is_block_seen, sink, ring_scale, *, window_frames, is_per_site):
    mask = visible(ring_age, is_block_seen, window_frames)
    if is_narrow(ring_k):
        ring_k, ring_v = widened(ring_k, ring_v, ring_scale, k.dtype)
    keys = jnp.concatenate([ring_k.astype(k.dtype), k], axis=1)
    values = jnp.concatenate([ring_v.astype(v.dtype), v], axis=1)
    return attend_frames(q, keys, values, mask, sink, is_per_site)
