"""PSNR and SSIM are the ones everybody means: scikit-image says the same."""

from typing import Any

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from wm_jax.eval.image import psnr, ssim


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :40]
    truth = 128 + 90 * np.sin(x / 5 + np.arange(3)[:, None, None]) * np.cos(y / 7)
    truth = np.moveaxis(truth, 0, -1)[None] + rng.normal(0, 8, (4, 48, 40, 3))
    shown = truth + rng.normal(0, 1, truth.shape) * np.array([2, 10, 30, 80])[:, None, None, None]
    return tuple(np.clip(frames, 0, 255).astype(np.uint8) for frames in (shown, truth))  # pyright: ignore


def test_psnr_is_that_of_scikit_image(pair) -> None:
    expected = [peak_signal_noise_ratio(truth, shown, data_range=255) for shown, truth in zip(*pair, strict=True)]
    np.testing.assert_allclose(psnr(*pair), expected, atol=1e-4)


def test_ssim_is_that_of_scikit_image(pair) -> None:
    settings: dict[str, Any] = dict(data_range=255, channel_axis=-1, gaussian_weights=True, sigma=1.5)
    settings["use_sample_covariance"] = False
    expected = [structural_similarity(truth, shown, **settings) for shown, truth in zip(*pair, strict=True)]
    np.testing.assert_allclose(ssim(*pair), expected, atol=1e-5)


def test_leading_axes_are_kept(pair) -> None:
    shown, truth = (frames.reshape(2, 2, *frames.shape[1:]) for frames in pair)
    np.testing.assert_allclose(psnr(shown, truth).ravel(), psnr(*pair), atol=1e-4)
    np.testing.assert_allclose(ssim(shown, truth).ravel(), ssim(*pair), atol=1e-5)


def test_the_same_picture_has_a_finite_psnr(pair) -> None:
    truth = pair[1]
    np.testing.assert_allclose(psnr(truth, truth), 20 * np.log10(255), atol=1e-4)
    np.testing.assert_allclose(ssim(truth, truth), 1, atol=1e-5)


def test_pictures_of_two_sizes_are_refused_with_both(pair) -> None:
    with pytest.raises(ValueError, match=r"\[4, 48, 20, 3\].*\[4, 48, 40, 3\]"):
        psnr(pair[0][:, :, :20], pair[1])
