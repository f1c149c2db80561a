"""The batched world: a fixed number of slots, compiled before the first player comes, stepped all at once."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8

from wm_jax.serving.session import Opening
from wm_jax.types import Controls, Params, Prompt
from wm_jax.world.state import WorldState, empty, put
from wm_jax.world.step import pick_prompt, start, step
from wm_jax.world.world import World

Report = Callable[[str, float], None]
"""Told the stage and the share of the work that is done."""


@dataclasses.dataclass(frozen=True)
class Scenes:
    """The first frames that ship with a world, on the host; none: it dreams its first frame from noise."""

    prompts: Prompt

    @property
    def count(self) -> int:
        return 0 if self.prompts.frames is None else int(self.prompts.frames.shape[0])

    def pick(self, opening: Opening) -> Prompt:
        """The prompt of one session, batch 1: its own image held still, the scene it names, or the seed's."""
        if self.prompts.frames is None:
            return Prompt()
        chosen = pick_prompt(self.prompts, opening.seed) if opening.prompt is None else self._row(opening.prompt)
        frames = np.asarray(chosen.frames)
        keys = None if chosen.controls is None else np.asarray(chosen.controls.keys)
        if opening.image is not None:
            frames = np.broadcast_to(opening.image, frames.shape)
            keys = None if keys is None else np.zeros_like(keys)
        return Prompt(frames, None if keys is None else Controls(keys))

    def _row(self, index: int) -> Prompt:
        return jax.tree.map(lambda leaf: leaf[index : index + 1], self.prompts)


class Engine:
    """One world, its weights and the state of all its slots. Lives on the device thread.

    Attributes:
      slots: Rows of the batch.
    """

    def __init__(self, world: World, params: Params, scenes: Scenes, slots: int) -> None:
        self.world = world
        self.scenes = scenes
        self.slots = slots
        self._params = params
        self._state: WorldState | None = None
        self._start: Callable[..., WorldState] | None = None
        self._put: Callable[..., WorldState] | None = None
        self._step: Callable[..., tuple[WorldState, Array]] | None = None

    def compile(self, report: Report) -> None:
        """Compiles all that playing needs, ahead of time; afterwards nothing compiles any more."""
        report("placing weights", 0.0)
        self._params = jax.device_put(self._params)
        prompt = self.scenes.pick(Opening(0))
        keys = np.zeros((self.slots, len(self.world.config.controls.keys)), bool)
        active = np.zeros(self.slots, bool)
        with ThreadPoolExecutor(3) as compilers:  # one program compiles while the next is traced
            report("tracing start", 0.1)
            start = jax.jit(self._start_one).lower(self._params, prompt, np.uint32(0))
            starting = compilers.submit(start.compile)
            report("tracing step", 0.2)
            state = _bare(empty(self.world, self.slots))
            step = jax.jit(self._step_all, donate_argnums=1).lower(self._params, state, keys, active)
            stepping = compilers.submit(step.compile)
            put = jax.jit(self._put_one, donate_argnums=0).lower(state, np.int32(0), start.out_info)
            putting = compilers.submit(put.compile)
            report("compiling", 0.4)
            self._start, self._put = starting.result(), putting.result()
            one = self._start(self._params, prompt, np.uint32(0))
            self._step = stepping.result()
        report("warming up", 0.9)
        self._state = self._put(state, np.int32(0), one)
        for _ in range(2):
            self.step(keys, active).block_until_ready()
        report("ready", 1.0)

    def seat(self, slot: int, opening: Opening) -> None:
        """Starts a session in a slot; whatever was there is gone."""
        assert self._start is not None and self._put is not None and self._state is not None, "compile first"
        one = self._start(self._params, self.scenes.pick(opening), np.uint32(opening.seed))
        self._state = self._put(self._state, np.int32(slot), one)

    def step(self, keys: Bool[np.ndarray, "b keys"], active: Bool[np.ndarray, " b"]) -> UInt8[Array, "b h w 3"]:
        """One frame of every active slot. Returns at once; the frames are still being made."""
        assert self._step is not None and self._state is not None, "compile first"
        self._state, frames = self._step(self._params, self._state, keys, active)
        return frames

    def _start_one(self, params: Params, prompt: Prompt, seed: Array) -> WorldState:
        return _bare(start(self.world, params, prompt, jax.random.key(seed)))

    def _put_one(self, state: WorldState, slot: Array, one: WorldState) -> WorldState:
        return _bare(put(self._dressed(state), slot, self._dressed(one)))

    def _step_all(
        self, params: Params, state: WorldState, keys: Array, active: Array
    ) -> tuple[WorldState, UInt8[Array, "b h w 3"]]:
        new, frames = step(self.world, params, self._dressed(state), Controls(keys), active=active)
        return _bare(new), frames

    def _dressed(self, state: WorldState) -> WorldState:
        """The state with its random keys typed again, as the world wants it."""
        typed = jax.eval_shape(lambda: empty(self.world))
        return jax.tree.map(
            lambda leaf, like: jax.random.wrap_key_data(leaf) if _is_key(like) else leaf, state, typed, is_leaf=_is_key
        )


def _is_key(leaf: object) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _bare(state: WorldState) -> WorldState:
    """The state with its random keys as plain numbers: a compiled call with typed keys takes JAX's slow path."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state, is_leaf=_is_key)


def use_compile_cache(folder: Path) -> None:
    """Keeps compiled worlds in a folder of this user's own, so that the next start is quick."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
