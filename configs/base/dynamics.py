"""Dynamics of a recording of your own at 256x256 (113 M weights, 256 tokens a frame), for accelerators. Not trained yet.

python train.py configs/base/dynamics.py

By its compiler an H100 needs 53 GiB for the 16 rows, and for 8 of them 28 GiB; with several devices each takes its share of them.
"""

from configs.base.autoencoder import WORLD
from wm_jax.data.loader import DataConfig
from wm_jax.training.config import TrainConfig
from wm_jax.training.objectives.shortcut_forcing import ShortcutForcing
from wm_jax.training.optimizer import OptimizerConfig


def config() -> TrainConfig:
    return TrainConfig(
        name="base",
        world=WORLD,
        objective=ShortcutForcing(recycle_from=60_000, is_rematerialised=True),
        data=DataConfig(
            episodes="episodes/base", held_out="episodes/base_held_out", clip_frames=80, batch=16, workers=2
        ),
        optimizer=OptimizerConfig(learning_rate=6e-4, warmup_steps=1000, ema=0.9995),
        steps=100_000,
        picture_every=2000,
        save_every=1000,
        autoencoder_from="configs/base/autoencoder.py",
    )
