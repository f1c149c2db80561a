"""Autoencoder of CoinRun.

python -m wm_jax.data.record --env coinrun --frames 600000 --out episodes/coinrun
python -m wm_jax.data.record --env coinrun --frames 40000 --split held_out --out episodes/coinrun_held_out
python train.py configs/coinrun/autoencoder.py
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
    name="coinrun",
    env="coinrun",
    image=(64, 64),
    fps=30.0,
    controls=ControlSpace(
        (
            KeyBinding("ArrowLeft", "left"),
            KeyBinding("ArrowRight", "right"),
            KeyBinding("ArrowUp", "jump"),
            KeyBinding("ArrowDown", "down"),
        )
    ),
    autoencoder=AutoencoderConfig(patch=4, widths=(48, 96), blocks=(1, 2), channels=16),
    dynamics=DynamicsConfig.size("mini", patch=2, repeats=3, levels=16, context_level=0.94),
    sampler=SamplerConfig(steps=4),
)


def config() -> TrainConfig:
    return TrainConfig(
        name="coinrun_autoencoder",
        world=WORLD,
        objective=Reconstruction(),
        data=DataConfig(episodes="episodes/coinrun", held_out="episodes/coinrun_held_out", clip_frames=2, batch=24),
        record_frames=600_000,
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, ema=0.998, use_muon=False),
        steps=8000,
        picture_every=500,
        save_every=500,
    )
