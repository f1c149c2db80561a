"""How far is Oasis with few passes from Oasis with many? Latents and frames of each solver against 50 passes of DDIM.

    python -m wm_jax.eval.oasis_error --weights DIR --out error.png
    python -m wm_jax.eval.oasis_error --mixture                          # an exact answer is known: no network at all

All start from the same prompt, hear the same actions and get the same noise. Each arm dreams on alone, so that the error of
the eighth frame holds those of the seven before it.
"""

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from wm_jax.eval import plot
from wm_jax.eval.image import psnr
from wm_jax.eval.oasis_world import OasisChoice
from wm_jax.eval.table import grid
from wm_jax.ports.open_oasis import OasisWorld, from_actions, schedule
from wm_jax.ports.open_oasis.config import SOLVERS, Solver
from wm_jax.types import Params, Prompt
from wm_jax.world import start, step

MANY = 50


@dataclasses.dataclass(frozen=True)
class OasisErrorConfig(OasisChoice):
    """The error of few passes."""

    mixture: bool = False
    """Dream of a mixture of Gaussians, whose velocity is known, instead of Oasis; against its exact flow."""
    steps: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
    """Denoising passes a frame."""
    frames: tuple[int, ...] = (1, 8)
    """Which frames after the prompt are looked at."""
    sessions: int = 4
    """Dreams that the error is taken over, each with noise and actions of its own."""
    out: Path | None = None
    """A picture of the curves."""


@dataclasses.dataclass(frozen=True)
class Error:
    """How far one solver with one number of passes is from the answer.

    Attributes:
      solver: Which.
      steps: Passes a frame.
      frame: Counted from the prompt.
      relative: Root mean square of the latent's error over that of the latent.
      psnr: Of the decoded frame against the answer's, in dB; None where there is no frame.
    """

    solver: Solver
    steps: int
    frame: int
    relative: float
    psnr: float | None


def curves(world: OasisWorld, params: Params, config: OasisErrorConfig) -> list[Error]:
    """Of every solver and number of passes, at each of the frames."""
    truth = _dream(world, params, "ddim", MANY, config)
    found = []
    for solver, steps in itertools.product(SOLVERS, config.steps):
        made = _dream(world, params, solver, steps, config)
        for frame in config.frames:
            (latent, shown), (right, wanted) = made[frame], truth[frame]
            found.append(Error(solver, steps, frame, relative(latent, right), float(np.mean(psnr(shown, wanted)))))
    return found


def _dream(world: OasisWorld, params: Params, solver: Solver, steps: int, config: OasisErrorConfig) -> dict[int, Any]:
    """Latents and frames `[b ...]` of the frames that are looked at."""
    world = OasisWorld(dataclasses.replace(world.config, solver=solver, steps=steps))
    rng, rows = np.random.default_rng(0), config.sessions
    image = rng.integers(0, 256, (rows, 1, *world.config.autoencoder.image, 3), np.uint8)
    actions = rng.integers(0, 2, (max(config.frames), rows, world.config.transformer.actions)).astype(np.float32)
    state, seen = start(world, params, Prompt(image), jax.random.key(1)), {}
    for i, held in enumerate(actions, start=1):
        state, shown = step(world, params, state, from_actions(held))
        if i in config.frames:
            seen[i] = np.asarray(state.latent), np.asarray(shown)
    return seen


def mixture_curves(config: OasisErrorConfig, dimensions: int = 16, modes: int = 8, width: float = 0.3) -> list[Error]:
    """The same of a mixture of Gaussians of one width, its velocity exact; the answer is its flow in 1,000 passes."""
    rng = np.random.default_rng(0)
    middles = jnp.asarray(rng.standard_normal((modes, dimensions)), jnp.float32)
    noise = jnp.asarray(rng.standard_normal((128 * config.sessions, dimensions)), jnp.float32)

    def velocity(noisy: Float[Array, "n d"], share: Float[Array, ""]) -> Float[Array, "n d"]:
        spread, root = share * width**2 + 1.0 - share, jnp.sqrt(share)
        distance = jnp.sum((noisy[:, None] - root * middles) ** 2, axis=-1)
        middle = jax.nn.softmax(-0.5 * distance / spread, axis=-1) @ middles
        clean = middle + root * width**2 / spread * (noisy - root * middle)
        return (root * noisy - clean) / jnp.sqrt(1.0 - share)

    def flow(solver: Solver, steps: int) -> np.ndarray:
        passes = schedule.plan(1000, steps, solver)

        def one(carry, now):
            noisy, before = carry
            return schedule.solve(solver, noisy, velocity(noisy, now.share), now, before), None

        now = passes.of(0)
        first = schedule.solve(solver, noise, velocity(noise, now.share), now, None)
        return np.asarray(jax.lax.scan(one, first, jax.tree.map(lambda rows: rows[1:], passes))[0][0])

    truth = flow("dpmpp2m", 1000)
    return [
        Error(solver, steps, 1, relative(flow(solver, steps), truth), None)
        for solver, steps in itertools.product(SOLVERS, config.steps)
    ]


def relative(found: np.ndarray, right: np.ndarray) -> float:
    """Size of the difference over the size of what is right, both as root mean squares."""
    return float(np.linalg.norm(found - right) / np.linalg.norm(right))


def table(errors: list[Error]) -> list[str]:
    """Markdown: a row for each number of passes, columns for frames and solvers."""
    columns = list(dict.fromkeys((one.frame, one.solver) for one in errors))
    cells = {(one.steps, one.frame, one.solver): one for one in errors}

    def text(one: Error) -> str:
        return f"{one.relative:.4f}" + ("" if one.psnr is None else f", {one.psnr:.1f} dB")

    steps = sorted({one.steps for one in errors})
    rows = [(count, *(text(cells[count, *column]) for column in columns)) for count in steps]
    return grid(("passes", *(f"frame {frame}, {solver}" for frame, solver in columns)), rows)


def main() -> int:
    """The command line; returns the exit status."""
    config = tyro.cli(OasisErrorConfig, prog="python -m wm_jax.eval.oasis_error")
    try:
        errors = mixture_curves(config) if config.mixture else curves(*config.load(), config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    answer = "its exact flow" if config.mixture else f"{MANY} passes of DDIM"
    name = "a mixture of Gaussians" if config.mixture else config.config().name
    print("\n".join(table(errors)))
    if config.out is not None:
        plot.write_errors(config.out, f"{name}, against {answer}", errors)
    return 0


if __name__ == "__main__":
    sys.exit(main())
