"""Autoencoder of the toy world, a ball in a box: about a minute on two CPU cores.

python train.py configs/toy/autoencoder.py
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
    name="toy",
    env="bouncing_ball",
    image=(32, 32),
    fps=30.0,
    controls=ControlSpace(
        (
            KeyBinding("ArrowLeft", "left"),
            KeyBinding("ArrowRight", "right"),
            KeyBinding("ArrowUp", "up"),
            KeyBinding("ArrowDown", "down"),
        )
    ),
    autoencoder=AutoencoderConfig(patch=4, widths=(32, 64), blocks=(1, 1), channels=8),
    dynamics=DynamicsConfig.size("toy"),
    sampler=SamplerConfig(steps=4),
)


def config() -> TrainConfig:
    return TrainConfig(
        name="toy_autoencoder",
        world=WORLD,
        objective=Reconstruction(),
        data=DataConfig(
            episodes="episodes/bouncing_ball", held_out="episodes/bouncing_ball_held_out", clip_frames=2, batch=32
        ),
        record_frames=40_000,
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=50, ema=0.99, use_muon=False),
        steps=1000,
        picture_every=500,
        save_every=500,
    )
