"""The batched world: a fixed number of slots, compiled before the first player comes, stepped all at once."""

import collections
import dataclasses
import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8

from wm_jax.export.artifact import NEEDS_GIVEN_NOISE, Artifact
from wm_jax.export.programs import Program, bare, bare_shapes, control_shapes, playing, step_of_rows
from wm_jax.serving.history import Memory
from wm_jax.serving.noise import HostNoise
from wm_jax.serving.session import Opening
from wm_jax.types import Controls, Params, Prompt
from wm_jax.world import Playable, empty
from wm_jax.world.step import pick_prompt

log = logging.getLogger(__name__)

REHEARSED = 3
"""Frames after which a smaller batch is taken for exact: a rounding that differs once is in all that follows."""

Report = Callable[[str, float], None]
"""Told the stage and the share of the work that is done."""


@dataclasses.dataclass(frozen=True)
class Scenes:
    """The first frames that ship with a world, on the host; none: it dreams its first frame from noise, or goes on from the
    image that a player gives.
    """

    prompts: Prompt

    @property
    def count(self) -> int:
        return 0 if self.prompts.frames is None else int(self.prompts.frames.shape[0])

    def pick(self, opening: Opening) -> Prompt:
        """The prompt of one session, batch 1: its own image held still, the scene it names, or the seed's."""
        if self.prompts.frames is None:
            return Prompt() if opening.image is None else Prompt(opening.image[None, None])
        chosen = pick_prompt(self.prompts, opening.seed) if opening.prompt is None else self._row(opening.prompt)
        frames, controls = np.asarray(chosen.frames), jax.tree.map(np.asarray, chosen.controls)
        if opening.image is None:
            return Prompt(frames, controls)
        return Prompt(np.broadcast_to(opening.image, frames.shape), jax.tree.map(np.zeros_like, controls))

    def _row(self, index: int) -> Prompt:
        return jax.tree.map(lambda leaf: leaf[index : index + 1], self.prompts)


