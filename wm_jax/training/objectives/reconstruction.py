"""Stage 1: an autoencoder whose latents are easy to dream and whose small moving things survive."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from wm_jax.autoencoder.autoencoder import start_decoder, to_unit
from wm_jax.types import Params
from wm_jax.world import World

MOVING = 0.06


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Loss weights and regularisers of the autoencoder.

    Attributes:
      pyramid: Weight of the Laplacian pyramid.
      structure: Weight of 1 - SSIM.
      squared: Weight of the squared error: what PSNR measures.
      flicker: Weight of the error of frame differences.
      latent: Weight of the latents' own square.
      motion: How much more a moving pixel counts.
      latent_noise: Largest noise on the decoder's input, in units of the latents' deviation, in half of the rows.
      masked: Largest share of 8 x 8 boxes zeroed in the encoder's input, in half of the rows.
    """

    pyramid: float = 0.5
    structure: float = 0.2
    squared: float = 2.0
    flicker: float = 0.1
    latent: float = 1e-4
    motion: float = 2.0
    latent_noise: float = 0.2
    masked: float = 0.2
    parts: ClassVar[tuple[str, ...]] = ("autoencoder",)

    def init_carry(self, world: World) -> dict[str, jax.Array]:
        """Running mean and variance of raw latents, per channel."""
        channels = world.config.autoencoder.channels
        return {"mean": jnp.zeros((channels,)), "variance": jnp.ones((channels,))}

    def finish(self, params: Params, carry: dict[str, jax.Array]) -> Params:
        """The weights with the measured scale of latents in them."""
        scale = {"latent_mean": carry["mean"], "latent_deviation": jnp.sqrt(carry["variance"] + 1e-6)}
        return {**params, "autoencoder": {**params["autoencoder"], **scale}}

    def loss(self, world: World, params: Params, slow: Params, batch: Any, key: jax.Array, step, carry):
        """Reconstruction of clips of 2 or more frames; metrics hold the plain PSNR."""
        del slow
        model = world.model(params).autoencoder
        truth = to_unit(batch.frames)
        mask_key, row_key, level_key, noise_key = jax.random.split(key, 4)
        raw = model.encoder(truth * self._boxes(mask_key, truth.shape))
        deviation = jnp.sqrt(jax.lax.stop_gradient(carry["variance"]))
        rows = (raw.shape[0], 1, 1, 1, 1)
        level = jax.random.uniform(level_key, rows, maxval=self.latent_noise) * jax.random.bernoulli(row_key, 0.5, rows)
        noisy = raw + level * deviation * jax.random.normal(noise_key, raw.shape)
        start = start_decoder(world.config.autoencoder, world.config.image, truth.shape[0])
        seen, _ = model.decoder(noisy, start)
        moved = jnp.abs(jnp.diff(truth, axis=1, prepend=truth[:, :1])).max(-1, keepdims=True) > MOVING
        weight = 1.0 + self.motion * _dilate(moved.astype(jnp.float32))
        terms = {
            "absolute": jnp.mean(weight * jnp.abs(seen - truth)) / jnp.mean(weight),
            "pyramid": self.pyramid * pyramid_distance(seen, truth),
            "structure": self.structure * (1.0 - jnp.mean(local_similarity(seen, truth))),
            "squared": self.squared * jnp.mean((seen - truth) ** 2),
            "flicker": self.flicker * jnp.mean(jnp.abs(jnp.diff(seen, axis=1) - jnp.diff(truth, axis=1))),
            "latent": self.latent * jnp.mean(raw**2),
        }
        error = jnp.mean(((jnp.clip(seen, -1, 1) - truth) / 2) ** 2, axis=(2, 3, 4))
        psnr = jnp.mean(-10.0 * jnp.log10(jnp.maximum(error, 1e-7)))
        return sum(terms.values()), ({**terms, "psnr": psnr}, self._track(raw, carry, step))

    def _boxes(self, key, shape):
        """1 where the encoder may look: each 8 x 8 box hidden with a rate drawn per row."""
        row_key, rate_key, box_key = jax.random.split(key, 3)
        rows = (shape[0], 1, 1, 1, 1)
        rate = jax.random.uniform(rate_key, rows, maxval=self.masked) * jax.random.bernoulli(row_key, 0.5, rows)
        cells = (shape[0], shape[1], shape[2] // 8, shape[3] // 8, 1)
        kept = (jax.random.uniform(box_key, cells) >= rate).astype(jnp.float32)
        return jnp.repeat(jnp.repeat(kept, 8, axis=2), 8, axis=3)

    def _track(self, raw, carry, step):
        raw = jax.lax.stop_gradient(raw)
        rate = jnp.minimum(0.99, step.astype(jnp.float32) / (step.astype(jnp.float32) + 10.0))
        mean = rate * carry["mean"] + (1 - rate) * jnp.mean(raw, axis=(0, 1, 2, 3))
        spread = jnp.mean((raw - mean) ** 2, axis=(0, 1, 2, 3))
        return {"mean": mean, "variance": rate * carry["variance"] + (1 - rate) * spread}


def pyramid_distance(seen, truth, scales: int = 3):
    """Mean absolute difference of Laplacian pyramids, scale s weighted by 2**-s."""
    difference, total = seen - truth, 0.0
    for scale in range(scales):
        coarse = _halve(difference)
        wide = jnp.repeat(jnp.repeat(coarse, 2, axis=2), 2, axis=3)
        total = total + 2.0**-scale * jnp.mean(jnp.abs(difference - wide))
        difference = coarse
    return total + 2.0**-scales * jnp.mean(jnp.abs(difference))


def local_similarity(seen, truth, window: int = 4):
    """SSIM over non-overlapping windows of [-1, 1] frames: cheap, and blind to nothing that training needs."""

    def pool(x):
        b, t, h, w, c = x.shape
        return x.reshape(b, t, h // window, window, w // window, window, c).mean((3, 5))

    mean_a, mean_b = pool(seen), pool(truth)
    var_a, var_b = pool(seen**2) - mean_a**2, pool(truth**2) - mean_b**2
    joint = pool(seen * truth) - mean_a * mean_b
    c1, c2 = 0.02**2, 0.06**2
    light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return light * (2 * joint + c2) / (var_a + var_b + c2)


def _halve(x):
    b, t, h, w, c = x.shape
    return x.reshape(b, t, h // 2, 2, w // 2, 2, c).mean((3, 5))


def _dilate(mask):
    """Maximum over 3 x 3 neighbours."""
    flat = mask.reshape(-1, *mask.shape[2:])
    wide = jax.lax.reduce_window(flat, 0.0, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    return wide.reshape(mask.shape)
