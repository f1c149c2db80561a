"""start, step: from what a user gives to the compiled call; the same for every world."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from wm_jax.types import Controls, Params, Prompt
from wm_jax.world.playable import Playable, State
from wm_jax.world.slots import check_key, empty, rekeyed


def start(world: Playable[State], params: Params, prompt: Prompt, key: jax.Array) -> State:
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
    frames, controls, is_known = _check_prompt(world, prompt)
    return _start(world, params, frames, controls, is_known, empty(world, frames.shape[0], key))


def step(
    world: Playable[State],
    params: Params,
    state: State,
    controls: Controls,
    active: Bool[Array, " b"] | None = None,
) -> tuple[State, UInt8[Array, "b h w 3"]]:
    """The next frame of every active session, in one compiled call on donated state.

    A session that is not active keeps its state, key and clock to the bit; its frame means nothing.

    Raises:
      ValueError: the controls have another number of keys or rows than the world and its state, or a mouse that it has
        not, or `active` has another number of rows.
    """
    controls = check_controls(world, controls, state.frame.shape[0])
    active = jnp.ones(state.frame.shape, bool) if active is None else _check_active(active, state.frame.shape[0])
    return compiled_step(world, params, state, controls, active)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def compiled_step(world: Playable[State], params: Params, state: State, controls: Controls, active):
    """`step` after its checks: what an engine lowers and compiles ahead of time."""
    return advance(world, params, state, controls, active)


def advance(world: Playable[State], params: Params, state: State, controls: Controls, active):
    """Draws the noise of each row from its own key, then computes the frame; used by `step` and by `rollout`."""
    noise, key = draw(world, state.key)
    new, frame = world.next_frame(params, state, controls, active, noise)
    kept = jnp.where(active[:, None], jax.random.key_data(key), jax.random.key_data(state.key))
    return rekeyed(new, kept), frame


def draw(world: Playable[State], key: jax.Array) -> tuple[Float[Array, "b m y x c"], jax.Array]:
    """The noise of one frame for each row, and the keys of the frame after."""
    pairs = jax.vmap(jax.random.split)(key)
    shape = (world.noises, *world.config.latent_shape)
    return jax.vmap(lambda k: jax.random.normal(k, shape, jnp.float32))(pairs[:, 1]), pairs[:, 0]


def check_controls(world: Playable[State], controls: Controls, *rows: int) -> Controls:
    """Keys as booleans `[*rows, keys]`, the mouse as float32 `[*rows, 2]` (still where none was given), or None where the
    world has none; or a refusal that names both sides.
    """
    keys, known = jnp.asarray(controls.keys), world.config.controls
    if keys.shape[-1:] != (len(known.keys),):
        raise ValueError(
            f"controls have {keys.shape[-1] if keys.ndim else 0} keys, world {world.config.name!r} has "
            f"{len(known.keys)}: {', '.join(known.codes)}"
        )
    if keys.shape[:-1] != tuple(rows):
        raise ValueError(f"controls are {keys.shape}, this state wants {(*rows, len(known.keys))}")
    if controls.mouse is not None and not known.has_mouse:
        raise ValueError(f"controls have a mouse, world {world.config.name!r} has none")
    if not known.has_mouse:
        return Controls(keys.astype(bool))
    mouse = jnp.zeros((*rows, 2), jnp.float32) if controls.mouse is None else jnp.asarray(controls.mouse)
    if mouse.shape != (*rows, 2):
        raise ValueError(f"the mouse is {mouse.shape}, this state wants {(*rows, 2)}: right and down, in frame heights")
    if isinstance(controls.mouse, np.ndarray) and not np.isfinite(controls.mouse).all():
        raise ValueError("the mouse is not finite everywhere: what it was moved is a number of frame heights")
    return Controls(keys.astype(bool), mouse.astype(jnp.float32))


def _check_active(active: Any, rows: int) -> jax.Array:
    """As booleans `[rows]`, or a refusal that names both sides."""
    active = jnp.asarray(active)
    if active.shape != (rows,):
        raise ValueError(f"active is {active.shape}, this state has {rows} rows: it wants {(rows,)}")
    # Integers are the same to `where`, but would turn the flags of the state into integers.
    return active.astype(bool)


def _check_prompt(world: Playable[State], prompt: Prompt):
    config, frames = world.config, jnp.asarray(prompt.frames)
    if frames.ndim != 5 or frames.shape[2:] != (*config.image, 3) or frames.dtype != jnp.uint8:
        raise ValueError(
            f"prompt frames are {frames.dtype}{list(frames.shape)}, world {config.name!r} wants "
            f"uint8[b, p, {config.image[0]}, {config.image[1]}, 3]"
        )
    rows, longest = frames.shape[:2], config.longest_prompt
    if not 1 <= rows[1] <= longest:
        raise ValueError(f"the prompt has {rows[1]} frames, world {config.name!r} takes 1 to {longest}")
    given = prompt.controls or Controls(jnp.zeros((*rows, len(config.controls.keys)), bool))
    return frames, check_controls(world, given, *rows), jnp.full(rows, prompt.controls is not None)


def start_noised(
    world: Playable[State], params: Params, prompt: Prompt, state: State, noise: Float[Array, "b p y x c"] | None
) -> State:
    """`start` without drawing: `noise` blurs the frames of the prompt as they are remembered; `state` is an empty one.

    Raises:
      ValueError: as `start`.
    """
    if prompt.frames is None:
        return state
    return world.see(params, *_check_prompt(world, prompt), state, noise)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=5)
def _start(world: Playable[State], params: Params, frames, controls: Controls, is_known, state: State) -> State:
    if not world.is_prompt_blurred:
        return world.see(params, frames, controls, is_known, state, None)
    shape = (frames.shape[1], *world.config.latent_shape)
    noise, key = jax.vmap(lambda k: _prompt_noise(k, shape))(state.key)
    return rekeyed(world.see(params, frames, controls, is_known, state, noise), jax.random.key_data(key))


def _prompt_noise(key, shape):
    ours, next_key = jax.random.split(key)
    return jax.random.normal(ours, shape, jnp.float32), next_key


def pick_prompt(prompts: Prompt, seed: int) -> Prompt:
    """One row (b = 1) of a world's prompts by seed; the empty prompt where there are none."""
    if prompts.frames is None:
        return prompts
    row = int(np.random.default_rng(seed).integers(len(prompts.frames)))
    return jax.tree.map(lambda leaf: leaf[row : row + 1], prompts)
