"""All that one session remembers, and how sessions are seated in a batch."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from wm_jax.autoencoder import DecoderState
from wm_jax.autoencoder.autoencoder import start_decoder
from wm_jax.dynamics import RingCache, ring_cache
from wm_jax.dynamics.transformer import tokens_per_frame
from wm_jax.world.world import World


@flax.struct.dataclass
class WorldState:
    """All that one session remembers between frames, batched over slots b (axis 0; axis 1 in the cache).

    Attributes:
      cache: Keys and values of the last r frames, the newest frame not yet among them.
      decoder: What the streaming decoder carries over.
      latent: The newest frame, clean; it enters the cache together with the next frame's first pass.
      held: The controls that led to it.
      is_known: Whether those controls were known.
      is_pending: Whether there is a newest frame at all.
      frame: Index of the next frame, 0 at start.
      key: Random key of the session; a session's dreams do not depend on its neighbours.
    """

    cache: RingCache
    decoder: DecoderState
    latent: Float[Array, "b y x c"]
    held: Bool[Array, "b keys"]
    is_known: Bool[Array, " b"]
    is_pending: Bool[Array, " b"]
    frame: Int[Array, " b"]
    key: Key[Array, " b"]


def empty(world: World, batch: int = 1, key: jax.Array | None = None) -> WorldState:
    """A batch of slots that have shown nothing yet; each row gets its own fold of `key`, or its own of `batch` keys.

    Raises:
      ValueError: the key is untyped, or there is another number of keys than of rows.
    """
    config = world.config
    cells = (config.grid[0] // config.dynamics.patch, config.grid[1] // config.dynamics.patch)
    key = jax.random.key(0) if key is None else key
    if check_key(key) not in (None, batch):
        raise ValueError(f"there are {key.shape[0]} keys for {batch} rows: give one key, or one a row")
    return WorldState(
        cache=ring_cache.init(config.dynamics, tokens_per_frame(config.dynamics, cells), config.latent_shape, batch),
        decoder=start_decoder(config.autoencoder, config.image, batch),
        latent=jnp.zeros((batch, *config.latent_shape), jnp.float32),
        held=jnp.zeros((batch, len(config.controls.keys)), bool),
        is_known=jnp.zeros((batch,), bool),
        is_pending=jnp.zeros((batch,), bool),
        frame=jnp.zeros((batch,), jnp.int32),
        # A copy: the state is donated with every step, the caller's keys are not ours to give away.
        key=jnp.copy(key) if key.ndim else jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(batch)),
    )


def check_key(key: Any) -> int | None:
    """How many rows a key is meant for; None for a single key, which is folded for as many as there are.

    Raises:
      ValueError: it is no typed key. The two words of an old-style key would pass for the keys of two rows.
    """
    found = f"{getattr(key, 'dtype', type(key).__name__)}{list(getattr(key, 'shape', ()))}"
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"the key is {found}, not a typed one: make it by jax.random.key(seed), not by PRNGKey(seed)")
    if key.ndim > 1:
        raise ValueError(f"the keys are {found}: give one key, or one a row")
    return key.shape[0] if key.ndim else None


def _slot_axes(state: WorldState) -> WorldState:
    """A tree of the same form that names the slot axis of every leaf."""
    axes = jax.tree.map(lambda _: 0, state)
    layered = ("keys", "values", "sink_keys", "sink_values")
    return dataclasses.replace(axes, cache=dataclasses.replace(axes.cache, **dict.fromkeys(layered, 1)))


def put(state: WorldState, slot: Int[Array, ""] | int, one: WorldState) -> WorldState:
    """The batch, donated, with this one session (b = 1) seated in `slot`; whoever sat there is forgotten.

    Raises:
      ValueError: `one` is not one session, or there is no such slot.
    """
    if one.key.shape[0] != 1:
        raise ValueError(f"put seats one session at a time, here are {one.key.shape[0]}: take(states, i) gives one")
    _check_slot(slot, state)
    return _put(state, slot, one)


def _check_slot(slot: Any, state: WorldState) -> None:
    # A traced slot is not known here; out of range it would be clamped.
    if isinstance(slot, (int, np.integer)) and not 0 <= slot < state.key.shape[0]:
        raise ValueError(f"slot is {slot}; this batch has the slots 0 to {state.key.shape[0] - 1}")


@functools.partial(jax.jit, donate_argnums=0)
def _put(state: WorldState, slot: Any, one: WorldState) -> WorldState:
    def seat(leaf, new, axis):
        return jax.lax.dynamic_update_slice_in_dim(leaf, new.astype(leaf.dtype), slot, axis)

    # A slice, not `.at[slot].set`: Trainium's compiler takes no scatter of integers.
    data = jax.lax.dynamic_update_slice_in_dim(jax.random.key_data(state.key), jax.random.key_data(one.key), slot, 0)
    keys = jax.random.wrap_key_data(data, impl=jax.random.key_impl(state.key))
    plain = (
        dataclasses.replace(state, key=None),
        dataclasses.replace(one, key=None),
        _slot_axes(dataclasses.replace(state, key=None)),
    )
    return jax.tree.map(seat, *plain).replace(key=keys)


def take(state: WorldState, slot: Int[Array, ""] | int) -> WorldState:
    """The session in `slot` as a batch of one; the batch itself is left as it is.

    Raises:
      ValueError: there is no such slot.
    """
    _check_slot(slot, state)
    return _take(state, slot)


@jax.jit
def _take(state: WorldState, slot: Any) -> WorldState:
    plain = dataclasses.replace(state, key=None)
    lifted = jax.tree.map(
        lambda leaf, axis: jax.lax.dynamic_slice_in_dim(leaf, slot, 1, axis), plain, _slot_axes(plain)
    )
    return dataclasses.replace(lifted, key=state.key[slot][None])
