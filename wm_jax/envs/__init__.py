"""Games to record and to play: held keys in, one RGB frame out, levels split into training and held-out.

Never trains, never writes files, never imports a game's library before it is asked for that game.
Imports types only.
"""

from wm_jax.envs.registry import NAMES, MissingGameError, held_out, is_installed, make

__all__ = ["NAMES", "MissingGameError", "held_out", "is_installed", "make"]
