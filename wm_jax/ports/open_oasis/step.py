"""start, step: the one path of a frame of Oasis, from an action to pixels."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from wm_jax.autoencoder.autoencoder import to_bytes, to_unit
from wm_jax.ports.open_oasis import autoencoder, ring, schedule, transformer
from wm_jax.ports.open_oasis.state import OasisState, empty
from wm_jax.ports.open_oasis.world import OasisWorld
from wm_jax.types import Params, Prompt
from wm_jax.world.state import check_key


def start(
    world: OasisWorld,
    params: Params,
    prompt: Prompt,
    key: jax.Array,
    actions: Float[Any, "b p a"] | None = None,
) -> OasisState:
    """A state that has seen the prompt; `step` then gives the frame after it (the first one without a prompt).

    `actions` led to the frames of the prompt; zeros where they are not known, as published. `key` is one typed key
    (`jax.random.key`), folded per row, or one key a row; without a prompt there are as many rows as keys.

    Raises:
      ValueError: frames of another size or dtype, too many frames, actions of another shape or as `prompt.controls`, an
        untyped key, another number of keys than of rows.
    """
    if prompt.controls is not None:
        raise ValueError(f"world {world.config.name!r} does not know controls: give start(..., actions=...)")
    if prompt.frames is None:
        return empty(world, check_key(key) or 1, key)
    frames = _check_frames(world, prompt.frames)
    return start_latents(world, params, encode(world, params, frames), key, actions)


def start_latents(
    world: OasisWorld,
    params: Params,
    latents: Float[Array, "b p y x c"],
    key: jax.Array,
    actions: Float[Any, "b p a"] | None = None,
) -> OasisState:
    """`start` for frames that are latents already.

    Raises:
      ValueError: as `start`.
    """
    batch, length = latents.shape[:2]
    longest = world.config.transformer.window_frames + 1
    if not 1 <= length <= longest:
        raise ValueError(f"the prompt has {length} frames, world {world.config.name!r} takes 1 to {longest}")
    if actions is None:
        actions = jnp.zeros((batch, length, world.config.transformer.actions), jnp.float32)
    return _start(world, params, latents, check_actions(world, actions, batch, length), empty(world, batch, key))


def step(
    world: OasisWorld,
    params: Params,
    state: OasisState,
    actions: Float[Any, "b a"],
    active: Bool[Any, " b"] | None = None,
) -> tuple[OasisState, UInt8[Array, "b h w 3"]]:
    """The next frame of every active session, in one compiled call on donated state.

    A session that is not active keeps its state, key and clock to the bit; its frame means nothing.

    Raises:
      ValueError: the actions have another number of columns or rows than the world and its state, or `active` has.
    """
    rows = state.frame.shape[0]
    actions = check_actions(world, actions, rows)
    active = jnp.ones((rows,), bool) if active is None else jnp.asarray(active)
    if active.shape != (rows,):
        raise ValueError(f"active is {active.shape}, this state has {rows} rows: it wants {(rows,)}")
    return compiled_step(world, params, state, actions, active.astype(bool))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def compiled_step(world: OasisWorld, params: Params, state: OasisState, actions, active):
    """`step` after its checks: what an engine lowers and compiles ahead of time."""
    return advance(world, params, state, actions, active)


def advance(world: OasisWorld, params: Params, state: OasisState, actions, active):
    """Draws the noise of each row from its own key, then computes the frame; used by `step` and by `rollout`."""
    pairs = jax.vmap(jax.random.split)(state.key)
    noise = jax.vmap(lambda key: jax.random.normal(key, world.config.latent_shape, jnp.float32))(pairs[:, 1])
    new = next_latent(world, params, state, actions, active, noise)
    data = jnp.where(active[:, None], jax.random.key_data(pairs[:, 0]), jax.random.key_data(state.key))
    key = jax.random.wrap_key_data(data, impl=jax.random.key_impl(state.key))
    return dataclasses.replace(new, key=key), decode(world, params, new.latent[:, None])[:, 0]


def next_latent(
    world: OasisWorld,
    params: Params,
    state: OasisState,
    actions: Float[Any, "b a"],
    active: Bool[Any, " b"],
    noise: Float[Array, "b y x c"],
) -> OasisState:
    """The core: commit the newest frame and denoise the next in one pass, then denoise on. Draws nothing."""
    config, weights = world.config, params["transformer"]
    passes = schedule.plan(config.timesteps, config.steps, config.solver)
    modulation = _modulation(world, weights, state.action, actions, passes.timestep)
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


def encode(world: OasisWorld, params: Params, frames: UInt8[Array, "b t h w 3"]) -> Float[Array, "b t y x c"]:
    """Frames as the latents that the transformer knows."""
    return _encode(world, params["autoencoder"], frames)


def decode(world: OasisWorld, params: Params, latents: Float[Array, "b t y x c"]) -> UInt8[Array, "b t h w 3"]:
    """The transformer's latents as frames."""
    scaled = latents / world.config.latent_scale
    return to_bytes(autoencoder.decode(world.config.autoencoder, params["autoencoder"], scaled))


