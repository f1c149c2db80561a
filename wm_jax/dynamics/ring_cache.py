"""The last r frames of every layer that looks back: a circular buffer over frames, each row at its own time.

The latents of the newest few frames stay beside it. Keys are kept unrotated and turned by their age when read, so nothing in the cache depends on how long a session has
run; `rebase` keeps the frame ids small without touching a key.
"""

import dataclasses

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wm_jax.dynamics.config import DynamicsConfig

NEVER = -(2**30)
REBASE_FRAMES = 4096


@flax.struct.dataclass
class RingCache:
    """Keys and values of past frames, batched over slots b.

    Attributes:
      keys: Normalised, unrotated. Entry `id % r` holds frame `id`.
      values: As projected.
      sink_keys: Those of the first z frames of the session, kept for ever.
      sink_values: Likewise.
      recent: Latents of the newest n frames as remembered, the newest last; zeros where there were none.
      frame: Id of the frame in each entry, NEVER where none was written.
      next: Id of the next frame to be written; rows may differ.
    """

    keys: Float[Array, "l b r s g k"]
    values: Float[Array, "l b r s g k"]
    sink_keys: Float[Array, "l b z s g k"]
    sink_values: Float[Array, "l b z s g k"]
    recent: Float[Array, "b n y x c"]
    frame: Int[Array, "b r"]
    next: Int[Array, " b"]


def init(config: DynamicsConfig, tokens_per_frame: int, latent: tuple[int, int, int], batch: int) -> RingCache:
    """A cache in which nothing was written, for latents of shape (y, x, c)."""
    dtype = jnp.dtype(config.dtype)

    def entries(count):
        shape = (config.cached_layers, batch, count, tokens_per_frame, config.kv_heads, config.head_size)
        return jnp.zeros(shape, dtype)

    ring, sinks = config.window_frames, config.sinks
    return RingCache(
        keys=entries(ring),
        values=entries(ring),
        sink_keys=entries(sinks),
        sink_values=entries(sinks),
        recent=jnp.zeros((batch, config.recent_frames, *latent), jnp.float32),
        frame=jnp.full((batch, ring), NEVER, jnp.int32),
        next=jnp.zeros((batch,), jnp.int32),
    )


def ages(cache: RingCache) -> Int[Array, "b r"]:
    """Age of each entry seen from the next frame (1 = just written); 0 where nothing was ever written."""
    return jnp.where(cache.frame == NEVER, 0, cache.next[:, None] - cache.frame)


def write(
    cache: RingCache,
    keys: Float[Array, "l b f s g k"],
    values: Float[Array, "l b f s g k"],
    latents: Float[Array, "b f y x c"],
    is_written: Bool[Array, " b"],
) -> RingCache:
    """The cache with f more frames; each overwrites the entry that is r frames older, and only that.

    `latents` are those the keys and values came from. A row whose `is_written` is False keeps every bit of its entries
    and its clock.
    """
    ring = cache.frame.shape[1]
    assert keys.shape[2] <= ring, f"{keys.shape[2]} frames do not fit a ring of {ring}"
    rows = jnp.arange(cache.next.shape[0])
    for i in range(keys.shape[2]):
        slot = cache.next % ring
        cache = dataclasses.replace(
            cache,
            keys=_put(cache.keys, keys[:, :, i], rows, slot, is_written),
            values=_put(cache.values, values[:, :, i], rows, slot, is_written),
            sink_keys=_put_sink(cache.sink_keys, keys[:, :, i], cache.next, is_written),
            sink_values=_put_sink(cache.sink_values, values[:, :, i], cache.next, is_written),
            recent=_shift(cache.recent, latents[:, i], is_written),
            frame=jnp.where(
                (slot[:, None] == jnp.arange(ring)) & is_written[:, None], cache.next[:, None], cache.frame
            ),
            next=cache.next + is_written.astype(jnp.int32),
        )
    return cache


def rebase(cache: RingCache, limit: int = REBASE_FRAMES) -> RingCache:
    """The same cache with small frame ids: rows that reached `limit` are moved back by whole turns of the ring.

    Exact: slots, ages and keys stay as they are. At least two turns of history remain, so sinks stay sinks.
    """
    ring = cache.frame.shape[1]
    shift = max((limit - 2 * ring) // ring, 0) * ring
    by = jnp.where(cache.next >= limit, shift, 0)
    frame = jnp.where(cache.frame == NEVER, NEVER, cache.frame - by[:, None])
    return dataclasses.replace(cache, frame=frame, next=cache.next - by)


def _put(entries, new, rows, slot, is_written):
    keep = is_written[None, :, None, None, None]
    old = entries[:, rows, slot]
    return entries.at[:, rows, slot].set(jnp.where(keep, new.astype(entries.dtype), old))


def _shift(recent, new, is_written):
    moved = jnp.concatenate([recent[:, 1:], new[:, None]], axis=1)[:, : recent.shape[1]]
    return jnp.where(is_written[:, None, None, None, None], moved, recent)


def _put_sink(entries, new, frame, is_written):
    sinks = entries.shape[2]
    if not sinks:
        return entries
    here = (frame[:, None] == jnp.arange(sinks)) & is_written[:, None]
    return jnp.where(here[None, :, :, None, None, None], new[:, :, None].astype(entries.dtype), entries)
