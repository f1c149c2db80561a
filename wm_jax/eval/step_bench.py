"""What the kernels give a whole frame: python -m wm_jax.eval.step_bench --config configs/base/dynamics.py

The step that is played (commit, denoising passes, decode) of a random world, its ring full, compiled twice: with the kernels
that `auto` chooses here, and with the references alone. The arms take turns; each number is a median. Beside the time stand
the largest difference of the two arms' latents and the sessions that one device serves at a given rate. Where `auto` has no kernel (on a CPU)
both arms are the same program.
"""

import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from pallas_kernels.implementation import Implementation, using
from wm_jax import config as config_file
from wm_jax.config import ConfigError
from wm_jax.eval.provenance import commit, device
from wm_jax.types import Controls, Params
from wm_jax.world import World, WorldState, empty
from wm_jax.world.step import advance

ARMS: tuple[Implementation, ...] = ("auto", "reference")


@dataclasses.dataclass(frozen=True)
class StepBenchConfig:
    """Time the step of a world with and without kernels."""

    config: Path = Path("configs/base/dynamics.py")
    """The run whose world it is; its weights are random here."""
    batches: tuple[int, ...] = (1, 8)
    """Sessions in one batch, one measurement for each."""
    rounds: int = 15
    """Timings of each arm; the median counts."""
    frames: int = 20
    """Frames of one timing."""
    rate: float = 20.0
    """Frames a second that a session wants, for the sessions a device can serve."""
    price: float = 0.0
    """What one hour of this device costs; with it the cost of an hour of a session is told."""
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self) -> None:
        for name in ("rounds", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}, it must be at least 1")
        if min(self.batches, default=0) < 1:
            raise ValueError(f"--batches are {self.batches}, each must be at least 1")


class Arm:
    """The step compiled with one implementation, and a session batch of its own."""

    def __init__(self, world: World, params: Params, batch: int, implementation: Implementation):
        self.state, self.params = full_state(world, batch), params
        held = Controls(jnp.zeros((batch, len(world.config.controls.keys)), bool))
        inputs = (params, self.state, held, jnp.ones(batch, bool))

        def step(params, state, controls, active):
            return advance(world, params, state, controls, active)

        with using(implementation):
            self.step = jax.jit(step, donate_argnums=1).lower(*inputs).compile()
        self.inputs = inputs[2:]

    def run(self, frames: int) -> float:
        """Milliseconds a frame, of so many in a row."""
        began, shown = time.perf_counter(), None
        for _ in range(frames):
            self.state, shown = self.step(self.params, self.state, *self.inputs)
        jax.block_until_ready(shown)
        return 1e3 * (time.perf_counter() - began) / frames


def full_state(world: World, batch: int) -> WorldState:
    """Sessions that have filled their ring and their sinks, as all but the youngest have."""
    state = empty(world, batch)
    ring = world.config.dynamics.window_frames
    ids = jnp.broadcast_to(jnp.arange(ring, 2 * ring, dtype=jnp.int32), (batch, ring))
    drawn = {
        name: jax.random.normal(jax.random.key(i), (held := getattr(state.cache, name)).shape, held.dtype)
        for i, name in enumerate(("keys", "values", "sink_keys", "sink_values", "recent"))
    }
    cache = dataclasses.replace(state.cache, **drawn, frame=ids, next=jnp.full((batch,), 2 * ring, jnp.int32))
    latent = jax.random.normal(jax.random.key(9), state.latent.shape)
    return dataclasses.replace(state, cache=cache, latent=latent, is_pending=jnp.ones((batch,), bool))


def measure(world: World, params: Params, batch: int, rounds: int, frames: int) -> dict[str, Any]:
    """Median milliseconds a frame of both arms, and how far apart their dreams are after the first frame."""
    arms = {name: Arm(world, params, batch, name) for name in ARMS}
    for arm in arms.values():
        arm.run(1)
    apart = float(jnp.abs(arms["auto"].state.latent - arms["reference"].state.latent).max())
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds):
        for name in ARMS if turn % 2 else ARMS[::-1]:
            times[name].append(arms[name].run(frames))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {"batch": batch, **{f"{name}_ms": value for name, value in medians.items()},
            "times_faster": medians["reference"] / medians["auto"], "largest_difference": apart}  # fmt: skip


def report(config: StepBenchConfig) -> dict[str, Any]:
    """Everything, as the JSON file has it."""
    world = World(config_file.load(config.config).world)
    params = world.for_playing(world.init(jax.random.key(0)))
    rows = []
    for batch in config.batches:
        print(f"batch {batch} ...", file=sys.stderr, flush=True)
        row = measure(world, params, batch, config.rounds, config.frames)
        row["sessions"] = int(batch * 1e3 / row["auto_ms"] / config.rate)
        row["per_session_hour"] = config.price / row["sessions"] if config.price and row["sessions"] else None
        rows.append(row)
    weights = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    return {
        "config": config.config.as_posix(), "weights": weights, "dtype": world.config.dynamics.dtype,
        "passes": world.config.sampler.steps, "device": device(), "jax": jax.__version__, "commit": commit(), "rows": rows,
    }  # fmt: skip


def markdown(found: dict[str, Any], rate: float) -> str:
    """As a table for people."""
    head = f"| batch | kernels, ms a frame | references, ms | times faster | largest difference | sessions at {rate:g} fps |"
    lines = [head, "|---|---|---|---|---|---|"]
    for row in found["rows"]:
        cost = "" if row["per_session_hour"] is None else f" ({row['per_session_hour']:.4f} an hour each)"
        lines.append(
            f"| {row['batch']} | {row['auto_ms']:.3f} | {row['reference_ms']:.3f} | {row['times_faster']:.2f} | "
            f"{row['largest_difference']:.1e} | {row['sessions']}{cost} |"
        )
    return "\n".join(lines)


def main() -> int:
    """The command line; returns the exit status."""
    try:
        config = tyro.cli(StepBenchConfig, prog="python -m wm_jax.eval.step_bench", description=__doc__)
        found = report(config)
    except (ValueError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(", ".join(f"{name} {value}" for name, value in found.items() if name != "rows"))
    print(markdown(found, config.rate))
    if config.json is not None:
        config.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
