"""How fast a run learns on this machine: python -m wm_jax.training.bench configs/coinrun/dynamics.py

Times the compiled update on a random batch of the run's shapes, in turn with a plain matrix product, so that both see the same
machine: frames a second, and the update's products and convolutions as a share of that product's rate. No recording
is needed; what a loader costs is not in it.
"""

import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from wm_jax import host_memory
from wm_jax.config import ConfigError
from wm_jax.eval.provenance import commit, device
from wm_jax.training.config import TrainConfig, load_config
from wm_jax.training.objectives.reconstruction import Reconstruction
from wm_jax.training.source import LatentClip
from wm_jax.training.state import init_state
from wm_jax.training.step import make_train_step
from wm_jax.types import Clip, Controls

PRODUCT = 2048


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What is measured. Example: python -m wm_jax.training.bench configs/coinrun/dynamics.py"""

    config: tyro.conf.Positional[Path]
    """A run's config file."""
    rounds: int = 10
    """How often each arm is timed; the median counts."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"--rounds is {self.rounds}, it must be at least 1")


def measure(config: TrainConfig, rounds: int) -> dict[str, Any]:
    """Frames a second of the update, and its rate beside that of a matrix product, both as medians of interleaved rounds."""
    train_step, batch = make_train_step(config), random_batch(config)
    state = init_state(dataclasses.replace(config, autoencoder_from=None))
    flops = product_flops(jax.make_jaxpr(train_step)(state, batch).jaxpr)
    # The autoencoder computes in float32 whatever the dynamics do.
    dtype = "float32" if isinstance(config.objective, Reconstruction) else config.world.dynamics.dtype
    square = jax.random.normal(jax.random.key(0), (PRODUCT, PRODUCT), jnp.dtype(dtype))
    multiply = jax.jit(jnp.matmul)

    def update() -> Any:
        nonlocal state
        state, metrics = train_step(state, batch)
        return metrics["loss"]

    for arm in (update, update, lambda: multiply(square, square)):
        jax.block_until_ready(arm())
    times = [(_seconds(update), _seconds(lambda: multiply(square, square))) for _ in range(rounds)]
    update_s, product_s = (statistics.median(column) for column in zip(*times, strict=True))
    rate, best = flops / update_s, 2 * PRODUCT**3 / product_s
    frames = config.data.batch * config.data.clip_frames
    return {
        "run": config.name,
        "batch": f"{config.data.batch} clips x {config.data.clip_frames} frames",
        "dtype": dtype,
        "update, ms": 1e3 * update_s,
        "frames/s": frames / update_s,
        "products of an update, GFLOP": flops / 1e9,
        "their rate, GFLOP/s": rate / 1e9,
        f"{PRODUCT} x {PRODUCT} product, GFLOP/s": best / 1e9,
        "share of that rate": rate / best,
        "device": device(),
        "jax": jax.__version__,
        "commit": commit(),
    }


def random_batch(config: TrainConfig) -> Clip | LatentClip:
    """A batch of the run's shapes: noise for frames or latents, every key half of the time."""
    rng, shape = np.random.default_rng(0), (config.data.batch, config.data.clip_frames)
    controls = Controls(keys=rng.random((*shape, len(config.world.controls.keys))) < 0.5)
    is_first = np.zeros(shape, bool)
    if isinstance(config.objective, Reconstruction):
        return Clip(rng.integers(0, 256, (*shape, *config.world.image, 3), np.uint8), controls, is_first)
    latents = rng.standard_normal((*shape, *config.world.latent_shape), np.float32).astype(np.float16)
    return LatentClip(latents, controls, is_first)


def product_flops(jaxpr: Any) -> int:
    """Multiplications and additions of all matrix products and convolutions in a traced program, loops counted out."""
    return sum(_flops(equation) for equation in jaxpr.eqns)


def _flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, layout = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[layout[0]]
    inner = sum(product_flops(part) for value in params.values() for part in _programs(value))
    return inner * params["length"] if name == "scan" else inner


def _programs(value: Any) -> list[Any]:
    """The traced programs in a parameter of an equation: the body of a scan, the function of a call."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return [part for part in (getattr(item, "jaxpr", item) for item in values) if hasattr(part, "eqns")]


def _seconds(arm: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(arm())
    return time.perf_counter() - start


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    rows = [f"| {name} | {f'{value:.4g}' if isinstance(value, float) else value} |" for name, value in report.items()]
    return "\n".join(["| measure | value |", "|---|---|", *rows])


def main() -> int:
    """The command line; returns the exit status."""
    try:
        options = tyro.cli(BenchConfig, prog="python -m wm_jax.training.bench")
        host_memory.keep_freed_memory()
        report = measure(load_config(options.config), options.rounds)
    except (ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=1) if options.json else markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
