"""The last r frames of every layer that looks back: a circular buffer over frames, each row at its own time.

The latents of the newest few frames stay beside it. Keys are kept turned by the id of their frame, so that reading turns only the
queries; turning has a period, and `rebase` keeps the ids small by moving them by whole periods without touching a key.
"""

import dataclasses
import math

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wm_jax.dynamics.config import DynamicsConfig
from wm_jax.nn.rope import PERIOD, rotate_frames

NEVER = -(2**30)
TIME_BASE = 100.0


@flax.struct.dataclass
class RingCache:
    """Keys and values of past frames, batched over slots b.

    Attributes:
      keys: Normalised, turned by their frame's id. Entry `id % r` holds frame `id`.
      values: As projected.
      sink_keys: Those of the first z frames of the session, kept for ever, not turned.
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

    `keys` are not turned yet. `latents` are those the keys and values came from. A row whose `is_written` is False
    keeps every bit of its entries and its clock.
    """
    ring = cache.frame.shape[1]
    assert keys.shape[2] <= ring, f"{keys.shape[2]} frames do not fit a ring of {ring}"
    rows = jnp.arange(cache.next.shape[0])
    for i in range(keys.shape[2]):
        slot = cache.next % ring
        cache = dataclasses.replace(
            cache,
            keys=_put(cache.keys, turned(keys[:, :, i], cache.next[None, :, None]), rows, slot, is_written),
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


def turned(x: Float[Array, "*b n k"], frame: Int[Array, "*#b"]) -> Float[Array, "*b n k"]:
    """Queries or keys as those of this frame: what meets depends on the difference of the two ids."""
    return rotate_frames(x, frame, TIME_BASE)


def largest_id(ring: int) -> int:
    """Bound of the frame ids of a ring that is rebased after every frame."""
    return math.lcm(PERIOD, ring) + 2 * ring


def rebase(cache: RingCache) -> RingCache:
    """The same cache with small frame ids: rows beyond `largest_id` go back by periods that are whole turns of the ring too.

    Exact: slots, ages and keys stay as they are. At least two turns of history remain, so sinks stay sinks.
    """
    ring = cache.frame.shape[1]
    by = jnp.where(cache.next >= largest_id(ring), math.lcm(PERIOD, ring), 0)
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
