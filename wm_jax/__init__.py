"""Interactive world models in JAX: train them, roll them out, serve them frame by frame.

import jax, wm_jax as wm
world, params = wm.load("worlds/coinrun")                           # config and weights from one folder
state = wm.start(world, params, wm.Prompt(), jax.random.key(0))
state, frame = wm.step(world, params, state, wm.Controls(keys=held))    # one frame, one compiled call
state, frames = wm.rollout(world, params, state, many_controls)         # t frames, one compiled scan
"""

from wm_jax.types import Clip, Controls, ControlSpace, KeyBinding, Prompt
from wm_jax.world import (
    Playable,
    World,
    WorldState,
    empty,
    load,
    load_prompts,
    put,
    rollout,
    start,
    step,
    take,
    tiny_world,
)

__all__ = [
    "Clip",
    "ControlSpace",
    "Controls",
    "KeyBinding",
    "Playable",
    "Prompt",
    "World",
    "WorldState",
    "empty",
    "load",
    "load_prompts",
    "put",
    "rollout",
    "start",
    "step",
    "take",
    "tiny_world",
]
