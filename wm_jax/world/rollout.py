"""rollout: many steps under given controls, one compiled scan of the very same step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8

from wm_jax.types import Controls, Params
from wm_jax.world.playable import Playable, State
from wm_jax.world.slots import empty
from wm_jax.world.state import WorldState
from wm_jax.world.step import advance, check_controls
from wm_jax.world.world import World


def rollout(
    world: Playable[State], params: Params, state: State, controls: Controls
) -> tuple[State, UInt8[Array, "b t h w 3"]]:
    """t frames under `controls` (`keys[b t keys]`); equals t calls of `step`. The state is donated.

    Raises:
      ValueError: the controls have another number of keys or rows than the world and its state.
    """
    length = controls.keys.shape[1] if controls.keys.ndim == 3 else -1
    return _rollout(world, params, state, check_controls(world, controls, state.frame.shape[0], length))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _rollout(world: Playable[State], params: Params, state: State, controls: Controls):
    active = jnp.ones(state.frame.shape, bool)

    def body(state, held):
        return advance(world, params, state, held, active)

    state, frames = jax.lax.scan(body, state, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), controls))
    return state, jnp.moveaxis(frames, 0, 1)


def predict_next(
    world: World, params: Params, frames: UInt8[Array, "b t h w 3"], controls: Controls, key: jax.Array
) -> UInt8[Array, "b t h w 3"]:
    """Teacher forcing: frame t as the world dreams it from the true frames before t, by the step that is played."""
    controls = check_controls(world, controls, *frames.shape[:2])
    return _predict_next(world, params, frames, controls.keys, empty(world, frames.shape[0], key))


@functools.partial(jax.jit, static_argnums=0)
def _predict_next(world: World, params: Params, frames, keys, state: WorldState):
    autoencoder = world.model(params).autoencoder
    active = jnp.ones(state.frame.shape, bool)

    def body(state, inputs):
        truth, held = inputs
        after, guess = advance(world, params, state, Controls(held), active)
        _, decoder = world.model(params).autoencoder.decode(truth[:, None], state.decoder)
        return dataclasses.replace(after, latent=truth, decoder=decoder), guess

    latents = autoencoder.encode(frames)
    _, guesses = jax.lax.scan(body, state, (jnp.moveaxis(latents, 1, 0), jnp.moveaxis(keys, 1, 0)))
    return jnp.moveaxis(guesses, 0, 1)
