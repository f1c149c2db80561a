"""How far ahead a dream stays true: picture quality, control and the baselines, frame by frame after the prompt."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress

from wm_jax.eval.clips import Clips
from wm_jax.eval.control import Head, HeadScore, score
from wm_jax.eval.image import psnr, ssim
from wm_jax.eval.inverse import Inverse, windows_of
from wm_jax.types import Controls, Params
from wm_jax.world import World, rollout, start
from wm_jax.world.rollout import predict_next
from wm_jax.world.world import reconstruct

CONTROL_HORIZON = 16
DELTA_HORIZON = 4
VARIANTS = ("free", "teacher", "repeat", "autoencoder")


@dataclasses.dataclass(frozen=True)
class Curves:
    """Means over clips, one value a horizon (frames after the prompt, counted from 1).

    Attributes:
      psnr: For each of `VARIANTS`, `[horizon]` dB: mean of per-frame PSNR.
      ssim: For each of `VARIANTS`, at `horizons` only.
      horizons: Where tables look.
      clips: How many clips reach each horizon, `[horizon]`.
      delta_psnr: PSNR under true minus PSNR under random keys, `[DELTA_HORIZON]` dB.
    """

    psnr: dict[str, np.ndarray]
    ssim: dict[str, np.ndarray]
    horizons: tuple[int, ...]
    clips: np.ndarray
    delta_psnr: np.ndarray


@dataclasses.dataclass(frozen=True)
class Control:
    """What the inverse-dynamics model reads from real, dreamed and merely autoencoded frames.

    Attributes:
      scores: One a head; real against dreamed.
      autoencoded: One a head; real against the same frames through the autoencoder.
      frames: How many frames were judged.
    """

    scores: tuple[HeadScore, ...]
    autoencoded: tuple[HeadScore, ...]
    frames: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """All that one pass over the clips gives; `dreams` are the free-running frames of the first clips."""

    curves: Curves
    control: Control | None
    dreams: np.ndarray


def measure(
    world: World,
    params: Params,
    clips: Clips,
    wild_keys: np.ndarray,
    inverse: Inverse | None,
    *,
    horizons: tuple[int, ...],
    rows: int,
    seed: int,
    films: int,
    bar: rich.progress.Progress,
) -> Measured:
    """Dreams every clip and compares.

    Args:
      world: Static half.
      params: Its weights.
      clips: Prompts and truth.
      wild_keys: Random keys `[clips DELTA_HORIZON keys]` for the control experiment.
      inverse: The inverse-dynamics model, or None: no control scores.
      horizons: Where SSIM is taken.
      rows: Sessions dreamed side by side.
      seed: Of the dreams' noise.
      films: How many dreams to hand back.
      bar: Shows batches.
    """
    parts, judged, dreams, done = [], [], [], 0
    task = bar.add_task("clips", total=len(clips.lengths))
    for batch, meant in clips.batches(rows):
        places = np.minimum(np.arange(done, done + rows), len(wild_keys) - 1)
        shown, wild = _dream(world, params, batch, wild_keys[places], functools.partial(_noise, seed, places))
        parts.append(_compare(batch, shown, wild, horizons, meant))
        if inverse is not None:
            judged.append(_judge(inverse, batch, shown, meant))
        if done < films:
            dreams.append(shown["free"][:meant])
        done += meant
        bar.advance(task, meant)
    curves = _curves(clips, [np.concatenate(column) for column in zip(*parts, strict=True)], horizons)
    control = None if inverse is None else _control(inverse.heads, judged)
    return Measured(curves, control, np.concatenate(dreams)[:films] if dreams else np.empty(0))


def _dream(world: World, params: Params, batch: Clips, wild_keys: np.ndarray, noise: Callable[[], jax.Array]):
    """The truth's horizon four times: free-running, teacher-forced, repeated, autoencoded; and under random keys."""
    p = batch.prompt_frames
    _, free = rollout(
        world, params, start(world, params, batch.prompt, noise()), Controls(keys=jnp.asarray(batch.held))
    )
    # The same noise: under random keys the dream differs by its keys alone.
    state = start(world, params, batch.prompt, noise())
    _, wild = rollout(world, params, state, Controls(keys=jnp.asarray(wild_keys)))
    frames, keys = jnp.asarray(batch.frames), Controls(keys=jnp.asarray(batch.keys))
    shown = {
        "free": np.asarray(free),
        "teacher": np.asarray(predict_next(world, params, frames, keys, noise()))[:, p:],
        "repeat": np.broadcast_to(batch.frames[:, p - 1 : p], batch.truth.shape),
        "autoencoder": np.asarray(reconstruct(world, params, frames))[:, p:],
    }
    return shown, np.asarray(wild)


def _noise(seed: int, places: np.ndarray) -> jax.Array:
    """One key a clip: its dream is the same whichever batch it falls into. Made anew, since a state is donated."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(places))


def _compare(batch: Clips, shown: dict[str, np.ndarray], wild: np.ndarray, horizons: tuple[int, ...], meant: int):
    truth, places = batch.truth, np.array(horizons) - 1
    quality = np.stack([psnr(np.ascontiguousarray(shown[name]), truth) for name in VARIANTS], axis=1)
    likeness = np.stack([ssim(shown[name][:, places], truth[:, places]) for name in VARIANTS], axis=1)
    missed = psnr(wild, truth[:, : wild.shape[1]])
    return quality[:meant], likeness[:meant], missed[:meant]


def _curves(clips: Clips, arrays: list[np.ndarray], horizons: tuple[int, ...]) -> Curves:
    quality, likeness, missed = arrays
    is_true, places = clips.is_true, np.array(horizons) - 1
    delta = quality[:, VARIANTS.index("free"), : missed.shape[1]] - missed
    return Curves(
        psnr={name: _mean(quality[:, i], is_true) for i, name in enumerate(VARIANTS)},
        ssim={name: _mean(likeness[:, i], is_true[:, places]) for i, name in enumerate(VARIANTS)},
        horizons=horizons,
        clips=is_true.sum(0),
        delta_psnr=_mean(delta, is_true[:, : delta.shape[1]]),
    )


def _mean(values: np.ndarray, is_true: np.ndarray) -> np.ndarray:
    count = is_true.sum(0)
    total = np.where(is_true, values, 0).astype(np.float64).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _judge(inverse: Inverse, batch: Clips, shown: dict[str, np.ndarray], meant: int):
    """Keys, and the probabilities on real, dreamed and autoencoded frames, of every true frame near the prompt."""
    p, near = batch.prompt_frames, min(CONTROL_HORIZON, batch.horizon)
    is_true = batch.is_true[:meant, :near]
    sources = (batch.truth, shown["free"], shown["autoencoder"])
    likely = []
    for frames in sources:
        # All three begin with the true prompt, so that only the frames after it differ.
        film = np.concatenate([batch.frames[:, :p], frames], axis=1)[:meant]
        likely.append(inverse.likely(windows_of(film, range(p, p + near))[is_true]))
    return batch.held[:meant, :near][is_true], likely


def _control(heads: tuple[Head, ...], judged: list[Any]) -> Control:
    keys = np.concatenate([part[0] for part in judged])
    real, dreamed, autoencoded = (
        [np.concatenate([part[1][source][i] for part in judged]) for i in range(len(heads))] for source in range(3)
    )
    return Control(score(heads, keys, real, dreamed), score(heads, keys, real, autoencoded), len(keys))
