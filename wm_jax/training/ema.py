"""Slow weights: an exponential moving average that forgets its start."""

from typing import Any

import jax
import jax.numpy as jnp


def update_ema(slow: Any, fast: Any, step: jax.Array, decay: float) -> Any:
    """`decay * slow + (1 - decay) * fast`, with a smaller decay in the first steps so that the init fades out."""
    seen = step.astype(jnp.float32)
    rate = jnp.minimum(jnp.float32(decay), (1.0 + seen) / (10.0 + seen))
    return jax.tree.map(lambda s, f: rate * s + (1.0 - rate) * f, slow, fast)
