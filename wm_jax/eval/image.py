"""How alike two pictures are: PSNR and SSIM of single frames."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

PEAK = 255.0
WINDOW, SIGMA = 11, 1.5
_C1, _C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def psnr(shown: UInt8[np.ndarray, "... h w 3"], truth: UInt8[np.ndarray, "... h w 3"]) -> Float[np.ndarray, "..."]:
    """Peak signal-to-noise ratio of each frame in dB.

    A mean squared error below one grey level counts as one: 48.1 dB is the best there is, so that frames which happen
    to be identical do not carry a mean to infinity.
    """
    _same_shape(shown, truth)
    return np.asarray(_psnr(shown, truth))


def ssim(shown: UInt8[np.ndarray, "... h w 3"], truth: UInt8[np.ndarray, "... h w 3"]) -> Float[np.ndarray, "..."]:
    """Structural similarity of each frame, 1 for the same picture; the mean over channels and places.

    Gaussian window of 11 pixels (sigma 1.5), population variance, only places where the window fits.

    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, section III B.
    """
    _same_shape(shown, truth)
    if min(truth.shape[-3:-1]) < WINDOW:
        raise ValueError(f"frames are {truth.shape[-3]}x{truth.shape[-2]}, SSIM needs {WINDOW}x{WINDOW} at least")
    return np.asarray(_ssim(shown, truth))


def _same_shape(shown: np.ndarray, truth: np.ndarray) -> None:
    if shown.shape != truth.shape or shown.dtype != np.uint8 or truth.dtype != np.uint8:
        raise ValueError(f"frames are {shown.dtype}{list(shown.shape)}, the truth is {truth.dtype}{list(truth.shape)}")


@jax.jit
def _psnr(shown, truth):
    error = shown.astype(jnp.float32) - truth.astype(jnp.float32)
    mean_square = jnp.maximum(jnp.mean(jnp.square(error), axis=(-3, -2, -1)), 1.0)
    return 10 * jnp.log10(PEAK**2 / mean_square)


@jax.jit
def _ssim(shown, truth):
    # Around the middle grey, so that the difference of two large numbers below does not lose its digits.
    x, y = (frames.astype(jnp.float32) - PEAK / 2 for frames in (shown, truth))
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x * mean_x
    variance_y = _blur(y * y) - mean_y * mean_y
    covariance = _blur(x * y) - mean_x * mean_y
    bright_x, bright_y = mean_x + PEAK / 2, mean_y + PEAK / 2
    luminance = (2 * bright_x * bright_y + _C1) / (bright_x * bright_x + bright_y * bright_y + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return jnp.mean(luminance * structure, axis=(-3, -2, -1))


def _blur(frames):
    for axis in (-3, -2):
        length = frames.shape[axis] - WINDOW + 1
        parts = [
            float(weight) * jax.lax.slice_in_dim(frames, i, i + length, axis=frames.ndim + axis)
            for i, weight in enumerate(_taps())
        ]
        frames = functools.reduce(jnp.add, parts)
    return frames


@functools.cache
def _taps() -> tuple[float, ...]:
    places = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (places / SIGMA) ** 2)
    return tuple(weights / weights.sum())
