"""Autoencoder of CoinRun for an accelerator: wider and deeper than configs/coinrun. Not trained yet: no score to expect.

python train.py configs/coinrun_small/autoencoder.py
"""

import dataclasses

from configs.coinrun.autoencoder import WORLD as CPU_WORLD
from wm_jax.autoencoder import AutoencoderConfig
from wm_jax.data.loader import DataConfig
from wm_jax.dynamics import DynamicsConfig
from wm_jax.training.config import TrainConfig
from wm_jax.training.objectives.reconstruction import Reconstruction
from wm_jax.training.optimizer import OptimizerConfig

WORLD = dataclasses.replace(
    CPU_WORLD,
    name="coinrun_small",
    autoencoder=AutoencoderConfig(patch=4, widths=(64, 128), blocks=(2, 3), channels=16),
    dynamics=DynamicsConfig.size("small", dtype="bfloat16"),
)


def config() -> TrainConfig:
    return TrainConfig(
        name="coinrun_small_autoencoder",
        world=WORLD,
        objective=Reconstruction(),
        data=DataConfig(episodes="episodes/coinrun", held_out="episodes/coinrun_held_out", clip_frames=4, batch=64),
        record_frames=600_000,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=200, ema=0.999, use_muon=False),
        steps=12_000,
        picture_every=1000,
        save_every=1000,
    )
