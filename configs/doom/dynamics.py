"""Dynamics of Doom; records the game and trains the autoencoder first where they are missing.

python train.py configs/doom/dynamics.py
"""

from configs.doom.autoencoder import WORLD
from wm_jax.data.loader import DataConfig
from wm_jax.training.config import TrainConfig
from wm_jax.training.objectives.shortcut_forcing import ShortcutForcing
from wm_jax.training.optimizer import OptimizerConfig


def config() -> TrainConfig:
    return TrainConfig(
        name="doom",
        world=WORLD,
        objective=ShortcutForcing(bootstrap=1 / 6, recycle_from=6000),
        data=DataConfig(episodes="episodes/doom", held_out="episodes/doom_held_out", clip_frames=20, batch=6),
        record_frames=400_000,
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_steps=100, ema=0.998),
        steps=10_000,
        picture_every=500,
        save_every=250,
        autoencoder_from="configs/doom/autoencoder.py",
    )
