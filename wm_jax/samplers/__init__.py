"""Denoise: noise to latent, given any function that predicts the clean latent.

Never knows the model, the cache or the controls. Imports nothing of the house.
"""

from wm_jax.samplers.few_step import sample
from wm_jax.samplers.schedule import mix, update

__all__ = ["mix", "sample", "update"]
