"""recompute: the frames of the published program, which computes its whole window anew in every pass; to compare with."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wm_jax.ports.open_oasis import schedule, transformer
from wm_jax.ports.open_oasis.config import OasisConfig
from wm_jax.types import Params


@functools.partial(jax.jit, static_argnums=0)
def recompute(
    config: OasisConfig,
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
    past = config.transformer.window_frames
    prompt, ahead = latents.shape[1], ((0, 0), (past, 0))
    # Frames before the first one, which are of another segment and so nobody sees them.
    segment = jnp.pad(jnp.zeros((latents.shape[0], prompt + noise.shape[1]), jnp.int32), ahead, constant_values=1)
    actions = jnp.pad(actions.astype(jnp.float32), (*ahead, (0, 0)))
    window = jnp.pad(latents, (*ahead, (0, 0), (0, 0), (0, 0)))[:, -past:]

    def next_one(window, i):
        def cut(line):
            return jax.lax.dynamic_slice_in_dim(line, prompt + i, past + 1, axis=1)

        latent = _next_of_window(config, params["transformer"], window, cut(actions), noise[:, i], cut(segment))
        return jnp.concatenate([window[:, 1:], latent[:, None]], axis=1), latent

    _, made = jax.lax.scan(next_one, window, jnp.arange(noise.shape[1]))
    return jnp.moveaxis(made, 0, 1)


def _next_of_window(config: OasisConfig, weights: Params, window, actions, noise, segment):
    timestep, share, to = (jnp.asarray(part) for part in schedule.passes(config.timesteps, config.steps))
    labels = jnp.full(window.shape[:2], config.context_timestep, jnp.int32)

    def denoise(latent, i):
        both = jnp.concatenate([window, latent[:, None]], axis=1)
        here = jnp.concatenate([labels, jnp.full_like(labels[:, :1], timestep[i])], axis=1)
        v = transformer.denoise_window(config, weights, both, here, actions, segment)
        return schedule.update(latent, v[:, -1], share[i], to[i]), None

    start = jnp.clip(noise, -config.noise_limit, config.noise_limit)
    return jax.lax.scan(denoise, start, jnp.arange(config.steps))[0]
