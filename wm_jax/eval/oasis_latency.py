"""How fast is Oasis-500M on this machine? Compile, first frame, steady frame, decode, memory; streams and what one costs.

    python -m wm_jax.eval.latency oasis-500m --random-weights --steps 10 4

Times are seconds of the clock and seconds of all CPU cores together: on a busy machine only the second means something.
"""

import dataclasses
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
import tyro
from jax import lax

from wm_jax.eval import aging
from wm_jax.eval.oasis_world import OasisChoice
from wm_jax.eval.progress import progress
from wm_jax.eval.table import grid
from wm_jax.ports.open_oasis import CONTROLS, OasisConfig, OasisState, OasisWorld
from wm_jax.ports.open_oasis.frame import decode
from wm_jax.ports.open_oasis.layers import in_order, linear
from wm_jax.ports.open_oasis.ring import Ring
from wm_jax.types import Controls, Params, Prompt
from wm_jax.world import rollout, start, step

HALVES = ("space", "time")


@dataclasses.dataclass(frozen=True)
class OasisLatencyConfig(OasisChoice):
    """Measure the speed of Oasis-500M."""

    steps: tuple[int, ...] = (10, 4)
    """Denoising passes a frame, measured one after the other."""
    batch: tuple[int, ...] = ()
    """Sessions a step; where none is given 1, 4, 8 and 16, on a CPU 1."""
    repeats: int | None = None
    """How often each is measured; where it is not given 100 times, on a CPU 3."""
    price_per_hour: float = 2.5
    """Dollars for an hour of this device."""
    frames: int = 0
    """Compare a dream of so many frames with one of 100 instead: time and memory must be flat."""
    json: Path | None = None
    """A file for the numbers."""


class Spent(NamedTuple):
    """What something took, in seconds.

    Attributes:
      clock: Of the clock on the wall.
      cpu: Of all threads of this process.
    """

    clock: float
    cpu: float


@dataclasses.dataclass(frozen=True)
class Speed:
    """One number of steps at one number of sessions; seconds of `Spent`, megabytes of 10**6.

    Attributes:
      steps: Denoising passes a frame.
      batch: Sessions a step.
      compiled: Start and step, compiled and run once.
      first: A session's first frame after one prompt frame, its encoding included.
      steady: A whole step, window full, decoded; the median.
      steady_p99: Of the clock.
      products: The products with the weights that such a step needs, alone; the median.
      all_products: The same with attention's products.
      decode: Latents to pixels alone.
      fps: Frames a second of all sessions together, by the clock.
      streams: How many sessions at the world's rate that is.
      stream_hour: Dollars for an hour of one.
      weights_mb: All weights as they are played.
      state_mb: One session.
      peak_mb: The largest memory up to then, loading and earlier rows included: the device's where it tells, else the process's.
    """

    steps: int
    batch: int
    compiled: Spent
    first: Spent
    steady: Spent
    steady_p99: float
    products: Spent
    all_products: Spent
    decode: Spent
    fps: float
    streams: float
    stream_hour: float
    weights_mb: float
    state_mb: float
    peak_mb: float


def measure(world: OasisWorld, params: Params, batch: int, repeats: int, price: float) -> Speed:
    """Times a session's first frame, a steady frame and their parts, each once it is compiled."""
    image = (batch, 1, *world.config.autoencoder.image, 3)
    prompt, held = Prompt(np.full(image, 128, np.uint8)), Controls(np.zeros((batch, len(CONTROLS.keys)), bool))

    def first() -> tuple[OasisState, Any]:
        return step(world, params, start(world, params, prompt, jax.random.key(0)), held)

    state, compiled = timed(first)
    del state
    (state, _), spent = timed(first)
    state_mb = aging.state_mb(state) / batch
    # The ring is full: its cost is that of its size, whatever lies in it.
    state = dataclasses.replace(state, frame=state.frame + world.config.transformer.window_frames)
    steady, products = _steady(world, params, state, held, repeats)
    typical = median(steady)
    fps = batch / typical.clock
    return Speed(
        steps=world.config.steps,
        batch=batch,
        compiled=compiled,
        first=spent,
        steady=typical,
        steady_p99=float(np.percentile([one.clock for one in steady], 99)),
        products=median(products[False]),
        all_products=median(products[True]),
        decode=_decode(world, params, batch, repeats),
        fps=fps,
        streams=fps / world.config.fps,
        stream_hour=price * world.config.fps / fps,
        weights_mb=sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e6,
        state_mb=state_mb,
        peak_mb=aging.peak_mb(),
    )


