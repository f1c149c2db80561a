"""The batched world: a fixed number of slots, compiled before the first player comes, stepped all at once."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8

from wm_jax.export.artifact import NEEDS_GIVEN_NOISE, Artifact
from wm_jax.export.programs import Program, bare, playing
from wm_jax.serving.noise import HostNoise
from wm_jax.serving.session import Opening
from wm_jax.types import Controls, Params, Prompt
from wm_jax.world.state import WorldState, empty
from wm_jax.world.step import pick_prompt
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

    def __init__(
        self, world: World, params: Params, scenes: Scenes, slots: int, artifact: Artifact | None = None
    ) -> None:
        self.world = world
        self.scenes = scenes
        self.slots = slots
        self._params = params
        self._artifact = artifact
        is_noise_given = (
            jax.default_backend() in NEEDS_GIVEN_NOISE if artifact is None else artifact.manifest.is_noise_given
        )
        self._noise = HostNoise(slots, world.config.latent_shape) if is_noise_given else None
        self._state: WorldState | None = None
        self._start: Callable[..., WorldState] | None = None
        self._put: Callable[..., WorldState] | None = None
        self._step: Callable[..., tuple[WorldState, Array]] | None = None

    def compile(self, report: Report) -> None:
        """Compiles all that playing needs, ahead of time; afterwards nothing compiles any more."""
        report("placing weights", 0.0)
        self._params = jax.device_put(self.world.for_playing(self._params))
        programs = playing(self.world, self.slots, self.scenes.pick(Opening(0)), self._noise is not None)
        with ThreadPoolExecutor(3) as compilers:  # one program compiles while the next is traced
            report("tracing start", 0.1)
            starting = compilers.submit(self._lower(programs.start).compile)
            report("tracing step", 0.2)
            stepping = compilers.submit(self._lower(programs.step).compile)
            putting = compilers.submit(self._lower(programs.put).compile)
            report("compiling", 0.4)
            self._start, self._put, self._step = starting.result(), putting.result(), stepping.result()
        report("warming up", 0.9)
        # Keys of nobody: each session brings its own.
        keys = jax.random.wrap_key_data(jnp.zeros((self.slots, 2), jnp.uint32))
        self._state = bare(empty(self.world, self.slots, keys))
        self.seat(0, Opening(0))
        keys = np.zeros((self.slots, len(self.world.config.controls.keys)), bool)
        for _ in range(2):
            self.step(Controls(keys), np.zeros(self.slots, bool)).block_until_ready()
        report("ready", 1.0)

    def _lower(self, program: Program) -> Any:
        function = program.function if self._artifact is None else self._artifact.function(program)
        return function.lower(*program.shapes)

    def seat(self, slot: int, opening: Opening) -> None:
        """Starts a session in a slot; whatever was there is gone."""
        assert self._start is not None and self._put is not None and self._state is not None, "compile first"
        prompt = self.scenes.pick(opening)
        drawn: Any = np.uint32(opening.seed)
        if self._noise is not None:
            drawn = self._noise.seat(slot, opening.seed, 0 if prompt.frames is None else prompt.frames.shape[1])
        one = self._start(self._params, prompt, drawn)
        self._state = self._put(self._state, np.int32(slot), one)

    def step(self, controls: Controls, active: Bool[np.ndarray, " b"]) -> UInt8[Array, "b h w 3"]:
        """One frame of every active slot. Returns at once; the frames are still being made."""
        assert self._step is not None and self._state is not None, "compile first"
        keys = controls.keys
        noise = () if self._noise is None else (self._noise.draw(active),)
        self._state, frames = self._step(self._params, self._state, keys, active, *noise)
        return frames


def use_compile_cache(folder: Path) -> None:
    """Keeps compiled worlds in a folder of this user's own, so that the next start is quick."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
