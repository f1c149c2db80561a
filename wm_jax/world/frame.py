"""The one path of a frame, from held keys to pixels, and what a prompt leaves behind; both inside a trace."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from wm_jax.autoencoder.autoencoder import LATENT_LIMIT, to_bytes
from wm_jax.dynamics import ring_cache
from wm_jax.samplers import mix, sample
from wm_jax.world.config import WorldConfig
from wm_jax.world.model import WorldModel
from wm_jax.world.state import WorldState


def next_frame(
    world: WorldConfig,
    model: WorldModel,
    state: WorldState,
    keys: Bool[Array, "b keys"],
    active: Bool[Array, " b"],
    noise: Float[Array, "b 2 y x c"],
) -> tuple[WorldState, UInt8[Array, "b h w 3"]]:
    """Commit the newest frame and denoise the next in one pass, denoise on, decode. Draws nothing.

    The first noise blurs the newest frame as it enters the cache, the next frame is denoised from the second.
    """
    config, steps = world.dynamics, world.sampler.steps
    stride = steps.bit_length() - 1
    remembered = mix(noise[:, 0], state.latent, config.context_index / config.levels)
    both = model.embedder(
        jnp.stack([state.held, keys], axis=1), jnp.stack([state.is_known, jnp.ones_like(active)], axis=1)
    )
    clean, (k, v) = model.dynamics.denoise(
        jnp.stack([remembered, noise[:, 1]], axis=1),
        jnp.asarray([[config.context_index, 0]]),
        jnp.asarray([[config.stride_rows - 1, stride]]),
        both,
        state.cache,
        jnp.stack([state.is_pending, jnp.ones_like(active)], axis=1),
    )
    cache = ring_cache.write(state.cache, k[:, :, :1], v[:, :, :1], remembered[:, None], state.is_pending & active)
    here = jax.tree.map(lambda leaf: leaf[:, 1:], both)

    def predict(noisy, i):
        level = jnp.asarray([[i * (config.levels // steps)]])
        seen = jnp.ones((noisy.shape[0], 1), bool)
        return model.dynamics.denoise(noisy[:, None], level, jnp.asarray([[stride]]), here, cache, seen)[0][:, 0]

    latent = jnp.clip(sample(predict, noise[:, 1], steps, first=clean[:, 1]), -LATENT_LIMIT, LATENT_LIMIT)
    pixels, decoder = model.autoencoder.decode(latent[:, None], state.decoder)
    new = dataclasses.replace(
        state,
        cache=ring_cache.rebase(cache),
        decoder=_where(active, decoder, state.decoder),
        latent=_where(active, latent, state.latent),
        held=_where(active, keys, state.held),
        is_known=state.is_known | active,
        is_pending=state.is_pending | active,
        frame=state.frame + active.astype(jnp.int32),
    )
    return new, to_bytes(pixels[:, 0])


def see(
    world: WorldConfig,
    model: WorldModel,
    frames: UInt8[Array, "b p h w 3"],
    keys: Bool[Array, "b p keys"],
    is_known: Bool[Array, "b p"],
    state: WorldState,
    noise: Float[Array, "b p y x c"],
) -> WorldState:
    """Encodes the prompt; all but its last frame enter the cache, the last one is pending."""
    config = world.dynamics
    latents = model.autoencoder.encode(frames)
    _, decoder = model.autoencoder.decode(latents, state.decoder)
    remembered = mix(noise, latents, config.context_index / config.levels)
    conditions = model.embedder(keys, is_known)
    cache, rows = state.cache, jnp.ones((frames.shape[0],), bool)
    if frames.shape[1] > 1:
        past = jax.tree.map(lambda leaf: leaf[:, :-1], conditions)
        cache = model.dynamics.commit(remembered[:, :-1], past, cache, rows)
    return dataclasses.replace(
        state,
        cache=cache,
        decoder=decoder,
        latent=latents[:, -1],
        held=keys[:, -1],
        is_known=is_known[:, -1],
        is_pending=rows,
        frame=jnp.full_like(state.frame, frames.shape[1]),
    )


def _where(active, new, old):
    def choose(a, b):
        return jnp.where(active.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)
