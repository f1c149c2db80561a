"""Autoencoder of a recording of your own at 256x256, for an accelerator. Not trained yet: no score to expect.

python train.py configs/base/autoencoder.py

It looks for episodes/base and episodes/base_held_out; docs/bring_your_own_game.md says how to make them. Keys, rate and size of
`WORLD` are to be those of your game.
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
    name="base",
    env="base",
    image=(256, 256),
    fps=20.0,
    controls=ControlSpace(
        (
            KeyBinding("ArrowLeft", "left"),
            KeyBinding("ArrowRight", "right"),
            KeyBinding("ArrowUp", "forward"),
            KeyBinding("ArrowDown", "back"),
        )
    ),
    autoencoder=AutoencoderConfig(patch=4, widths=(96, 192, 384), blocks=(2, 3, 3), channels=32),
    dynamics=DynamicsConfig.size(
        "base", pattern=("space", "space", "space", "time"), repeats=4, sinks=1, dtype="bfloat16"
    ),
    sampler=SamplerConfig(steps=4),
)


def config() -> TrainConfig:
    return TrainConfig(
        name="base_autoencoder",
        world=WORLD,
        objective=Reconstruction(),
        data=DataConfig(episodes="episodes/base", held_out="episodes/base_held_out", clip_frames=4, batch=64),
        optimizer=OptimizerConfig(learning_rate=4e-4, warmup_steps=500, ema=0.999, use_muon=False),
        steps=50_000,
        picture_every=1000,
        save_every=1000,
    )
