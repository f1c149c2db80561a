"""The programs of a world as an accelerator meets them: plain arrays in and out, all randomness given, state donated."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from wm_jax.world import World, empty
from wm_jax.world.step import Noise, next_frame


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and the shapes it is called with.

    Attributes:
      name: "step" or "rollout".
      function: Jitted; its second argument, the state, is donated.
      shapes: One tree of `jax.ShapeDtypeStruct` an argument.
    """

    name: str
    function: Callable[..., Any]
    shapes: tuple[Any, ...]


def step_program(world: World, slots: int) -> Program:
    """One frame of every slot: `(params, state, keys, active, noise) -> state, frames`."""

    def step(params, state, keys, active, noise):
        return next_frame(world, params, state, keys, active, noise)

    state, keys, active, noise = _inputs(world, slots)
    return Program("step", jax.jit(step, donate_argnums=1), (world.shapes(), state, keys, active, noise))


def rollout_program(world: World, slots: int, frames: int) -> Program:
    """Many frames by one scan of the same step: `keys` and `noise` carry a leading axis of frames."""

    def rollout(params, state, keys, active, noise):
        def body(state, inputs):
            return next_frame(world, params, state, inputs[0], active, inputs[1])

        return lax.scan(body, state, (keys, noise))

    state, keys, active, noise = _inputs(world, slots)
    keys, noise = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((frames, *leaf.shape), leaf.dtype), (keys, noise))
    return Program("rollout", jax.jit(rollout, donate_argnums=1), (world.shapes(), state, keys, active, noise))


def _inputs(world: World, slots: int) -> tuple[Any, ...]:
    state = jax.eval_shape(lambda: empty(world, slots))
    state = dataclasses.replace(
        state, key=jax.ShapeDtypeStruct((slots, 2), jnp.uint32)
    )  # carried along, never drawn from
    latent = jax.ShapeDtypeStruct((slots, *world.config.latent_shape), jnp.float32)
    keys = jax.ShapeDtypeStruct((slots, len(world.config.controls.keys)), bool)
    noise: Any = Noise(context=latent, frame=latent)  # pyright: ignore[reportArgumentType]  # shapes, not arrays
    return state, keys, jax.ShapeDtypeStruct((slots,), bool), noise