def _steady(world: OasisWorld, params: Params, state: OasisState, held: Controls, repeats: int):
    """Steps, and their products without attention's and with them; in turns, so that a busy machine hits all."""
    draft, steady = drafts(world.config, len(held.keys)), []
    products: dict[bool, list[Spent]] = {False: [], True: []}

    def multiply(has_attention: bool, past: Ring) -> Spent:
        return timed(lambda: matrix_products(world.config.steps, has_attention, params, past, draft))[1]

    for has_attention in products:
        multiply(has_attention, state.past)  # compiles
    for _ in range(repeats):
        (state, _), spent = timed(functools.partial(step, world, params, state, held))
        steady.append(spent)
        for has_attention, found in products.items():
            found.append(multiply(has_attention, state.past))
    return steady, products


def _decode(world: OasisWorld, params: Params, batch: int, repeats: int) -> Spent:
    call = functools.partial(
        jax.jit(decode, static_argnums=0), world.config, params, jnp.zeros((batch, 1, *world.config.latent_shape))
    )
    timed(call)
    return median([timed(call)[1] for _ in range(repeats)])


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


@functools.partial(jax.jit, static_argnums=(0, 1))
def matrix_products(steps: int, has_attention: bool, params: Params, past: Ring, draft: Drafts) -> Any:
    """All products with the weights of layers that one frame needs, next to nothing between them.

    With attention, queries meet keys and weights meet values too, as batched products of the same sizes: in a frame, and with
    the ring. All lie as a batched product wants them, whatever stands there: nothing is turned around, no softmax is taken.
    """
    blocks, eye = in_order(params["transformer"]["blocks"]), params["autoencoder"]
    batch, size = past.keys.shape[1], past.keys.shape[5]

    def meeting(rows: Any, entries: Any = None) -> Callable[..., Any]:
        if not has_attention:
            return lambda q, k, v: q + k + v
        if entries is None:
            return functools.partial(_in_frame, len(rows) // batch, size)
        return functools.partial(_in_ring, *(part.reshape(-1, part.shape[1], size) for part in entries))

    def one_pass(x):
        for i, weights in enumerate(blocks):
            x = _half(x, weights["space"], meeting(draft.frame))
            x = _half(x, weights["time"], meeting(draft.frame, (past.keys[i], past.values[i])))
        return x

    both = one_pass(jnp.concatenate([draft.frame, draft.frame]))
    last, _ = lax.scan(lambda x, _: (one_pass(x), None), both[: len(draft.frame)], None, length=steps - 1)
    modulation = [jnp.sum(_product(draft.rows, each[name]["modulation"])) for each in blocks for name in HALVES]
    cells = draft.cells
    for weights in in_order(eye["decoder"]):
        cells = _half(cells, weights, meeting(draft.cells))
    return last, modulation, _product(cells, eye["to_pixels"])


def _half(x, weights: Params, meet: Callable[..., Any]):
    x = _product(meet(*jnp.split(_product(x, weights["qkv"]), 3, axis=-1)), weights["merge"])
    return _product(_product(x, weights["mlp"]["hidden"]), weights["mlp"]["out"])


def _product(x, weights: Params):
    return linear({"kernel": weights["kernel"]}, x)


def _in_frame(tokens: int, size: int, q, k, v):
    """Every token to all tokens of one frame, head by head."""
    shape = q.shape
    q, k, v = (x.reshape(-1, tokens, size) for x in (q, k, v))
    return (q @ k.mT @ v).reshape(shape)


def _in_ring(keys, values, q, *_):
    """Every token to all entries of its own site, head by head; its own frame, one entry more, is left out."""
    wanted = q.reshape(len(keys), -1, keys.shape[-1])
    return (wanted @ keys.mT @ values).reshape(q.shape)


def timed(call: Callable[[], Any]) -> tuple[Any, Spent]:
    """What the call gives once it is there, and what it took."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(call())
    return result, Spent(time.perf_counter() - clock, time.process_time() - cpu)


def median(spent: list[Spent]) -> Spent:
    return Spent(*(float(np.median([getattr(one, field) for one in spent])) for field in Spent._fields))


def aged(world: OasisWorld, params: Params, batch: int, frames: int, bar: rich.progress.Progress) -> aging.Aged:
    """What age does to a dream of these sessions."""
    held = Controls(np.random.default_rng(0).random((batch, aging.CHUNK, len(CONTROLS.keys))) < 0.3)
    player = aging.Player(
        lambda state, i: step(world, params, state, Controls(held.keys[:, i % aging.CHUNK])),
        lambda state, count: rollout(world, params, state, Controls(held.keys[:, :count])),
    )

    def session(seed: int) -> OasisState:
        image = np.full((batch, 1, *world.config.autoencoder.image, 3), 128, np.uint8)
        return start(world, params, Prompt(image), jax.random.key(seed))

    young, _ = aging.run(player, session(0), aging.YOUNG)
    return aging.compare(player, young, session(1), frames, bar, lambda old: None)


def table(config: OasisLatencyConfig, speeds: list[Speed]) -> list[str]:
    """Markdown, a line each: what a server is, then what it takes on a processor."""
    served = [
        (one.steps, one.batch, f"{one.fps:.2f}", f"{1e3 * one.steady.clock:.1f}", f"{1e3 * one.steady_p99:.1f}",
         f"{one.streams:.2f}", f"{one.stream_hour:.3f}", f"{one.state_mb:.0f}", f"{one.peak_mb:.0f}")
        for one in speeds
    ]  # fmt: skip
    parts = [
        (one.steps, one.batch, *(f"{spent.clock:.3f} / {spent.cpu:.3f}" for spent in
         (one.compiled, one.first, one.steady, one.products, one.all_products, one.decode)),
         f"{one.steady.cpu / one.products.cpu:.2f}", f"{one.steady.cpu / one.all_products.cpu:.2f}")
        for one in speeds
    ]  # fmt: skip
    dollars = f"$ a stream-hour at $ {config.price_per_hour:g} a device-hour"
    return [
        *grid(("steps", "batch", "frames/s", "step p50, ms", "p99, ms", "streams at the world's rate", dollars,
               "a session, MB", "peak so far, MB"), served),
        "Seconds of the clock / of all CPU cores together:", "",
        *grid(("steps", "batch", "compile", "first frame", "steady frame", "its products", "with attention's",
               "decode", "CPU over products", "with attention's"), parts),
    ]  # fmt: skip


def main(words: list[str]) -> int:
    """The command line after the world's name; returns the exit status."""
    asked = tyro.cli(OasisLatencyConfig, args=words, prog="python -m wm_jax.eval.latency oasis-500m")
    try:
        world, params = asked.load()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    jax.block_until_ready(params)
    is_cpu = jax.default_backend() == "cpu"
    batches = asked.batch or ((1,) if is_cpu else (1, 4, 8, 16))
    print(
        f"{world.config.name} on {jax.devices()[0].device_kind}, {world.config.transformer.dtype}, large weights "
        f"{world.config.transformer.weights or world.config.transformer.dtype}"
    )
    found: list[Any] = []
    for steps, batch in itertools.product(asked.steps, batches):
        stepping = OasisWorld(dataclasses.replace(world.config, steps=steps))
        if asked.frames:
            with progress(quiet=False) as bar:
                found.append(aged(stepping, params, batch, asked.frames, bar))
            print(f"{steps} steps, batch {batch}: {dataclasses.asdict(found[-1])}", flush=True)
        else:
            found.append(
                measure(stepping, params, batch, asked.repeats or (3 if is_cpu else 100), asked.price_per_hour)
            )
            print(f"{steps} steps, batch {batch}: {found[-1].fps:.2f} frames/s", file=sys.stderr, flush=True)
    if not asked.frames:
        print("\n" + "\n".join(table(asked, found)))
    if asked.json is not None:
        asked.json.write_text(json.dumps([dataclasses.asdict(one) for one in found], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
