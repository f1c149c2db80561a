"""How fast is Oasis-500M on this machine? Compile, first frame, steady frame, decode, memory; with random weights if need be.

    python -m wm_jax.eval.oasis_latency --steps 10 4

Times are seconds of the clock and seconds of all CPU cores together: on a busy machine only the second means something.
"""

import dataclasses
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax

from wm_jax.ports.open_oasis import RELEASED, OasisConfig, OasisState, OasisWorld, load, start, step
from wm_jax.ports.open_oasis.step import decode
from wm_jax.types import Params, Prompt


@dataclasses.dataclass(frozen=True)
class OasisLatencyConfig:
    """Measure the speed of Oasis-500M."""

    weights: Path | None = None
    """The folder of the released files; random weights of the same shapes where none is given."""
    steps: tuple[int, ...] = (10, 4)
    """Denoising passes a frame, measured one after the other."""
    batch: int = 1
    """Sessions a step."""
    dtype: str = "float32"
    """In which both rooms compute."""
    repeats: int = 3
    """How often each is measured; the median is told."""


class Spent(NamedTuple):
    """What something took, in seconds.

    Attributes:
      clock: Of the clock on the wall.
      cpu: Of all threads of this process.
    """

    clock: float
    cpu: float


def measure(world: OasisWorld, params: Params, batch: int, repeats: int, tell: Callable[[str, Spent], None]) -> None:
    """Tells what a session's first frame, a steady frame and their parts take; each right after its compilation."""
    image = (batch, 1, *world.config.autoencoder.image, 3)
    prompt, actions = Prompt(np.full(image, 128, np.uint8)), np.zeros((batch, world.config.transformer.actions))

    def first():
        state = start(world, params, prompt, jax.random.key(0))
        return step(world, params, state, actions)

    (state, _), spent = timed(first)
    tell("compile start and step", spent)
    del state
    (state, _), spent = timed(first)
    tell("first frame", spent)
    steady, alone = [], []
    products = jax.jit(lambda weights, x: matrix_products(world.config, weights, x))
    draft = jnp.ones((batch, tokens(world), world.config.transformer.width), world.config.transformer.dtype)
    timed(lambda: products(params, draft))
    # The ring is full: its cost is that of its size, whatever lies in it.
    state = dataclasses.replace(state, frame=state.frame + world.config.transformer.window_frames)
    for _ in range(repeats):  # in turns, so that a busy machine hits both
        state, spent = _next(world, params, state, actions)
        steady.append(spent)
        alone.append(timed(lambda: products(params, draft))[1])
    tell("steady frame, window full", median(steady))
    tell("its matrix products alone", median(alone))
    shown = jax.jit(decode, static_argnums=0)
    timed(lambda: shown(world, params, state.latent[:, None]))
    tell("its decode", median([timed(lambda: shown(world, params, state.latent[:, None]))[1] for _ in range(repeats)]))


def matrix_products(config: OasisConfig, params: Params, x: Any) -> Any:
    """All products with weights that one frame needs, and nothing between them: what no implementation can save.

    `x` are tokens `[b s d]`. Attention's own products are left out, so the bound is a little too low.
    """
    blocks, net = params["transformer"]["blocks"], config.transformer

    def half(x, weights):
        q, _, _ = jnp.split(x @ weights["qkv"]["kernel"], 3, axis=-1)
        x = q @ weights["merge"]["kernel"]
        return x @ weights["mlp"]["hidden"]["kernel"] @ weights["mlp"]["out"]["kernel"]

    def one_pass(x):
        def layer(x, weights):
            return half(half(x, weights["space"]), weights["time"]), None

        return lax.scan(layer, x.reshape(-1, x.shape[-1]), blocks)[0]

    def again(x, _):
        return one_pass(x), None

    def row(weights):
        rows = jnp.ones((x.shape[0] * (config.steps + 1), net.width), net.dtype)
        return (rows @ weights["kernel"]).sum()

    both = one_pass(jnp.concatenate([x, x], axis=1))
    last, _ = lax.scan(again, both[: x.shape[0] * x.shape[1]], None, length=config.steps - 1)
    modulation = [lax.map(row, blocks[name]["modulation"]) for name in ("space", "time")]
    cells = config.autoencoder.grid[0] * config.autoencoder.grid[1]
    pixels = jnp.ones((x.shape[0] * cells, config.autoencoder.width), config.autoencoder.dtype)
    pixels, _ = lax.scan(lambda y, weights: (half(y, weights), None), pixels, params["autoencoder"]["decoder"])
    return last, modulation, pixels @ params["autoencoder"]["to_pixels"]["kernel"]


def tokens(world: OasisWorld) -> int:
    """Of one frame, in the transformer."""
    return world.config.cells[0] * world.config.cells[1]


def timed(call: Callable[[], Any]) -> tuple[Any, Spent]:
    """What the call gives once it is there, and what it took."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(call())
    return result, Spent(time.perf_counter() - clock, time.process_time() - cpu)


def median(spent: list[Spent]) -> Spent:
    return Spent(*(float(np.median([getattr(one, field) for one in spent])) for field in Spent._fields))


def _next(world: OasisWorld, params: Params, state: OasisState, actions: np.ndarray) -> tuple[OasisState, Spent]:
    (state, _), spent = timed(lambda: step(world, params, state, actions))
    return state, spent


def main() -> int:
    """The command line; returns the exit status."""
    asked = tyro.cli(OasisLatencyConfig, prog="python -m wm_jax.eval.oasis_latency")
    rooms = {
        room: dataclasses.replace(getattr(RELEASED, room), dtype=asked.dtype) for room in ("transformer", "autoencoder")
    }
    config = dataclasses.replace(RELEASED, **rooms)
    world, params = _weights(config, asked.weights)
    params = jax.block_until_ready(world.for_playing(params))
    print(
        f"{jax.devices()[0].device_kind}, batch {asked.batch}, {asked.dtype}: seconds of the clock, of the CPU",
        flush=True,
    )
    for steps in asked.steps:

        def tell(what: str, spent: Spent, steps: int = steps) -> None:
            print(f"{steps:3} steps  {what:28} {spent.clock:9.3f} {spent.cpu:9.3f}", flush=True)

        world = OasisWorld(dataclasses.replace(config, steps=steps))
        measure(world, params, asked.batch, asked.repeats, tell)
    print(
        f"weights {_megabytes(params):.0f} MB, peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB"
    )
    return 0


def _weights(config: OasisConfig, folder: Path | None) -> tuple[OasisWorld, Params]:
    if folder is not None:
        return load(folder, config)
    return OasisWorld(config), OasisWorld(config).init(jax.random.key(0))


def _megabytes(params: Params) -> float:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e6


if __name__ == "__main__":
    sys.exit(main())
