"""The programs of a world as an accelerator meets them: plain arrays in and out, the state donated.

Random keys cross as plain numbers: a compiled call with typed keys takes JAX's slow path, and no file can hold them. With
`is_noise_given` nothing is drawn at all: the noise comes in as arrays, for accelerators whose compiler has no generator.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import pallas_kernels
from pallas_kernels.block_causal_attention import cases as block_cases
from pallas_kernels.cached_attention import cases as cached_cases
from pallas_kernels.implementation import compiled_for, platforms, refusal
from pallas_kernels.norm_modulate import cases as norm_cases
from pallas_kernels.quantized_matmul import cases as quantized_cases
from wm_jax.types import Controls, Params, Prompt
from wm_jax.world import Playable, empty, put, start, step, take
from wm_jax.world.playable import State
from wm_jax.world.slots import put_rows, take_rows
from wm_jax.world.step import start_noised


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and the shapes it is called with.

    Attributes:
      name: What it is called in reports and files.
      function: Jitted.
      shapes: One tree of `jax.ShapeDtypeStruct` an argument.
      donated: The arguments whose memory the results take.
      results: A tree of the form of what it returns; None where nobody asks.
    """

    name: str
    function: Callable[..., Any]
    shapes: tuple[Any, ...]
    donated: tuple[int, ...] = ()
    results: Any = None


class Playing(NamedTuple):
    """What an engine runs.

    Attributes:
      start: `(params, prompt, seed) -> one`, the state of one session; with given noise `(params, prompt, noise)`.
      put: `(state, slot, one) -> state`, donated: the session seated.
      take: `(state, slot) -> one`: a copy of the session that sits there.
      step: `(params, state, keys, mouse, active) -> state, frames`, the state donated; with given noise one argument more.
        `mouse` is None where the world has none.
    """

    start: Program
    put: Program
    take: Program
    step: Program


def playing(world: Playable[Any], slots: int, prompt: Prompt, is_noise_given: bool = False) -> Playing:
    """The programs for this many slots and prompts of this shape (batch 1)."""
    state, one = bare_shapes(world, slots), bare_shapes(world, 1)
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), prompt)
    held = control_shapes(world, slots)
    active, slot = jax.ShapeDtypeStruct((slots,), bool), jax.ShapeDtypeStruct((), jnp.int32)

    def start_one(params, prompt, seed):
        return bare(start(world, params, prompt, jax.random.key(seed)))

    def start_given(params, prompt, noise):
        keys = jax.random.wrap_key_data(jnp.zeros((1, 2), jnp.uint32))
        return bare(start_noised(world, params, prompt, empty(world, 1, keys), noise))

    def put_one(state, slot, one):
        return bare(put(dressed(world, state), slot, dressed(world, one)))

    def take_one(state, slot):
        return bare(take(dressed(world, state), slot))

    def step_all(params, state, keys, mouse, active):
        new, frames = step(world, params, dressed(world, state), Controls(keys, mouse), active=active)
        return bare(new), frames

    def step_given(params, state, keys, mouse, active, noise):
        return world.next_frame(params, state, Controls(keys, mouse), active, noise)

    drawn: Any = jax.ShapeDtypeStruct((), jnp.uint32)
    inputs: tuple[Any, ...] = (weight_shapes(world), state, held.keys, held.mouse, active)
    if is_noise_given:
        drawn = prompt_noise_shape(world, prompt)
        inputs = (*inputs, noise_shape(world, slots))
    starting = jax.jit(start_given if is_noise_given else start_one)
    stepping = jax.jit(step_given if is_noise_given else step_all, donate_argnums=1)
    return Playing(
        Program("start", starting, (weight_shapes(world), given, drawn), (), one),
        Program("put", jax.jit(put_one, donate_argnums=0), (state, slot, one), (0,), state),
        Program("take", jax.jit(take_one), (state, slot), (), one),
        Program("step", stepping, inputs, (1,), (state, "frames")),
    )


def step_of_rows(world: Playable[Any], slots: int, rows: int, is_noise_given: bool = False) -> Program:
    """The step of as many rows of the batch as are named, all others left as they are: for fewer players than slots.

    `(params, state, chosen, keys, mouse, active) -> state, frames`, where `chosen` are numbers of slots, all different, and
    what follows has a row for each of them; with given noise one argument more.
    """
    state, held = bare_shapes(world, slots), control_shapes(world, rows)
    row = jax.ShapeDtypeStruct((rows,), jnp.int32)
    active = jax.ShapeDtypeStruct((rows,), bool)

    def step_rows(params, state, chosen, keys, mouse, active, *noise):
        whole, controls = dressed(world, state), Controls(keys, mouse)
        part = take_rows(whole, list(chosen))
        if is_noise_given:
            new, frames = world.next_frame(params, bare(part), controls, active, *noise)
            new = dressed(world, new)
        else:
            new, frames = step(world, params, part, controls, active=active)
        return bare(put_rows(whole, list(chosen), new)), frames

    inputs: tuple[Any, ...] = (weight_shapes(world), state, row, held.keys, held.mouse, active)
    inputs = (*inputs, noise_shape(world, rows)) if is_noise_given else inputs
    return Program(f"step_{rows}", jax.jit(step_rows, donate_argnums=1), inputs, (1,), (state, "frames"))


