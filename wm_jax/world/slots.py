"""How sessions are seated in a batch: rows of one state, whichever world they dream."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from wm_jax.world.playable import Playable, PlayableState, State


def empty(world: Playable[State], batch: int = 1, key: jax.Array | None = None) -> State:
    """A batch of slots that have shown nothing yet; each row gets its own fold of `key`, or its own of `batch` keys.

    Raises:
      ValueError: the key is untyped, or there is another number of keys than of rows.
    """
    key = jax.random.key(0) if key is None else key
    if check_key(key) not in (None, batch):
        raise ValueError(f"there are {key.shape[0]} keys for {batch} rows: give one key, or one a row")
    # A copy: the state is donated with every step, the caller's keys are not ours to give away.
    own = jnp.copy(key) if key.ndim else jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(batch))
    return world.empty(batch, own)


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


def rekeyed(state: State, data: UInt32[Array, "b w"]) -> State:
    """The state with the keys that these numbers are, of the kind that it has."""
    return dataclasses.replace(state, key=jax.random.wrap_key_data(data, impl=jax.random.key_impl(state.key)))


def put(state: State, slot: Int[Array, ""] | int, one: State) -> State:
    """The batch, donated, with this one session (b = 1) seated in `slot`; whoever sat there is forgotten.

    Raises:
      ValueError: `one` is not one session, or there is no such slot.
    """
    if one.key.shape[0] != 1:
        raise ValueError(f"put seats one session at a time, here are {one.key.shape[0]}: take(states, i) gives one")
    _check_slot(slot, state)
    return _put(state, slot, one)


def _check_slot(slot: Any, state: PlayableState) -> None:
    # A traced slot is not known here; out of range it would be clamped.
    if isinstance(slot, (int, np.integer)) and not 0 <= slot < state.key.shape[0]:
        raise ValueError(f"slot is {slot}; this batch has the slots 0 to {state.key.shape[0] - 1}")


@functools.partial(jax.jit, donate_argnums=0)
def _put(state: State, slot: Any, one: State) -> State:
    return put_rows(state, [slot], one)


def put_rows(state: State, rows: Any, part: State) -> State:
    """The batch with these rows of it replaced by those of `part`; traced, and the rows are all different."""

    # Slices, not `.at[rows].set`: Trainium's compiler takes no scatter of integers.
    def seat(leaf, new, axis):
        for index in range(part.key.shape[0]):
            one = jax.lax.slice_in_dim(new, index, index + 1, axis=axis).astype(leaf.dtype)
            leaf = jax.lax.dynamic_update_slice_in_dim(leaf, one, rows[index], axis)
        return leaf

    data = seat(jax.random.key_data(state.key), jax.random.key_data(part.key), 0)
    plain, new = dataclasses.replace(state, key=None), dataclasses.replace(part, key=None)
    return rekeyed(dataclasses.replace(jax.tree.map(seat, plain, new, plain.slot_axes()), key=state.key), data)


def take(state: State, slot: Int[Array, ""] | int) -> State:
    """The session in `slot` as a batch of one; the batch itself is left as it is.

    Raises:
      ValueError: there is no such slot.
    """
    _check_slot(slot, state)
    return _take(state, slot)


@jax.jit
def _take(state: State, slot: Any) -> State:
    return take_rows(state, [slot])


def take_rows(state: State, rows: Any) -> State:
    """These rows of the batch, in this order, as a batch of their own; traced."""

    def lift(leaf, axis):
        parts = [jax.lax.dynamic_slice_in_dim(leaf, row, 1, axis) for row in rows]
        return jnp.concatenate(parts, axis) if len(parts) > 1 else parts[0]

    data = lift(jax.random.key_data(state.key), 0)
    plain = dataclasses.replace(state, key=None)
    lifted = jax.tree.map(lift, plain, plain.slot_axes())
    return rekeyed(dataclasses.replace(lifted, key=state.key), data)
