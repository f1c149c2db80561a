"""What could copying reach? Each block of the truth, fetched from where the prompt shows it best.

    python -m wm_jax.eval.ceiling worlds/coinrun

A reference beside the scores of a world, not a bound on them. It is told what no dream knows, since the truth itself
chooses each block; and it lacks what a dream has, since it only copies whole blocks from whole-pixel places of the
prompt. A dream can beat it: by scrolling less than a pixel, by blurring towards the mean of what may come, by tiles
learned in training. Where even this is low, much of what comes was never on the screen. Small blocks flatter: the smaller, the
likelier a good match by chance.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, UInt8

from wm_jax.eval import table
from wm_jax.eval.clips import choose_clips, open_held_out
from wm_jax.eval.image import psnr
from wm_jax.world import load

HIGHEST = 20 * np.log10(255)


@dataclasses.dataclass(frozen=True)
class CeilingConfig:
    """Measure what copying blocks of the prompt could reach, on the clips that the evaluation uses."""

    run: tyro.conf.Positional[Path]
    """A world folder or a run: says which game and which clips."""
    episodes: Path | None = None
    """The held-out recording; episodes/<env>_held_out by default."""
    blocks: tuple[int, ...] = (8, 16, 32)
    """Pixels a side of what is copied as one piece."""
    horizons: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    """Frames after the prompt; the farthest decides which clips, so leave 64 to have those of the evaluation."""
    clips: int = 256
    """How many clips."""
    prompt_frames: int = 8
    """Frames to copy from."""
    held_out_frames: int = 20_000
    """As in the evaluation."""
    seed: int = 0
    """As in the evaluation."""


@functools.partial(jax.jit, static_argnums=2)
def copied_error(prompt: UInt8[Array, "p h w 3"], truth: UInt8[Array, "h w 3"], block: int) -> Float[Array, ""]:
    """Mean squared error (bytes) of `truth` rebuilt from blocks of `block` pixels, each from its best place in `prompt`.

    Places are whole pixels and lie inside a frame. Height and width are multiples of `block`.
    """
    prompt, truth = prompt.astype(jnp.float32), truth.astype(jnp.float32)
    rows, columns = truth.shape[0] // block, truth.shape[1] // block
    pieces = truth.reshape(rows, block, columns, block, 3).transpose(1, 3, 4, 0, 2).reshape(block, block, 3, -1)

    def slide(image, kernel):
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    energy = slide(prompt**2, jnp.ones((block, block, 3, 1)))
    distance = energy - 2 * slide(prompt, pieces) + jnp.sum(pieces**2, axis=(0, 1, 2))
    return jnp.sum(jnp.maximum(distance.min(axis=(0, 1, 2)), 0.0)) / truth.size


def measure(config: CeilingConfig) -> list[list[str]]:
    """One row a horizon: clips, repeat-last-frame, and mean PSNR in dB (at most 48.1) for each block size."""
    world, _ = load(config.run)
    path = config.episodes or Path("episodes") / f"{world.config.env}_held_out"
    recording = open_held_out(path, world.config, config.held_out_frames)
    clips = choose_clips(recording, config.clips, config.prompt_frames, max(config.horizons), config.seed)
    rows = []
    for horizon in config.horizons:
        true = np.flatnonzero(clips.is_true[:, horizon - 1])
        prompts, truths = clips.frames[true, : config.prompt_frames], clips.truth[true, horizon - 1]
        cells = [f"{psnr(prompts[:, -1], truths).mean():.2f}"]
        for block in config.blocks:
            errors = np.asarray([copied_error(p, t, block) for p, t in zip(prompts, truths, strict=True)])
            cells.append(f"{np.minimum(10 * np.log10(255**2 / np.maximum(errors, 1e-9)), HIGHEST).mean():.2f}")
        rows.append([str(horizon), str(len(true)), *cells])
    return rows


def main() -> int:
    """The command line; returns the exit status."""
    config = tyro.cli(CeilingConfig, prog="python -m wm_jax.eval.ceiling")
    try:
        rows = measure(config)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    names = ["frames after the prompt", "clips", "repeat last frame", *(f"{b} x {b} blocks" for b in config.blocks)]
    print("\n".join(table.grid(tuple(names), [tuple(row) for row in rows])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
