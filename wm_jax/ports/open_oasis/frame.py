"""The one path of a frame of Oasis, from an action to a latent, and what a prompt leaves behind; both inside a trace."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from wm_jax.autoencoder.autoencoder import to_bytes, to_unit
from wm_jax.ports.open_oasis import autoencoder, ring, schedule, transformer
from wm_jax.ports.open_oasis.config import OasisConfig
from wm_jax.ports.open_oasis.state import OasisState
from wm_jax.types import Params


def next_latent(
    config: OasisConfig,
    params: Params,
    state: OasisState,
    actions: Float[Any, "b a"],
    active: Bool[Any, " b"],
    noise: Float[Array, "b y x c"],
) -> OasisState:
    """Commit the newest frame and denoise the next in one pass, then denoise on. Draws nothing."""
    weights = params["transformer"]
    passes = schedule.plan(config.timesteps, config.steps, config.solver)
    modulation = _modulation(config, weights, state.action, actions, passes.timestep)
    is_pending, newest = state.frame > 0, jnp.maximum(state.frame - 1, 0)
    latent = jnp.clip(noise, -config.noise_limit, config.noise_limit)
    v, (keys, values) = transformer.denoise(
        config,
        weights,
        jnp.stack([state.latent, latent], axis=1),
        modulation.of(slice(0, 2)),
        state.past,
        newest,
        newest[:, None] + jnp.arange(2, dtype=jnp.int32),
        jnp.stack([is_pending, jnp.ones_like(is_pending)], axis=1),
    )
    past = ring.write(state.past, keys[:, :, 0], values[:, :, 0], newest, is_pending & active)
    following, here = newest + is_pending.astype(jnp.int32), newest[:, None] + 1
    alone = jnp.ones((len(newest), 1), bool)

    def denoise_on(carry, i):
        (latent, before), rows = carry, modulation.of(i + 1)
        v, _ = transformer.denoise(config, weights, latent[:, None], rows, past, following, here, alone)
        return schedule.solve(config.solver, latent, v[:, 0], passes.of(i), before), None

    first = schedule.solve(config.solver, latent, v[:, 1], passes.of(0), None)
    (latent, _), _ = jax.lax.scan(denoise_on, first, jnp.arange(1, config.steps))
    return dataclasses.replace(
        state,
        past=past,
        latent=jnp.where(active[:, None, None, None], latent, state.latent),
        action=jnp.where(active[:, None], actions, state.action),
        frame=state.frame + active.astype(jnp.int32),
    )


def see_latents(
    config: OasisConfig,
    params: Params,
    latents: Float[Array, "b p y x c"],
    actions: Float[Array, "b p a"],
    state: OasisState,
) -> OasisState:
    """The state after a prompt: all its frames but the last enter the ring, the last one is pending."""
    past, length = state.past, latents.shape[1]
    if length > 1:
        past = _commit(config, params["transformer"], latents[:, :-1], actions[:, :-1], past)
    frame = jnp.full_like(state.frame, length)
    return dataclasses.replace(state, past=past, latent=latents[:, -1], action=actions[:, -1], frame=frame)


def encode(config: OasisConfig, params: Params, frames: UInt8[Array, "b t h w 3"]) -> Float[Array, "b t y x c"]:
    """Frames as the latents that the transformer knows."""
    return autoencoder.encode(config.autoencoder, params["autoencoder"], to_unit(frames)) * config.latent_scale


def decode(config: OasisConfig, params: Params, latents: Float[Array, "b t y x c"]) -> UInt8[Array, "b t h w 3"]:
    """The transformer's latents as frames."""
    return to_bytes(autoencoder.decode(config.autoencoder, params["autoencoder"], latents / config.latent_scale))


def _modulation(config: OasisConfig, weights: Params, before, actions, timestep) -> transformer.Modulation:
    """Of the newest frame as it is committed, and of the next one in each of its passes."""
    labels = jnp.concatenate([jnp.asarray([config.context_timestep], jnp.int32), timestep])
    passes = jnp.broadcast_to(actions[:, None], (actions.shape[0], len(timestep), actions.shape[1]))
    return transformer.modulate(config, weights, labels[None], jnp.concatenate([before[:, None], passes], axis=1))


def _commit(config: OasisConfig, weights: Params, latents, actions, past: ring.Ring) -> ring.Ring:
    """An empty ring with the first frames of a session."""
    batch, length = latents.shape[:2]
    labels = jnp.full((1, length), config.context_timestep, jnp.int32)
    frame = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    modulation, seen = transformer.modulate(config, weights, labels, actions), jnp.ones((batch, length), bool)
    none = jnp.zeros((batch,), jnp.int32)
    _, (keys, values) = transformer.denoise(config, weights, latents, modulation, past, none, frame, seen)
    for i in range(length):
        past = ring.write(past, keys[:, :, i], values[:, :, i], frame[:, i], seen[:, i])
    return past
