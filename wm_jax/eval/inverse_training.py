"""Trains the inverse-dynamics model on recorded play; minutes on two CPU cores.

    python -m wm_jax.eval.inverse_training --episodes episodes/coinrun --held-out episodes/coinrun_held_out \\
        --out worlds/coinrun/idm.safetensors
"""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Bool, UInt8

from wm_jax.data import EpisodeError, EpisodeFolder
from wm_jax.eval.control import Head, HeadScore, classes_of, heads_of, mean_over_heads, score
from wm_jax.eval.inverse import OFFSETS, Inverse, apply, greyed, init, save
from wm_jax.eval.progress import progress

_BANK = 1 << 20
_STRONGEST_NOISE = 4 / 127.5


@dataclasses.dataclass(frozen=True)
class InverseConfig:
    """Train an inverse-dynamics model on recorded play."""

    episodes: Path
    """A recording of the training split."""
    out: Path
    """The file to write."""
    held_out: Path | None = None
    """A held-out recording; its accuracy is printed and written into the file."""
    steps: int = 1500
    """Batches."""
    batch: int = 128
    """Windows a batch."""
    learning_rate: float = 2e-3
    """The highest, after a warm-up; falls to zero along a cosine."""
    seed: int = 0
    """Order of the windows and first weights."""


def train(config: InverseConfig, *, quiet: bool = False) -> Inverse:
    """Trains on the recording; the loss sees each class at its own frequency, the answers do not.

    Raises:
      EpisodeError: the recording is broken.
    """
    folder = EpisodeFolder.open(config.episodes)
    heads, rng = heads_of(folder.controls), np.random.default_rng(config.seed)
    priors = _frequencies(folder, heads)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, 50, max(config.steps, 51))
    optimizer = optax.adamw(schedule, weight_decay=1e-2)
    params = init(heads, folder.image, jax.random.key(config.seed))
    carry, loss = (params, optimizer.init(params)), None
    sizes = tuple(head.classes for head in heads)
    # Cuts from a bank of normal numbers: drawing fresh ones would cost as much as the network.
    bank = rng.standard_normal(_BANK, np.float32)
    update = functools.partial(_update, optimizer, sizes, jnp.log(jnp.concatenate(priors)), jnp.asarray(bank))
    with progress(quiet) as bar:
        task = bar.add_task("inverse dynamics", total=config.steps)
        for _ in range(config.steps):
            windows, keys = draw_windows(folder, config.batch, rng)
            starts = rng.integers(0, _BANK // 2, config.batch, np.int32)
            strengths = rng.uniform(0, _STRONGEST_NOISE, config.batch).astype(np.float32)
            carry, loss = update(carry, (windows, classes_of(heads, keys), starts, strengths))
            bar.advance(task)
    facts = {"episodes": config.episodes.name, "frames": folder.num_frames, "steps": config.steps,
             "batch": config.batch, "seed": config.seed, "loss": float(loss if loss is not None else np.nan)}  # fmt: skip
    return Inverse(folder.controls, folder.image, jax.device_get(carry[0]), facts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _update(optimizer, sizes, log_priors, bank, carry, batch):
    params, moments = carry
    windows, classes, starts, strengths = batch
    grey = _disturb(greyed(windows), bank, starts, strengths)

    def loss_of(params):
        logits = apply(params, grey) + log_priors[None]
        parts = jnp.split(logits, np.cumsum(sizes)[:-1], axis=-1)
        losses = [optax.softmax_cross_entropy_with_integer_labels(part, classes[:, i]) for i, part in enumerate(parts)]
        return jnp.mean(jnp.stack(losses))

    loss, gradient = jax.value_and_grad(loss_of)(params)
    change, moments = optimizer.update(gradient, moments, params)
    return (optax.apply_updates(params, change), moments), loss


def _frequencies(folder: EpisodeFolder, heads: tuple[Head, ...]) -> list[np.ndarray]:
    """How often each class of each head occurs, none below 0.1 %."""
    keys = np.concatenate([folder.keys(i)[1:] for i in range(folder.num_episodes)])
    classes = classes_of(heads, keys)
    counts = [np.bincount(classes[:, i], minlength=head.classes) for i, head in enumerate(heads)]
    shares = [np.maximum(count / len(keys), 1e-3).astype(np.float32) for count in counts]
    return [share / share.sum() for share in shares]


def draw_windows(
    folder: EpisodeFolder, count: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "n window h w 3"], Bool[np.ndarray, "n keys"]]:
    """Windows around frames drawn evenly from the recording, and the keys that led to those frames."""
    lengths = np.array([episode.length for episode in folder.episodes])
    chosen = rng.choice(len(lengths), count, p=(lengths - 1) / (lengths - 1).sum())
    windows, keys = [], []
    for i in chosen:
        place = int(rng.integers(1, lengths[i]))
        low, high = max(place + OFFSETS[0], 0), min(place + OFFSETS[-1], int(lengths[i]) - 1)
        frames = folder.frames(int(i), low, high - low + 1)
        windows.append(frames[np.clip(place + np.array(OFFSETS), low, high) - low])
        keys.append(folder.keys(int(i), place, 1)[0])
    return np.stack(windows), np.stack(keys)


def _disturb(grey, bank, starts, strengths):
    """Blurs half of the windows and adds a little noise: a dream must be judged by its motion, not by its sharpness."""
    half = grey.shape[0] // 2
    blurred = grey[:half]
    for axis in (2, 3):
        blurred = 0.5 * blurred + 0.25 * (jnp.roll(blurred, 1, axis) + jnp.roll(blurred, -1, axis))
    grey = jnp.concatenate([blurred, grey[half:]])
    size = grey[0].size
    noise = jax.vmap(lambda start: jax.lax.dynamic_slice(bank, (start,), (size,)))(starts).reshape(grey.shape)
    return grey + strengths[:, None, None, None] * noise


def accuracy(inverse: Inverse, folder: EpisodeFolder, count: int = 8000, seed: int = 0) -> tuple[HeadScore, ...]:
    """Scores on real frames of a recording; the dreamed columns repeat the real ones."""
    rng, parts = np.random.default_rng([seed, 4]), []
    for _ in range(-(-count // 500)):
        windows, keys = draw_windows(folder, 500, rng)
        parts.append((inverse.likely(windows), keys))
    likely = [np.concatenate([part[0][i] for part in parts]) for i in range(len(inverse.heads))]
    return score(inverse.heads, np.concatenate([part[1] for part in parts]), likely, likely)


def main() -> int:
    """The command line; returns the exit status."""
    config = tyro.cli(InverseConfig, prog="python -m wm_jax.eval.inverse_training")
    try:
        inverse = train(config)
        if config.held_out is not None:
            scores = accuracy(inverse, EpisodeFolder.open(config.held_out))
            inverse.facts["held_out"] = {"real": mean_over_heads(scores, "real"), "heads": [vars(s) for s in scores]}
            for row in scores:
                print(
                    f"{row.name}: {row.real:.3f} where it shows ({row.shown:.0%} of the frames), "
                    f"{row.real_all:.3f} everywhere, chance {row.chance:.3f}"
                )
        save(inverse, config.out)
    except (EpisodeError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
