"""Dream: what happens next; a space-time transformer that predicts the clean latent, and its ring cache.

Never draws noise, never knows pixels or keys. Imports nn, pallas_kernels and types.
"""

from wm_jax.dynamics.config import DynamicsConfig
from wm_jax.dynamics.ring_cache import RingCache
from wm_jax.dynamics.transformer import Dynamics

__all__ = ["Dynamics", "DynamicsConfig", "RingCache"]
