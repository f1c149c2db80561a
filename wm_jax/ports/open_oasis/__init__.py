"""Oasis-500M of Decart and Etched: a Minecraft-like world that listens to 25 columns of actions.

import jax, wm_jax as wm
from wm_jax.ports import open_oasis
world, params = open_oasis.load("weights/oasis")                       # the two released safetensors files
state = open_oasis.start(world, params, wm.Prompt(frames), jax.random.key(0))
state, frame = open_oasis.step(world, params, state, actions)          # one frame, one compiled call
state, frames = open_oasis.rollout(world, params, state, many_actions)  # t frames, one compiled scan
"""

from wm_jax.ports.open_oasis.config import ACTIONS, RELEASED, AutoencoderConfig, OasisConfig, TransformerConfig
from wm_jax.ports.open_oasis.rollout import recompute, rollout
from wm_jax.ports.open_oasis.state import OasisState, empty
from wm_jax.ports.open_oasis.step import start, step
from wm_jax.ports.open_oasis.world import OasisWorld, geometry, load

__all__ = [
    "ACTIONS",
    "RELEASED",
    "AutoencoderConfig",
    "OasisConfig",
    "OasisState",
    "OasisWorld",
    "TransformerConfig",
    "empty",
    "geometry",
    "load",
    "recompute",
    "rollout",
    "start",
    "step",
]