def check_actions(world: OasisWorld, actions: Any, *rows: int) -> Float[Array, "*b a"]:
    """Actions as float32 `[*rows, columns]`, or a refusal that names both sides."""
    actions, columns = jnp.asarray(actions), world.config.transformer.actions
    if actions.shape != (*rows, columns):
        raise ValueError(
            f"actions are {actions.shape}, this state of world {world.config.name!r} wants {(*rows, columns)}"
        )
    return actions.astype(jnp.float32)


def _check_frames(world: OasisWorld, frames: Any) -> UInt8[Array, "b p h w 3"]:
    frames, config = jnp.asarray(frames), world.config
    if frames.ndim != 5 or frames.shape[2:] != (*config.autoencoder.image, 3) or frames.dtype != jnp.uint8:
        height, width = config.autoencoder.image
        raise ValueError(
            f"prompt frames are {frames.dtype}{list(frames.shape)}, world {config.name!r} wants "
            f"uint8[b, p, {height}, {width}, 3]"
        )
    return frames


def _modulation(world: OasisWorld, weights: Params, before, actions, timestep) -> transformer.Modulation:
    """Of the newest frame as it is committed, and of the next one in each of its passes."""
    labels = jnp.concatenate([jnp.asarray([world.config.context_timestep], jnp.int32), timestep])
    passes = jnp.broadcast_to(actions[:, None], (actions.shape[0], len(timestep), actions.shape[1]))
    return transformer.modulate(world.config, weights, labels[None], jnp.concatenate([before[:, None], passes], axis=1))


@functools.partial(jax.jit, static_argnums=0)
def _encode(world: OasisWorld, weights: Params, frames):
    return autoencoder.encode(world.config.autoencoder, weights, to_unit(frames)) * world.config.latent_scale


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def _start(world: OasisWorld, params: Params, latents, actions, state: OasisState) -> OasisState:
    """All frames but the last enter the ring, the last one is pending."""
    past, length = state.past, latents.shape[1]
    if length > 1:
        past = _commit(world, params["transformer"], latents[:, :-1], actions[:, :-1], past)
    frame = jnp.full_like(state.frame, length)
    return dataclasses.replace(state, past=past, latent=latents[:, -1], action=actions[:, -1], frame=frame)


def _commit(world: OasisWorld, weights: Params, latents, actions, past: ring.Ring) -> ring.Ring:
    """An empty ring with the first frames of a session."""
    config, (batch, length) = world.config, latents.shape[:2]
    labels = jnp.full((1, length), config.context_timestep, jnp.int32)
    frame = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    modulation, seen = transformer.modulate(config, weights, labels, actions), jnp.ones((batch, length), bool)
    none = jnp.zeros((batch,), jnp.int32)
    _, (keys, values) = transformer.denoise(config, weights, latents, modulation, past, none, frame, seen)
    for i in range(length):
        past = ring.write(past, keys[:, :, i], values[:, :, i], frame[:, i], seen[:, i])
    return past
