"""Listen: everything the user gives, embedded; the dynamics sees only the doors of Conditions.

Never knows latents, caches or which game it is. Imports nn and types.
"""

from wm_jax.conditioning.embed import ConditioningConfig, Conditions, Embedder

__all__ = ["ConditioningConfig", "Conditions", "Embedder"]
