"""How much signal is left at each timestep, and the deterministic step from one timestep to a cleaner one."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

START, END, LARGEST_BETA = -3.0, 3.0, 0.999


@functools.lru_cache(maxsize=8)
def signal(timesteps: int) -> Float[np.ndarray, " t"]:
    """Share of the variance that is signal at each timestep: a sigmoid from `START` to `END`.

    Source: Scalable Adaptive Computation for Iterative Generation (its sigmoid schedule); each single step keeps 0.001 at least.
    """
    time = np.linspace(0.0, 1.0, timesteps + 1)
    low, high = _sigmoid(START), _sigmoid(END)
    left = (high - _sigmoid(START + time * (END - START))) / (high - low)
    beta = np.clip(1.0 - left[1:] / left[:-1], 0.0, LARGEST_BETA)
    return np.cumprod(1.0 - beta)


def passes(
    timesteps: int, steps: int
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Of each denoising pass: the timestep that the frame is at, its share of signal, and the share to bring it to.

    The last pass lands on the clean frame.
    """
    timestep = (timesteps * np.arange(steps, 0, -1) // steps - 1).astype(np.int32)
    share = signal(timesteps)[timestep].astype(np.float32)
    return timestep, share, np.append(share[1:], np.float32(1.0))


def update(noisy: Float[Array, "*b"], v: Float[Array, "*b"], share: Float[Array, ""], to: Float[Array, ""]):
    """The frame at share `to` of signal, given the velocity seen at `share`.

    Source: Denoising Diffusion Implicit Models, equation 12 with sigma 0; Progressive Distillation, section 4 (v).
    """
    clean = jnp.sqrt(share) * noisy - jnp.sqrt(1.0 - share) * v
    noise = jnp.sqrt(1.0 - share) * noisy + jnp.sqrt(share) * v
    return jnp.sqrt(to) * clean + jnp.sqrt(1.0 - to) * noise


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))
