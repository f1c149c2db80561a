"""The autoencoder and its config: encode, decode, and the scale in which the dynamics sees latents."""

import dataclasses
import itertools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from wm_jax.autoencoder.decoder import Decoder, DecoderState
from wm_jax.autoencoder.encoder import Encoder

LATENT_LIMIT = 5.0


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """A causal per-frame autoencoder.

    Attributes:
      patch: Pixels a side that the first layer folds into channels.
      widths: Channels of each stage, a multiple of those of the stage before; every stage after the first halves the
        grid.
      blocks: Residual blocks of each stage, encoder and decoder alike.
      channels: Latent channels.
    """

    patch: int = 4
    widths: tuple[int, ...] = (48, 96)
    blocks: tuple[int, ...] = (1, 2)
    channels: int = 16

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.blocks):
            raise ValueError(f"autoencoder.widths {self.widths} and blocks {self.blocks} must name the same stages")
        if min(self.patch, self.channels, *self.widths) < 1 or min(self.blocks) < 0:
            raise ValueError(f"{self}: patch, widths and channels must be at least 1, blocks at least 0")
        for before, width in itertools.pairwise(self.widths):
            # The shortcut of a stage repeats the channels of the stage before it.
            if width % before:
                raise ValueError(f"autoencoder.widths {self.widths}: {width} is no multiple of {before} before it")

    @property
    def downscale(self) -> int:
        """Pixels a side of one latent cell."""
        return self.patch * 2 ** (len(self.widths) - 1)


class Autoencoder(nnx.Module):
    """Weights of encoder and decoder, and the per-channel mean and deviation of latents, measured after training."""

    def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
        self.encoder = Encoder(config.patch, config.widths, config.blocks, config.channels, rngs)
        self.decoder = Decoder(config.patch, config.widths, config.blocks, config.channels, rngs)
        self.latent_mean = nnx.Param(jnp.zeros((config.channels,), jnp.float32))
        self.latent_deviation = nnx.Param(jnp.ones((config.channels,), jnp.float32))

    def encode(self, frames: UInt8[Array, "b t h w 3"]) -> Float[Array, "b t y x c"]:
        """Latents at unit variance per channel, clipped to +-5."""
        raw = self.encoder(to_unit(frames))
        scaled = (raw - self.latent_mean[...]) / self.latent_deviation[...]
        return jnp.clip(scaled, -LATENT_LIMIT, LATENT_LIMIT)

    def decode(self, latents: Float[Array, "b t y x c"], state: DecoderState):
        """Frames in [-1, 1] (not clipped) and the decoder's state after the last of them."""
        raw = latents * self.latent_deviation[...] + self.latent_mean[...]
        return self.decoder(raw, state)


def start_decoder(config: AutoencoderConfig, image: tuple[int, int], batch: int) -> DecoderState:
    """The state of a decoder that has shown nothing yet."""
    memory = {}
    for i, (width, depth) in enumerate(zip(config.widths, config.blocks, strict=True)):
        cell = config.patch * 2**i
        shape = (batch, image[0] // cell, image[1] // cell, width)
        memory.update({f"stage{i}_block{j}": jnp.zeros(shape, jnp.float32) for j in range(depth)})
    return DecoderState(memory)


def to_unit(frames: UInt8[Array, "*b"]) -> Float[Array, "*b"]:
    """Bytes to [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1.0


def to_bytes(frames: Float[Array, "*b"]) -> UInt8[Array, "*b"]:
    """[-1, 1] to bytes, rounded and clipped."""
    return jnp.clip(jnp.round((frames + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
