"""The hall: autoencoder, conditioning, dynamics and sampler joined to a world that starts, steps and rolls out.

Never knows episodes, losses, sockets or players. Imports the four rooms, checkpoint, types and config.
"""

from wm_jax.world.config import SamplerConfig, WorldConfig
from wm_jax.world.playable import Playable
from wm_jax.world.rollout import rollout
from wm_jax.world.slots import empty, put, take
from wm_jax.world.state import WorldState
from wm_jax.world.step import start, step
from wm_jax.world.world import World, load, load_prompts, tiny_world

__all__ = [
    "Playable",
    "SamplerConfig",
    "World",
    "WorldConfig",
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
