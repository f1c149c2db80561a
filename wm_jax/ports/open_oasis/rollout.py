"""rollout: many steps under given actions, one compiled scan of the very same step; recompute: the published program."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from wm_jax.ports.open_oasis import schedule, transformer
from wm_jax.ports.open_oasis.state import OasisState
from wm_jax.ports.open_oasis.step import advance, check_actions
from wm_jax.ports.open_oasis.world import OasisWorld
from wm_jax.types import Params


def rollout(
    world: OasisWorld, params: Params, state: OasisState, actions: Float[Any, "b t a"]
) -> tuple[OasisState, UInt8[Array, "b t h w 3"]]:
    """t frames under `actions`; equals t calls of `step`. The state is donated.

    Raises:
      ValueError: the actions have another number of columns or rows than the world and its state.
    """
    length = actions.shape[1] if actions.ndim == 3 else -1
    return _rollout(world, params, state, check_actions(world, actions, state.frame.shape[0], length))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _rollout(world: OasisWorld, params: Params, state: OasisState, actions):
    active = jnp.ones(state.frame.shape, bool)

    def body(state, action):
        return advance(world, params, state, action, active)

    state, frames = jax.lax.scan(body, state, jnp.moveaxis(actions, 1, 0))
    return state, jnp.moveaxis(frames, 0, 1)


@functools.partial(jax.jit, static_argnums=0)
def recompute(
    world: OasisWorld,
    params: Params,
    latents: Float[Array, "b p y x c"],
    actions: Float[Any, "b q a"],
    noise: Float[Array, "b t y x c"],
) -> Float[Array, "b t y x c"]:
    """The t latents after the prompt as the published program makes them: every pass recomputes the whole window.

    To compare with, not to play: a step costs as many frames more as the window is long. `actions` are those of the
    prompt and of the new frames, q = p + t. It equals the ring until the window slides; from then on the oldest frames of
    a recomputed window have lost their own past, which a ring's have not.
    """
    past = world.config.transformer.window_frames
    prompt, ahead = latents.shape[1], ((0, 0), (past, 0))
    # Frames before the first one, which are of another segment and so nobody sees them.
    segment = jnp.pad(jnp.zeros((latents.shape[0], prompt + noise.shape[1]), jnp.int32), ahead, constant_values=1)
    actions = jnp.pad(actions.astype(jnp.float32), (*ahead, (0, 0)))
    window = jnp.pad(latents, (*ahead, (0, 0), (0, 0), (0, 0)))[:, -past:]

    def next_one(window, i):
        def cut(line):
            return jax.lax.dynamic_slice_in_dim(line, prompt + i, past + 1, axis=1)

        latent = _next_of_window(world, params["transformer"], window, cut(actions), noise[:, i], cut(segment))
        return jnp.concatenate([window[:, 1:], latent[:, None]], axis=1), latent

    _, made = jax.lax.scan(next_one, window, jnp.arange(noise.shape[1]))
    return jnp.moveaxis(made, 0, 1)


def _next_of_window(world: OasisWorld, weights: Params, window, actions, noise, segment):
    config = world.config
    timestep, share, to = (jnp.asarray(part) for part in schedule.passes(config.timesteps, config.steps))
    labels = jnp.full(window.shape[:2], config.context_timestep, jnp.int32)

    def denoise(latent, i):
        both = jnp.concatenate([window, latent[:, None]], axis=1)
        here = jnp.concatenate([labels, jnp.full_like(labels[:, :1], timestep[i])], axis=1)
        v = transformer.denoise_window(config, weights, both, here, actions, segment)
        return schedule.update(latent, v[:, -1], share[i], to[i]), None

    start = jnp.clip(noise, -config.noise_limit, config.noise_limit)
    return jax.lax.scan(denoise, start, jnp.arange(config.steps))[0]
