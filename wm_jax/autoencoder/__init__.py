"""See: frames to latents and back, one latent grid a frame, no look-ahead.

Never knows time beyond the one frame its decoder remembers, nor the dynamics. Imports nn and types.
"""

from wm_jax.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from wm_jax.autoencoder.decoder import DecoderState

__all__ = ["Autoencoder", "AutoencoderConfig", "DecoderState"]
