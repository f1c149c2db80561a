"""Seats players on slots of one compiled world and keeps their frames flowing.

Never trains, never reads episodes, never looks inside the world state. Imports world, envs and types.
"""

from wm_jax.serving.app import make_app
from wm_jax.serving.config import ServeConfig, ServeConfigError
from wm_jax.serving.server import make_server, serve

__all__ = ["ServeConfig", "ServeConfigError", "make_app", "make_server", "serve"]
