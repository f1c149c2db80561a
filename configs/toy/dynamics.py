"""Dynamics of the toy world, a ball in a box; records the game and trains the autoencoder first where they are missing.

python train.py configs/toy/dynamics.py
"""

from configs.toy.autoencoder import WORLD
from wm_jax.data.loader import DataConfig
from wm_jax.training.config import TrainConfig
from wm_jax.training.objectives.shortcut_forcing import ShortcutForcing
from wm_jax.training.optimizer import OptimizerConfig


def config() -> TrainConfig:
    return TrainConfig(
        name="toy",
        world=WORLD,
        objective=ShortcutForcing(recycle_from=1000),
        data=DataConfig(
            episodes="episodes/bouncing_ball", held_out="episodes/bouncing_ball_held_out", clip_frames=24, batch=8
        ),
        record_frames=40_000,
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50, ema=0.99),
        steps=1400,
        picture_every=500,
        save_every=500,
        autoencoder_from="configs/toy/autoencoder.py",
    )
