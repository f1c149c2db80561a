"""Autoencoder of Doom: first person through the deathmatch arena.

python train.py configs/doom/autoencoder.py
"""

from wm_jax.autoencoder import AutoencoderConfig
from wm_jax.data.loader import DataConfig
from wm_jax.dynamics import DynamicsConfig
from wm_jax.training.config import TrainConfig
from wm_jax.training.objectives.reconstruction import Reconstruction
from wm_jax.training.optimizer import OptimizerConfig
from wm_jax.types import ControlSpace, KeyBinding
from wm_jax.world import SamplerConfig, WorldConfig

WORLD = WorldConfig(
    name="doom",
    env="doom",
    image=(64, 64),
    fps=35.0,
    controls=ControlSpace(
        (
            KeyBinding("KeyW", "forward"),
            KeyBinding("KeyS", "back"),
            KeyBinding("ArrowLeft", "turn left"),
            KeyBinding("ArrowRight", "turn right"),
            KeyBinding("KeyA", "step left"),
            KeyBinding("KeyD", "step right"),
            KeyBinding("Space", "shoot"),
        )
    ),
    autoencoder=AutoencoderConfig(patch=4, widths=(48, 96), blocks=(1, 2), channels=16),
    dynamics=DynamicsConfig.size("mini", patch=2, repeats=3, levels=16, context_level=0.94),
    sampler=SamplerConfig(steps=4),
)


def config() -> TrainConfig:
    return TrainConfig(
        name="doom_autoencoder",
        world=WORLD,
        objective=Reconstruction(),
        data=DataConfig(episodes="episodes/doom", held_out="episodes/doom_held_out", clip_frames=2, batch=24),
        record_frames=400_000,
        optimizer=OptimizerConfig(learning_rate=1.2e-3, warmup_steps=100, ema=0.998, use_muon=False),
        steps=3000,
        picture_every=500,
        save_every=500,
    )
