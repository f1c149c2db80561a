"""Equal strides from noise to latent with a model that knows its stride (shortcut models).

Source: One Step Diffusion via Shortcut Models, algorithm 2; Training Agents Inside of Scalable World Models, section 3.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from wm_jax.samplers.schedule import update


def sample(
    predict: Callable[[Any, int], Any],
    noise: Float[Array, "b y x c"],
    steps: int,
    first: Any | None = None,
) -> Float[Array, "b y x c"]:
    """The latent after `steps` equal strides; `predict(noisy, i)` gives the clean latent seen from level `i / steps`.

    `first` is the prediction from the noise itself, where the caller already has it (it may ride with the commit of
    the frame before). Unrolled: every level is a constant of the compiled program.
    """
    latent = noise
    for i in range(steps):
        clean = first if i == 0 and first is not None else predict(latent, i)
        latent = update(latent, clean, i / steps, 1.0 / steps)
    return latent
