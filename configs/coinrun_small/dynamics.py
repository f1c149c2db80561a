"""Dynamics of CoinRun at size `small` (22 M weights, one token a latent cell), for an accelerator. Not trained yet.

python train.py configs/coinrun_small/dynamics.py
"""

from configs.coinrun_small.autoencoder import WORLD
from wm_jax.data.loader import DataConfig
from wm_jax.training.config import TrainConfig
from wm_jax.training.objectives.shortcut_forcing import ShortcutForcing
from wm_jax.training.optimizer import OptimizerConfig


def config() -> TrainConfig:
    return TrainConfig(
        name="coinrun_small",
        world=WORLD,
        objective=ShortcutForcing(recycle_from=6000),
        data=DataConfig(
            episodes="episodes/coinrun", held_out="episodes/coinrun_held_out", clip_frames=40, batch=64, workers=2
        ),
        record_frames=600_000,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=300, ema=0.999),
        steps=9000,
        picture_every=1000,
        save_every=500,
        autoencoder_from="configs/coinrun_small/autoencoder.py",
    )
