"""Dreams are compared with the truth clip by clip: batching changes nothing, and the same keys are no control."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wm_jax as wm
from wm_jax.eval import horizon
from wm_jax.eval.clips import choose_clips, open_held_out
from wm_jax.eval.progress import progress


@pytest.fixture(scope="module")
def world_and_clips(held_out: Path):
    world, params = wm.tiny_world()
    return world, params, choose_clips(open_held_out(held_out, world.config, 500), 5, 4, 16, seed=0)


def measured(world_and_clips, rows: int) -> horizon.Measured:
    world, params, clips = world_and_clips
    settings: dict[str, Any] = dict(horizons=(1, 4, 16), rows=rows, seed=0, films=2)
    with progress(quiet=True) as bar:
        return horizon.measure(world, params, clips, clips.held[:, :4], None, **settings, bar=bar)


@pytest.fixture(scope="module")
def in_one_batch(world_and_clips) -> horizon.Measured:
    return measured(world_and_clips, 5)


@pytest.mark.full
def test_batching_changes_no_number(world_and_clips, in_one_batch: horizon.Measured) -> None:
    in_threes = measured(world_and_clips, 3)
    for name in horizon.VARIANTS:
        np.testing.assert_allclose(in_threes.curves.psnr[name], in_one_batch.curves.psnr[name], atol=1e-2)
        np.testing.assert_allclose(in_threes.curves.ssim[name], in_one_batch.curves.ssim[name], atol=1e-3)
    apart = np.abs(in_threes.dreams.astype(int) - in_one_batch.dreams)
    assert in_one_batch.dreams.shape == (2, 16, 32, 32, 3) and apart.max() <= 1


def test_true_keys_are_no_better_than_true_keys(in_one_batch: horizon.Measured) -> None:
    np.testing.assert_allclose(in_one_batch.curves.delta_psnr, 0, atol=1e-4)


def test_repeating_the_last_frame_is_scored_as_such(world_and_clips, in_one_batch: horizon.Measured) -> None:
    from wm_jax.eval.image import psnr

    clips = world_and_clips[2]
    last, far = clips.frames[:, clips.prompt_frames - 1], clips.truth[:, 15]
    expected = psnr(last, far)[clips.is_true[:, 15]].mean()
    np.testing.assert_allclose(in_one_batch.curves.psnr["repeat"][15], expected, atol=1e-3)
    assert in_one_batch.curves.clips[15] == clips.is_true[:, 15].sum()
