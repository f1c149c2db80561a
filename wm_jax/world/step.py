"""start, step: the one path of a frame, from held keys to pixels."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from wm_jax.autoencoder.autoencoder import LATENT_LIMIT, to_bytes
from wm_jax.dynamics import ring_cache
from wm_jax.samplers import mix, sample
from wm_jax.types import Controls, Params, Prompt
from wm_jax.world.state import WorldState, check_key, empty
from wm_jax.world.world import World


@flax.struct.dataclass
class Noise:
    """All the randomness of one frame, as arrays: the compiled core draws nothing.

    Attributes:
      context: Blurs the newest frame as it enters the cache.
      frame: What the next frame is denoised from.
    """

    context: Float[Array, "b y x c"]
    frame: Float[Array, "b y x c"]


def start(world: World, params: Params, prompt: Prompt, key: jax.Array) -> WorldState:
    """A state that has seen the prompt; `step` then gives the frame after it (the first one without a prompt).

    `key` is one typed key (`jax.random.key`), folded per row, or one key a row; without a prompt there are as many rows
    as keys.

    Raises:
      ValueError: frames of another size or dtype, controls of another width or length or without frames, too many
        frames, an untyped key, another number of keys than of rows.
    """
    if prompt.frames is None:
        if prompt.controls is not None:
            raise ValueError("the prompt has controls and no frames: give the frames they led to, or an empty Prompt()")
        return empty(world, check_key(key) or 1, key)
    frames, keys, is_known = _check_prompt(world, prompt)
    return _start(world, params, frames, keys, is_known, empty(world, frames.shape[0], key))


def step(
    world: World,
    params: Params,
    state: WorldState,
    controls: Controls,
    active: Bool[Array, " b"] | None = None,
) -> tuple[WorldState, UInt8[Array, "b h w 3"]]:
    """The next frame of every active session, in one compiled call on donated state.

    A session that is not active keeps its state, key and clock to the bit; its frame means nothing.

    Raises:
      ValueError: the controls have another number of keys or rows than the world and its state, or `active` has.
    """
    keys = check_keys(world, controls.keys, state.frame.shape[0])
    active = jnp.ones(state.frame.shape, bool) if active is None else _check_active(active, state.frame.shape[0])
    return compiled_step(world, params, state, keys, active)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def compiled_step(world: World, params: Params, state: WorldState, keys, active):
    """`step` after its checks: what an engine lowers and compiles ahead of time."""
    return advance(world, params, state, keys, active)


def advance(world: World, params: Params, state: WorldState, keys, active):
    """Draws the noise of each row from its own key, then computes the frame; used by `step` and by `rollout`."""
    noise, key = draw(world, state.key)
    new, frame = next_frame(world, params, state, keys, active, noise)
    kept = jax.random.key_data(state.key), jax.random.key_data(key)
    data = jnp.where(active[:, None], kept[1], kept[0])
    return dataclasses.replace(new, key=jax.random.wrap_key_data(data, impl=jax.random.key_impl(state.key))), frame


def draw(world: World, key: jax.Array) -> tuple[Noise, jax.Array]:
    """The noise of one frame for each row, and the keys of the frame after."""
    pairs = jax.vmap(jax.random.split)(key)
    shape = (2, *world.config.latent_shape)
    noise = jax.vmap(lambda k: jax.random.normal(k, shape, jnp.float32))(pairs[:, 1])
    return Noise(context=noise[:, 0], frame=noise[:, 1]), pairs[:, 0]


def next_frame(world: World, params: Params, state: WorldState, keys, active, noise: Noise):
    """The core: commit the newest frame and denoise the next in one pass, denoise on, decode. Draws nothing."""
    model, config = world.model(params), world.config.dynamics
    steps = world.config.sampler.steps
    stride = steps.bit_length() - 1
    remembered = mix(noise.context, state.latent, config.context_index / config.levels)
    both = model.embedder(
        jnp.stack([state.held, keys], axis=1), jnp.stack([state.is_known, jnp.ones_like(active)], axis=1)
    )
    clean, (k, v) = model.dynamics.denoise(
        jnp.stack([remembered, noise.frame], axis=1),
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

    latent = jnp.clip(sample(predict, noise.frame, steps, first=clean[:, 1]), -LATENT_LIMIT, LATENT_LIMIT)
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


def check_keys(world: World, keys: Any, *rows: int) -> jax.Array:
    """Keys as booleans `[*rows, keys]`, or a refusal that names both sides."""
    keys = jnp.asarray(keys)
    known = world.config.controls
    if keys.shape[-1:] != (len(known.keys),):
        raise ValueError(
            f"controls have {keys.shape[-1] if keys.ndim else 0} keys, world {world.config.name!r} has "
            f"{len(known.keys)}: {', '.join(known.codes)}"
        )
    if keys.shape[:-1] != tuple(rows):
        raise ValueError(f"controls are {keys.shape}, this state wants {(*rows, len(known.keys))}")
    return keys.astype(bool)


def _check_active(active: Any, rows: int) -> jax.Array:
    """As booleans `[rows]`, or a refusal that names both sides."""
    active = jnp.asarray(active)
    if active.shape != (rows,):
        raise ValueError(f"active is {active.shape}, this state has {rows} rows: it wants {(rows,)}")
    # Integers are the same to `where`, but would turn the flags of the state into integers.
    return active.astype(bool)


def _check_prompt(world: World, prompt: Prompt):
    config, frames = world.config, jnp.asarray(prompt.frames)
    if frames.ndim != 5 or frames.shape[2:] != (*config.image, 3) or frames.dtype != jnp.uint8:
        raise ValueError(
            f"prompt frames are {frames.dtype}{list(frames.shape)}, world {config.name!r} wants "
            f"uint8[b, p, {config.image[0]}, {config.image[1]}, 3]"
        )
    longest = config.dynamics.window_frames + 1
    if not 1 <= frames.shape[1] <= longest:
        raise ValueError(f"the prompt has {frames.shape[1]} frames, world {config.name!r} takes 1 to {longest}")
    is_known = jnp.full(frames.shape[:2], prompt.controls is not None)
    if prompt.controls is None:
        return frames, jnp.zeros((*frames.shape[:2], len(config.controls.keys)), bool), is_known
    return frames, check_keys(world, prompt.controls.keys, *frames.shape[:2]), is_known


def start_noised(
    world: World, params: Params, prompt: Prompt, state: WorldState, noise: Float[Array, "b p y x c"] | None
) -> WorldState:
    """`start` without drawing: `noise` blurs the frames of the prompt as they are remembered; `state` is an empty one.

    Raises:
      ValueError: as `start`.
    """
    if prompt.frames is None or noise is None:
        return state
    return _see(world, params, *_check_prompt(world, prompt), state, noise)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=5)
def _start(world: World, params: Params, frames, keys, is_known, state: WorldState) -> WorldState:
    shape = (frames.shape[1], *world.config.latent_shape)
    noise, key = jax.vmap(lambda k: _prompt_noise(k, shape))(state.key)
    return dataclasses.replace(_see(world, params, frames, keys, is_known, state, noise), key=key)


def _see(world: World, params: Params, frames, keys, is_known, state: WorldState, noise) -> WorldState:
    """Encodes the prompt; all but its last frame enter the cache, the last one is pending."""
    model, config = world.model(params), world.config.dynamics
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


def _prompt_noise(key, shape):
    ours, next_key = jax.random.split(key)
    return jax.random.normal(ours, shape, jnp.float32), next_key


def _where(active, new, old):
    def choose(a, b):
        return jnp.where(active.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)


def pick_prompt(prompts: Prompt, seed: int) -> Prompt:
    """One row (b = 1) of a world's prompts by seed; the empty prompt where there are none."""
    if prompts.frames is None:
        return prompts
    row = int(np.random.default_rng(seed).integers(len(prompts.frames)))
    return jax.tree.map(lambda leaf: leaf[row : row + 1], prompts)