class Engine:
    """One world, its weights and the state of all its slots. Lives on the device thread.

    Attributes:
      slots: Rows of the batch.
      sizes: How many rows one call may step, the smallest first, the last of them all slots.
      memory_bytes: What one session occupies on the device.
      start_s: What the device takes to begin a dream, as measured before the first player comes.
    """

    start_s = 0.0

    def __init__(
        self,
        world: Playable[Any],
        params: Params,
        scenes: Scenes,
        slots: int,
        artifact: Artifact | None = None,
        has_ladder: bool = False,
    ) -> None:
        self.world = world
        self.scenes = scenes
        self.slots = slots
        self.sizes: tuple[int, ...] = (slots,)
        # An artifact holds one program for all its slots.
        powers = range(slots.bit_length()) if has_ladder and artifact is None else ()
        self._smaller = tuple(2**power for power in powers if 2**power < slots)
        self._params = params
        self._artifact = artifact
        is_noise_given = (
            jax.default_backend() in NEEDS_GIVEN_NOISE if artifact is None else artifact.manifest.is_noise_given
        )
        self.memory_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(bare_shapes(world, 1)))
        self._noise = HostNoise(world, slots) if is_noise_given else None
        self._state: Any = None
        self._device_thread = 0
        self._empty: Callable[[], Any] | None = None
        self._starts: dict[bool, Callable[..., Any]] = {}
        self._put: Callable[..., Any] | None = None
        self._take: Callable[..., Any] | None = None
        self._step: Callable[..., tuple[Any, Array]] | None = None
        self._steps: dict[int, Callable[..., tuple[Any, Array]]] = {}

    def compile(self, report: Report) -> None:
        """Compiles all that playing needs, ahead of time; afterwards nothing compiles any more."""
        report("placing weights", 0.0)
        self._params = jax.device_put(self.world.for_playing(self._params))
        made = [playing(self.world, self.slots, prompt, self._noise is not None) for prompt in self._prompts()]
        with ThreadPoolExecutor(3) as compilers:  # one program compiles while the next is traced
            emptying = compilers.submit(jax.jit(self._nobody).lower().compile)
            report("tracing start", 0.1)
            starting = [compilers.submit(self._lower(programs.start).compile) for programs in made]
            report("tracing step", 0.2)
            stepping = compilers.submit(self._lower(made[0].step).compile)
            putting, taking = (
                compilers.submit(self._lower(program).compile) for program in (made[0].put, made[0].take)
            )
            smaller = [
                compilers.submit(
                    self._lower(step_of_rows(self.world, self.slots, rows, self._noise is not None)).compile
                )
                for rows in self._smaller
            ]
            report("compiling", 0.4)
            has_frames = [prompt.frames is not None for prompt in self._prompts()]
            self._starts = dict(zip(has_frames, (start.result() for start in starting), strict=True))
            self._empty = emptying.result()
            self._put, self._take, self._step = putting.result(), taking.result(), stepping.result()
            compiled = {rows: step.result() for rows, step in zip(self._smaller, smaller, strict=True)}
        report("warming up", 0.9)
        self.forget()
        openings = [Opening(0), Opening(0, image=np.zeros((*self.world.config.image, 3), np.uint8))][: len(made)]
        for opening in openings:
            self.seat(0, opening)
        jax.block_until_ready(self.take(0).state)
        self.start_s = max(min(self._time_start(opening) for _ in range(3)) for opening in openings)
        for _ in range(2):
            self._rehearse(range(self.slots))
        self._steps = {rows: step for rows, step in compiled.items() if self._is_exact(rows, step)}
        self.sizes = (*self._steps, self.slots)
        self.forget()
        self._device_thread = threading.get_ident()
        _compilations()[self._device_thread] = 0
        report("ready", 1.0)

    def _time_start(self, opening: Opening) -> float:
        began = time.perf_counter()
        self.seat(0, opening)
        self.wait()
        return time.perf_counter() - began

    def _is_exact(self, rows: int, step: Callable[..., tuple[Any, Array]]) -> bool:
        """Whether stepping these rows alone gives what stepping the whole batch does, to the last bit of their states.

        On some devices the rounding of a product depends on how many rows it has; what a player sees must not depend on how
        many others play. Tried with sessions of different seeds, in frames that follow one another.
        """
        chosen = range(self.slots - rows, self.slots)
        self._steps[rows] = step
        seen: list[list[Any]] = []
        for slots in (chosen, range(self.slots)):
            self.forget()
            for slot in chosen:
                self.seat(slot, Opening(slot))
            frames = [self._rehearse(slots, chosen)[-rows:] for _ in range(REHEARSED)]
            seen.append(
                [*frames, *(np.asarray(leaf) for slot in chosen for leaf in jax.tree.leaves(self.take(slot).state))]
            )
        is_exact = all(np.array_equal(one, other, equal_nan=True) for one, other in zip(*seen, strict=True))
        if not is_exact:
            log.info("no batch of %d: its frames would differ in rounding from those of %d", rows, self.slots)
        return is_exact

    def _rehearse(self, slots: Sequence[int], active: Sequence[int] = ()) -> UInt8[np.ndarray, "b h w 3"]:
        """One frame of these slots, of which some hold every key."""
        is_active = np.isin(np.asarray(slots), np.asarray(active))
        held = control_shapes(self.world, len(slots))
        keys = np.broadcast_to(is_active[:, None], held.keys.shape)
        mouse = None if held.mouse is None else np.zeros(held.mouse.shape, np.float32)
        return np.asarray(self.step(Controls(keys, mouse), is_active, slots))

    @property
    def recompilations(self) -> int:
        """How often its thread has compiled anything since the engine was ready: 0, or something is wrong."""
        return _compilations()[self._device_thread]

    def _prompts(self) -> list[Prompt]:
        """One of each form that a session may start from."""
        usual = self.scenes.pick(Opening(0))
        if usual.frames is not None or not self.world.takes_image:
            return [usual]
        return [usual, self.scenes.pick(Opening(0, image=np.zeros((*self.world.config.image, 3), np.uint8)))]

    def _lower(self, program: Program) -> Any:
        function = program.function if self._artifact is None else self._artifact.function(program)
        return function.lower(*program.shapes)

    def forget(self) -> None:
        """Every slot is empty again; also the way out when the state was lost in a call that failed."""
        assert self._empty is not None, "compile first"
        self._state = self._empty()

    def _nobody(self) -> Any:
        """The state in which no slot is taken."""
        # Keys of nobody: each session brings its own.
        keys = jax.random.wrap_key_data(jnp.zeros((self.slots, 2), jnp.uint32))
        return bare(empty(self.world, self.slots, keys))

    @property
    def is_sound(self) -> bool:
        """Whether the state is still there: a call that fails may have taken it along."""
        return not any(leaf.is_deleted() for leaf in jax.tree.leaves(self._state))

    def seat(self, slot: int, opening: Opening) -> None:
        """Starts a session in a slot, or goes on with one; whatever was there is gone."""
        assert self._put is not None and self._state is not None, "compile first"
        one = self._begin(slot, opening) if opening.memory is None else self._recall(slot, opening.memory)
        self._state = self._put(self._state, np.int32(slot), one)

    def wait(self) -> None:
        """Returns when the state is there: nothing is under way any more."""
        jax.block_until_ready(self._state)

    def take(self, slot: int) -> Memory:
        """A copy of all that the session in a slot remembers."""
        assert self._take is not None and self._state is not None, "compile first"
        stream = None if self._noise is None else self._noise.stream(slot)
        return Memory(self._take(self._state, np.int32(slot)), stream)

    def _recall(self, slot: int, memory: Memory) -> Any:
        # What was copied while a frame was being lost fails here, for its own session, and not in the state of all.
        jax.block_until_ready(memory.state)
        if self._noise is not None:
            self._noise.resume(slot, memory.stream)
        return memory.state

    def _begin(self, slot: int, opening: Opening) -> Any:
        prompt = self.scenes.pick(opening)
        drawn: Any = np.uint32(opening.seed)
        if self._noise is not None:
            drawn = self._noise.seat(slot, opening.seed, prompt)
        return self._starts[prompt.frames is not None](self._params, prompt, drawn)

    def size_for(self, count: int) -> int:
        """How many rows are stepped where so many are wanted."""
        return next(size for size in self.sizes if size >= count)

    def choose(self, wanted: Collection[int], least: int = 0) -> Sequence[int]:
        """The slots to step so that these are: as few as there is a program for, and so many at least; the others among them idle."""
        size = self.size_for(max(len(wanted), least))
        if size == self.slots:
            return range(self.slots)
        idle = (slot for slot in range(self.slots) if slot not in wanted)
        return sorted([*wanted, *itertools.islice(idle, size - len(wanted))])

    def step(
        self, controls: Controls, active: Bool[np.ndarray, " b"], chosen: Sequence[int] | None = None
    ) -> UInt8[Array, "b h w 3"]:
        """One frame of every active slot. Returns at once; the frames are still being made.

        Args:
          controls: A row for each slot that is stepped.
          active: Which of them are to go on; the others stay as they are, and their frames mean nothing.
          chosen: The slots that are stepped, by `choose`; all of them where none are named.
        """
        assert self._step is not None and self._state is not None, "compile first"
        slots = range(self.slots) if chosen is None else chosen
        noise = () if self._noise is None else (self._noise.draw(slots, active),)
        step, which = self._step, ()
        if len(slots) < self.slots:
            step, which = self._steps[len(slots)], (np.asarray(slots, np.int32),)
        self._state, frames = step(self._params, self._state, *which, controls.keys, controls.mouse, active, *noise)
        frames.copy_to_host_async()  # on its way as soon as it is made, not when somebody asks
        return frames


@functools.cache
def _compilations() -> dict[int, int]:
    """What XLA compiles in this process from the first call on, or fetches from its cache: how often, by thread."""
    counts: dict[int, int] = collections.defaultdict(int)

    def hear(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            counts[threading.get_ident()] += 1

    jax.monitoring.register_event_duration_secs_listener(hear)
    return counts


def use_compile_cache(folder: Path) -> None:
    """Keeps compiled worlds in a folder of this user's own, so that the next start is quick."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