def rollout_program(world: Playable[Any], slots: int, frames: int) -> Program:
    """Many frames by one scan of the step with given noise: controls and noise carry a leading axis of frames."""

    def rollout(params, state, keys, mouse, active, noise):
        def body(state, inputs):
            keys, mouse, noise = inputs
            return world.next_frame(params, state, Controls(keys, mouse), active, noise)

        return lax.scan(body, state, (keys, mouse, noise))

    given = control_shapes(world, slots), noise_shape(world, slots)
    held, noise = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((frames, *leaf.shape), leaf.dtype), given)
    active = jax.ShapeDtypeStruct((slots,), bool)
    inputs = (weight_shapes(world), bare_shapes(world, slots), held.keys, held.mouse, active, noise)
    return Program("rollout", jax.jit(rollout, donate_argnums=1), inputs)


KERNELS = {
    "block_causal_attention": block_cases,
    "cached_attention": cached_cases,
    "norm_modulate": norm_cases,
    "quantized_matmul": quantized_cases,
}


def kernel_program(op: str) -> Program:
    """All large cases of an op of `pallas_kernels` at once, each with its gradient where it has one."""
    cases = list(KERNELS[op].LARGE.values())

    def run(*arguments):
        return [_call(op, case, given) for given, case in zip(arguments, cases, strict=True)]

    return Program(op, jax.jit(run), tuple(case.shapes() for case in cases))


def _call(op: str, case: Any, arguments: tuple[Any, ...]) -> Any:
    """By the kernel for the device that is compiled for, if there is one that takes the case.

    By its name, since `auto` may leave it to XLA until somebody has measured it.
    """
    fitting = [platform.name for platform in platforms(op) if platform.takes(compiled_for())]
    names = [name for name in fitting if refusal(op, name, arguments, case.static) is None]
    function = functools.partial(
        getattr(pallas_kernels, op), **case.static, implementation=names[0] if names else "reference"
    )
    if not case.moving:
        return function(*arguments)
    moving, rest = arguments[: case.moving], arguments[case.moving :]
    out, pull = jax.vjp(lambda *moving: function(*moving, *rest), *moving)
    return out, pull(out)


def control_shapes(world: Playable[Any], slots: int) -> Controls:
    """Of what the players do in one frame."""
    known = world.config.controls
    keys: Any = jax.ShapeDtypeStruct((slots, len(known.keys)), bool)
    mouse: Any = jax.ShapeDtypeStruct((slots, 2), jnp.float32) if known.has_mouse else None
    return Controls(keys, mouse)


def noise_shape(world: Playable[Any], slots: int) -> jax.ShapeDtypeStruct:
    """Of the noise of one frame."""
    return jax.ShapeDtypeStruct((slots, world.noises, *world.config.latent_shape), jnp.float32)


def prompt_noise_shape(world: Playable[Any], prompt: Prompt) -> jax.ShapeDtypeStruct | None:
    """Of the noise that blurs a prompt (batch 1); None where nothing is blurred."""
    if prompt.frames is None or not world.is_prompt_blurred:
        return None
    return jax.ShapeDtypeStruct((1, prompt.frames.shape[1], *world.config.latent_shape), jnp.float32)


def weight_shapes(world: Playable[Any]) -> Params:
    """Of the weights that are played."""
    return jax.eval_shape(world.for_playing, world.shapes())


def bare_shapes(world: Playable[State], slots: int) -> State:
    """Of the state as it crosses a call."""
    return jax.eval_shape(lambda: bare(empty(world, slots)))


def bare(state: State) -> State:
    """The state with its random keys as plain numbers."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state, is_leaf=_is_key)


def dressed(world: Playable[State], state: State) -> State:
    """The state with its random keys typed again, as the world wants it."""
    typed = jax.eval_shape(lambda: empty(world))
    return jax.tree.map(
        lambda leaf, like: jax.random.wrap_key_data(leaf) if _is_key(like) else leaf, state, typed, is_leaf=_is_key
    )


def _is_key(leaf: object) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
