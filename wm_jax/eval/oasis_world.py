"""Which Oasis a measure is of: the released size or the small one of the tests, from files or random, in which numbers."""

import dataclasses
from pathlib import Path
from typing import Literal

import jax

from wm_jax.ports.open_oasis import RELEASED, AutoencoderConfig, OasisConfig, OasisWorld, TransformerConfig, load
from wm_jax.ports.open_oasis.config import EightBits, Solver
from wm_jax.types import Params

SMALL = OasisConfig(
    name="small",
    transformer=TransformerConfig(depth=2, width=64, heads=4, hidden=256, window_frames=3),
    autoencoder=AutoencoderConfig((24, 32), 4, 64, 4, 256, encoder_depth=1, decoder_depth=2),
)
"""The random model that the tests hold, in tests/ports/open_oasis."""


@dataclasses.dataclass(frozen=True)
class OasisChoice:
    """Which Oasis."""

    weights: Path | None = None
    """The folder of the released files."""
    random_weights: bool = False
    """Random weights of the same shapes: as fast as real ones, but they dream of nothing."""
    geometry: Literal["released", "small"] = "released"
    """The released size, or that of the small model of the tests."""
    dtype: str = "float32"
    """In which both rooms compute."""
    eight_bits: EightBits | None = None
    """What the transformer's large weights, and what meets them, are rounded to."""
    solver: Solver = "ddim"
    """What brings a frame from noise to clean."""

    def config(self) -> OasisConfig:
        """The world that was asked for."""
        config = RELEASED if self.geometry == "released" else SMALL
        return dataclasses.replace(
            config,
            transformer=dataclasses.replace(config.transformer, dtype=self.dtype, weights=self.eight_bits),
            autoencoder=dataclasses.replace(config.autoencoder, dtype=self.dtype),
            solver=self.solver,
        )

    def load(self) -> tuple[OasisWorld, Params]:
        """The world, and its weights as playing reads them.

        Raises:
          ValueError: it is not said whether from a folder or random, or both are; the files are not what they must be.
        """
        if (self.weights is None) != self.random_weights:
            raise ValueError("say either --weights DIR, the folder of the released files, or --random-weights")
        config = self.config()
        if self.weights is None:
            world, params = OasisWorld(config), OasisWorld(config).init(jax.random.key(0))
        else:
            world, params = load(self.weights, config)
        return world, world.for_playing(params)
