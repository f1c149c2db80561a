"""Oasis-500M of Decart and Etched: a Minecraft-like world that listens to 23 keys and the mouse.

import jax, wm_jax as wm
from wm_jax.ports import open_oasis
world, params = open_oasis.load("weights/oasis")                        # the two released safetensors files
state = wm.start(world, params, wm.Prompt(frames), jax.random.key(0))   # one image [1 1 360 640 3], or several frames
state, frame = wm.step(world, params, state, wm.Controls(keys, mouse))  # one frame, one compiled call
state, frames = wm.rollout(world, params, state, open_oasis.from_actions(recorded))     # t frames, one compiled scan
"""

from wm_jax.ports.open_oasis.config import (
    ACTIONS,
    CONTROLS,
    RELEASED,
    AutoencoderConfig,
    OasisConfig,
    TransformerConfig,
)
from wm_jax.ports.open_oasis.controls import from_actions, to_actions
from wm_jax.ports.open_oasis.recompute import recompute
from wm_jax.ports.open_oasis.state import OasisState
from wm_jax.ports.open_oasis.world import OasisWorld, geometry, load

__all__ = [
    "ACTIONS",
    "CONTROLS",
    "RELEASED",
    "AutoencoderConfig",
    "OasisConfig",
    "OasisState",
    "OasisWorld",
    "TransformerConfig",
    "from_actions",
    "geometry",
    "load",
    "recompute",
    "to_actions",
]
