"""How fast is a world on this machine? Frames a second, step times, host time, memory, and what age does to a dream.

    python -m wm_jax.eval.latency worlds/coinrun --frames 100000

A step here is what a server does for one player: held keys in as NumPy, one compiled call, pixels out as NumPy.
"""

import dataclasses
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
import tyro

from wm_jax.dynamics import ring_cache
from wm_jax.eval.progress import progress
from wm_jax.types import Controls, Params, Prompt
from wm_jax.world import World, WorldState, load, load_prompts, rollout, start, step
from wm_jax.world.step import check_controls, pick_prompt

YOUNG = 100
_BLOCK, _BLOCKS, _CHUNK = 4, 80, 500


@dataclasses.dataclass(frozen=True)
class LatencyConfig:
    """Measure the speed of a world, one session."""

    world: tyro.conf.Positional[Path]
    """A world folder or a run."""
    frames: int = 10_000
    """How old the dream gets that is compared with one of 100 frames."""


@dataclasses.dataclass(frozen=True)
class Latency:
    """Times in milliseconds where not said otherwise.

    Attributes:
      fps: Frames a second, one session.
      step_p50_ms: Median of a whole step, keys in to pixels out.
      step_p99_ms: 99th percentile.
      host_us: Microseconds a frame outside the device's work, taken as a step of the same signature that computes nothing.
      old_frames: Age of the old dream.
      old_over_young: Time of its step against one of a dream of 100 frames; measured in turns.
      state_mb: What one session occupies, the same for all ages.
      peak_mb: Largest memory of this process.
      grown_mb: What the process grew by while the dream aged.
      old_not_finite: How many numbers of the old dream's state are infinite or not a number.
      old_largest_id: Largest frame id in the old dream's ring, the next frame's included: it stays small at every age.
      id_bound: What no frame id of this world reaches.
    """

    fps: float
    step_p50_ms: float
    step_p99_ms: float
    host_us: float
    old_frames: int
    old_over_young: float
    state_mb: float
    peak_mb: float
    grown_mb: float
    old_not_finite: int
    old_largest_id: int
    id_bound: int


def measure(world: World, params: Params, prompt: Prompt, frames: int, bar: rich.progress.Progress) -> Latency:
    """Times single steps of one session, then ages a second one to `frames` frames and times the two in turns."""
    task = bar.add_task("latency", total=frames + 2 * _BLOCK * _BLOCKS)
    keys = np.random.default_rng(0).random((64, 1, len(world.config.controls.keys))) < 0.3
    young, times = _run(world, params, start(world, params, prompt, jax.random.key(0)), keys, YOUNG)
    young, times = _run(world, params, young, keys, _BLOCK * _BLOCKS)
    old = start(world, params, prompt, jax.random.key(1))
    old = _age(world, params, old, keys, _CHUNK, bar, task)
    before = _resident_mb()
    old = _age(world, params, old, keys, max(frames - _CHUNK, 0), bar, task)
    grown = _resident_mb() - before
    broken, largest = not_finite(old), int(old.cache.next.max())  # now: the turns below donate this state
    ratio = _in_turns(world, params, young, old, keys, lambda: bar.advance(task, 2 * _BLOCK))
    fresh = start(world, params, prompt, jax.random.key(2))
    return Latency(
        fps=1e3 / float(np.mean(times)),
        step_p50_ms=float(np.percentile(times, 50)),
        step_p99_ms=float(np.percentile(times, 99)),
        host_us=1e3 * _host_ms(world, params, fresh, keys),
        old_frames=max(frames, _CHUNK),
        old_over_young=ratio,
        state_mb=sum(leaf.nbytes for leaf in jax.tree.leaves(dataclasses.replace(fresh, key=None))) / 1e6,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        grown_mb=grown,
        old_not_finite=broken,
        old_largest_id=largest,
        id_bound=ring_cache.largest_id(world.config.dynamics.window_frames),
    )


def not_finite(state: WorldState) -> int:
    """How many numbers of a state are infinite or not a number."""
    return sum(int(jnp.sum(~jnp.isfinite(leaf))) for leaf in jax.tree.leaves(dataclasses.replace(state, key=None)))


def _run(world: World, params: Params, state: WorldState, keys: np.ndarray, count: int):
    """The state after `count` frames, and what each took in milliseconds."""
    times = np.empty(count)
    for i in range(count):
        since = time.perf_counter()
        state, frame = step(world, params, state, Controls(keys=keys[i % len(keys)]))
        np.asarray(frame)
        times[i] = 1e3 * (time.perf_counter() - since)
    return state, times


def _age(world: World, params: Params, state: WorldState, keys: np.ndarray, count: int, bar, task) -> WorldState:
    for done in range(0, count, _CHUNK):
        chunk = min(_CHUNK, count - done)
        held = np.moveaxis(np.resize(keys, (_CHUNK, *keys.shape[1:])), 0, 1)[:, :chunk]
        state, shown = rollout(world, params, state, Controls(keys=held))
        shown.block_until_ready()
        bar.advance(task, chunk)
    return state


def _in_turns(world: World, params: Params, young: Any, old: Any, keys: np.ndarray, tick: Callable[[], None]) -> float:
    """Median time of a step of the old dream over the young one's; in turns, so that a busy machine hits both."""
    states, times = [young, old], ([], [])
    for block in range(_BLOCKS):
        for who in (0, 1) if block % 2 else (1, 0):  # who goes first changes, so that neither profits from its place
            states[who], spent = _run(world, params, states[who], keys, _BLOCK)
            times[who].extend(spent)
        tick()
    return float(np.median(times[1]) / np.median(times[0]))


def _host_ms(world: World, params: Params, state: WorldState, keys: np.ndarray) -> float:
    """A step that takes and gives exactly what `step` does, donated alike, but computes nothing: the price of the call."""
    image = (1, *world.config.image, 3)

    def nothing(params, state, controls, active):
        return dataclasses.replace(state, held=controls.keys & active[:, None]), jnp.zeros(image, jnp.uint8)

    call = jax.jit(nothing, donate_argnums=1, keep_unused=True)
    times = []
    for i in range(400):
        since = time.perf_counter()
        controls, active = check_controls(world, Controls(keys[i % len(keys)]), 1), jnp.ones((1,), bool)
        state, frame = call(params, state, controls, active)
        np.asarray(frame)
        times.append(1e3 * (time.perf_counter() - since))
    return float(np.median(times[100:]))


def _resident_mb() -> float:
    """What this process occupies now; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6 if statm.exists() else 0.0


def main() -> int:
    """The command line; returns the exit status."""
    config = tyro.cli(LatencyConfig, prog="python -m wm_jax.eval.latency")
    try:
        world, params = load(config.world)
        prompt = pick_prompt(load_prompts(config.world), 0)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with progress(quiet=False) as bar:
        measured = measure(world, params, prompt, config.frames, bar)
    for name, value in dataclasses.asdict(measured).items():
        print(f"{name:16} {value:.3f}" if isinstance(value, float) else f"{name:16} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
