"""The autoencoder of Oasis: single frames to latents and back, by plain vision transformers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wm_jax.nn.patch import depth_to_space, space_to_depth
from wm_jax.ports.open_oasis import layers
from wm_jax.ports.open_oasis.config import AutoencoderConfig
from wm_jax.types import Params

_gelu = functools.partial(jax.nn.gelu, approximate=False)


def encode(config: AutoencoderConfig, params: Params, pixels: Float[Array, "b t h w 3"]) -> Float[Array, "b t y x c"]:
    """The mean latents of frames in [-1, 1], as the autoencoder has them: not yet scaled for the transformer."""
    cells = space_to_depth(pixels.astype(jnp.dtype(config.dtype)), config.patch)
    x = layers.linear(params["embed"], cells.reshape(*cells.shape[:2], -1, cells.shape[-1]))
    x = _norm(params["encoder_norm"], _blocks(config, params["encoder"], x))
    mean, _ = jnp.split(layers.linear(params["to_latent"], x), 2, axis=-1)
    return mean.astype(jnp.float32).reshape(*cells.shape[:-1], -1)


def decode(config: AutoencoderConfig, params: Params, latents: Float[Array, "b t y x c"]) -> Float[Array, "b t h w 3"]:
    """Frames in [-1, 1], not clipped, of latents as the autoencoder has them."""
    flat = latents.astype(jnp.dtype(config.dtype)).reshape(*latents.shape[:2], -1, latents.shape[-1])
    x = layers.linear(params["from_latent"], flat)
    x = _norm(params["decoder_norm"], _blocks(config, params["decoder"], x))
    cells = layers.linear(params["to_pixels"], x).astype(jnp.float32)
    return depth_to_space(cells.reshape(*latents.shape[:-1], -1), config.patch)


def grid_angles(config: AutoencoderConfig) -> Float[np.ndarray, "s a"]:
    """Of the tokens of one frame; they turn half of the channels of a head."""
    height, width = config.grid
    rates = layers.pixel_rates(config.width // config.heads // 8, height * width / 2)
    return layers.grid_angles(height, width, rates)


def _blocks(config: AutoencoderConfig, weights: Params, x: Any):
    angle = grid_angles(config)
    for layer in layers.in_order(weights):
        q, k, v = layers.project(layer, _norm(layer["norm"], x), config.heads)
        seen = layers.attend_in_frame(q, k, v, angle)
        x = x + layers.linear(layer["merge"], seen.reshape(x.shape))
        x = x + layers.mlp(layer["mlp"], _norm(layer["mlp_norm"], x), _gelu)
    return x


def _norm(weights: Params, x: Any):
    return layers.layer_norm(x) * weights["gain"].astype(x.dtype) + weights["bias"].astype(x.dtype)
