"""Many servers of one world behind one address: `python -m wm_jax.scale WORLD --replicas 2`, on Ray Serve.

Never carries a frame: a player's socket goes straight to the server that has the session. Imports serving; the only room that
imports Ray, and only where a cluster is started or joined, so that all else here runs and is tested without one.
"""

from wm_jax.scale.config import ScaleConfig, ScaleError
from wm_jax.scale.directory import Directory

__all__ = ["Directory", "ScaleConfig", "ScaleError"]
