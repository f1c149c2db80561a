"""How fast is Oasis-500M on this machine? Compile, first frame, steady frame, decode, memory; with random weights if need be.

    python -m wm_jax.eval.oasis_latency --steps 10 4

Times are seconds of the clock and seconds of all CPU cores together: on a busy machine only the second means something.
"""

import dataclasses
import functools
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

from wm_jax.ports.open_oasis import CONTROLS, RELEASED, OasisConfig, OasisState, OasisWorld, load
from wm_jax.ports.open_oasis.frame import decode
from wm_jax.types import Controls, Params, Prompt
from wm_jax.world import start, step


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
    prompt, held = Prompt(np.full(image, 128, np.uint8)), Controls(np.zeros((batch, len(CONTROLS.keys)), bool))

    def first():
        state = start(world, params, prompt, jax.random.key(0))
        return step(world, params, state, held)

    (state, _), spent = timed(first)
    tell("compile start and step", spent)
    del state
    (state, _), spent = timed(first)
    tell("first frame", spent)
    steady, alone = [], []
    draft = drafts(world.config, batch)

    def products():
        return matrix_products(world.config.steps, params, draft)

    timed(products)
    # The ring is full: its cost is that of its size, whatever lies in it.
    state = dataclasses.replace(state, frame=state.frame + world.config.transformer.window_frames)
    for _ in range(repeats):  # in turns, so that a busy machine hits both
        state, spent = _next(world, params, state, held)
        steady.append(spent)
        alone.append(timed(products)[1])
    tell("steady frame, window full", median(steady))
    tell("its matrix products alone", median(alone))
    shown = jax.jit(decode, static_argnums=0)
    timed(lambda: shown(world.config, params, state.latent[:, None]))
    tell(
        "its decode",
        median([timed(lambda: shown(world.config, params, state.latent[:, None]))[1] for _ in range(repeats)]),
    )


class Drafts(NamedTuple):
    """What the matrix products are taken of; made outside the compiled call, so that none is a constant of it.

    Attributes:
      frame: Tokens of one frame of every session, `[b*s d]`.
      rows: One a session, pass and committed frame, `[b*(n+1) d]`.
      cells: Tokens of one picture of every session, `[b*y*x d]`.
    """

    frame: Any
    rows: Any
    cells: Any


def drafts(config: OasisConfig, batch: int) -> Drafts:
    """As many tokens and rows as a step has."""
    net, eye = config.transformer, config.autoencoder
    return Drafts(
        jnp.ones((batch * config.cells[0] * config.cells[1], net.width), net.dtype),
        jnp.ones((batch * (config.steps + 1), net.width), net.dtype),
        jnp.ones((batch * eye.grid[0] * eye.grid[1], eye.width), eye.dtype),
    )


@functools.partial(jax.jit, static_argnums=0)
def matrix_products(steps: int, params: Params, draft: Drafts) -> Any:
    """All products with the weights of layers that one frame needs, next to nothing between them.

    What attention multiplies is left out, so that this bound of every implementation is a little too low.
    """
    blocks = params["transformer"]["blocks"]

    def half(x, weights):
        q, k, v = jnp.split(x @ weights["qkv"]["kernel"], 3, axis=-1)
        x = (q + k + v) @ weights["merge"]["kernel"]
        return x @ weights["mlp"]["hidden"]["kernel"] @ weights["mlp"]["out"]["kernel"]

    def one_pass(x):
        return lax.scan(lambda x, w: (half(half(x, w["space"]), w["time"]), None), x, blocks)[0]

    both = one_pass(jnp.concatenate([draft.frame, draft.frame]))
    last, _ = lax.scan(lambda x, _: (one_pass(x), None), both[: len(draft.frame)], None, length=steps - 1)
    modulation = [
        lax.map(lambda w: jnp.sum(draft.rows @ w["kernel"]), blocks[name]["modulation"]) for name in ("space", "time")
    ]
    cells, _ = lax.scan(lambda x, w: (half(x, w), None), draft.cells, params["autoencoder"]["decoder"])
    return last, modulation, cells @ params["autoencoder"]["to_pixels"]["kernel"]


def timed(call: Callable[[], Any]) -> tuple[Any, Spent]:
    """What the call gives once it is there, and what it took."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(call())
    return result, Spent(time.perf_counter() - clock, time.process_time() - cpu)


def median(spent: list[Spent]) -> Spent:
    return Spent(*(float(np.median([getattr(one, field) for one in spent])) for field in Spent._fields))


def _next(world: OasisWorld, params: Params, state: OasisState, held: Controls) -> tuple[OasisState, Spent]:
    (state, _), spent = timed(lambda: step(world, params, state, held))
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
