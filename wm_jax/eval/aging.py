"""What age does to a dream: an old one and a young one are stepped in turns, and memory is looked at in between."""

import dataclasses
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress

YOUNG = 100
BLOCK, BLOCKS, CHUNK = 4, 80, 500


class Player(NamedTuple):
    """How a dream goes on.

    Attributes:
      step: `(state, i) -> state, frame`: under the controls of its i-th frame.
      rollout: `(state, count) -> state, frames`: so many at once.
    """

    step: Callable[[Any, int], tuple[Any, Any]]
    rollout: Callable[[Any, int], tuple[Any, Any]]


def run(player: Player, state: Any, count: int) -> tuple[Any, np.ndarray]:
    """The state after `count` frames, and what each took in milliseconds, its pixels at hand."""
    times = np.empty(count)
    for i in range(count):
        since = time.perf_counter()
        state, frame = player.step(state, i)
        np.asarray(frame)
        times[i] = 1e3 * (time.perf_counter() - since)
    return state, times


def age(player: Player, state: Any, count: int, tick: Callable[[int], object]) -> Any:
    """The state after `count` frames, many at once."""
    for done in range(0, count, CHUNK):
        chunk = min(CHUNK, count - done)
        state, shown = player.rollout(state, chunk)
        jax.block_until_ready(shown)
        tick(chunk)
    return state


def in_turns(player: Player, young: Any, old: Any, tick: Callable[[int], object]) -> float:
    """Median time of a step of the old dream over the young one's; in turns, so that a busy machine hits both."""
    states, times = [young, old], ([], [])
    for block in range(BLOCKS):
        for who in (0, 1) if block % 2 else (1, 0):  # who goes first changes, so that neither profits from its place
            states[who], spent = run(player, states[who], BLOCK)
            times[who].extend(spent)
        tick(2 * BLOCK)
    return float(np.median(times[1]) / np.median(times[0]))


@dataclasses.dataclass(frozen=True)
class Aged:
    """What an old dream was like.

    Attributes:
      old_frames: Its age.
      old_over_young: Time of its step against one of a dream of 100 frames; measured in turns.
      grown_mb: What the process grew by while it aged.
      old_not_finite: How many numbers of its state are infinite or not a number.
    """

    old_frames: int
    old_over_young: float
    grown_mb: float
    old_not_finite: int


def compare(
    player: Player, young: Any, old: Any, frames: int, bar: rich.progress.Progress, look: Callable[[Any], object]
) -> Aged:
    """Ages `old` to `frames` frames and times it against `young`; `look` is shown the old state before it is donated."""
    task = bar.add_task("latency", total=frames + 2 * BLOCK * BLOCKS)

    def tick(count: int) -> None:
        bar.advance(task, count)

    old = age(player, old, CHUNK, tick)
    before = resident_mb()
    old = age(player, old, max(frames - CHUNK, 0), tick)
    grown, broken = resident_mb() - before, not_finite(old)
    look(old)
    return Aged(max(frames, CHUNK), in_turns(player, young, old, tick), grown, broken)


def not_finite(state: Any) -> int:
    """How many numbers of a state are infinite or not a number."""
    return sum(int(jnp.sum(~jnp.isfinite(leaf))) for leaf in jax.tree.leaves(dataclasses.replace(state, key=None)))


def state_mb(state: Any) -> float:
    """What a state occupies, its keys apart."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(dataclasses.replace(state, key=None))) / 1e6


def peak_mb() -> float:
    """The largest memory so far: of the device where it tells, else of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def resident_mb() -> float:
    """What this process occupies now; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6 if statm.exists() else 0.0
