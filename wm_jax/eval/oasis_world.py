"""Which Oasis a measure is of: the released size or the small one of the tests, from files or random, in which numbers."""

import dataclasses
from typing import Literal

from wm_jax.ports.open_oasis import RELEASED, AutoencoderConfig, OasisConfig, OasisWorld, TransformerConfig
from wm_jax.ports.published import Numbers, configured, opened
from wm_jax.types import Params

SMALL = OasisConfig(
    name="small",
    transformer=TransformerConfig(depth=2, width=64, heads=4, hidden=256, window_frames=3),
    autoencoder=AutoencoderConfig((24, 32), 4, 64, 4, 256, encoder_depth=1, decoder_depth=2),
)
"""The random model that the tests hold, in tests/ports/open_oasis."""


@dataclasses.dataclass(frozen=True)
class OasisChoice(Numbers):
    """Which Oasis.

    Attributes:
      geometry: The released size, or that of the small model of the tests.
    """

    geometry: Literal["released", "small"] = "released"

    def config(self) -> OasisConfig:
        """The world that was asked for."""
        return configured(RELEASED if self.geometry == "released" else SMALL, self)

    def load(self) -> tuple[OasisWorld, Params]:
        """The world, and its weights as playing reads them.

        Raises:
          ValueError: it is not said whether from a folder or random, or both are; the files are not what they must be.
        """
        return opened(self.config(), self)
