"""Stage 2: a signal level for each frame drawn apart, clean latents predicted, big strides taught by two small ones.

Source: Diffusion Forcing, algorithm 1; One Step Diffusion via Shortcut Models, section 3; Training Agents Inside of
Scalable World Models, section 3.1 (x-space loss, ramp weight).
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from wm_jax.dynamics import DynamicsConfig
from wm_jax.samplers import mix, update
from wm_jax.types import Params
from wm_jax.world import World


@dataclasses.dataclass(frozen=True)
class ShortcutForcing:
    """The mixture of situations a row may show.

    Attributes:
      bootstrap: Share of rows that teach big strides.
      context: Share of rows whose past is nearly clean, as when playing.
      context_floor: Lowest signal level of such a past.
      images: Share of rows cut into single frames, which teaches to start from nothing.
      cuts: Share of rows whose past is hidden before a random frame.
      unknown: Share of rows whose controls are hidden.
      recycled: Chance that a frame of a nearly clean past carries one of the model's own old errors.
      recycle_from: Updates after which that begins.
      bank: Old errors kept.
    """

    bootstrap: float = 0.25
    context: float = 0.5
    context_floor: float = 0.8
    images: float = 0.1
    cuts: float = 0.1
    unknown: float = 0.1
    recycled: float = 0.5
    recycle_from: int = 2000
    bank: int = 1024
    parts: ClassVar[tuple[str, ...]] = ("embedder", "dynamics")

    def init_carry(self, world: World) -> dict[str, jax.Array]:
        """The bank of the model's own errors, empty."""
        return {"errors": jnp.zeros((self.bank, *world.config.latent_shape), jnp.float32)}

    def finish(self, params: Params, carry: dict[str, jax.Array]) -> Params:
        """The weights as they are: this stage measures nothing."""
        del carry
        return params

    def loss(self, world: World, params: Params, slow: Params, batch: Any, key: jax.Array, step, carry):
        """Weighted squared error in clean-latent space; `batch` has latents, controls and is_first."""
        model, config = world.model(params), world.config.dynamics
        clean = batch.latents.astype(jnp.float32)
        keys = jax.random.split(key, 6)
        level, stride, is_boot, is_past = self._levels(config, keys[0], clean.shape[:2])
        segment, is_known = self._segments(keys[1], batch.is_first)
        noise = jax.random.normal(keys[2], clean.shape, jnp.float32)
        dirty = clean + self._recycle(keys[3], clean, is_past, step, carry["errors"])
        noisy = mix(noise, dirty, _at(level / config.levels))
        conditions = model.embedder(batch.controls.keys, is_known)
        guess = model.dynamics.denoise_clip(noisy, level, stride, conditions, segment)
        rows = self._boot_rows(clean.shape[0])
        target = clean
        if rows:
            few = jax.tree.map(
                lambda leaf: leaf[:rows], (noisy, level, stride, is_boot, batch.controls.keys, is_known, segment)
            )
            target = jnp.concatenate([_two_small(world, slow, clean[:rows], *few), clean[rows:]])
        error = jnp.mean((guess - target) ** 2, axis=(2, 3, 4))
        weight = 0.9 * level / config.levels + 0.1
        loss = jnp.mean(weight * error)
        metrics = {
            "flow": _mean_where(error, ~is_boot),
            "bootstrap": _mean_where(error, is_boot),
            "from_noise": _mean_where(error, ~is_boot & (level < config.levels // 4)),
        }
        carry = {"errors": self._bank(keys[4], guess - clean, level / config.levels, is_boot, carry["errors"])}
        return loss, (metrics, carry)

    def _boot_rows(self, batch: int) -> int:
        return round(batch * self.bootstrap)

    def _levels(self, config: DynamicsConfig, key, shape):
        """Level and stride rows of each frame, which frames teach a big stride, which are a nearly clean past."""
        rows, frames = shape
        k = jax.random.split(key, 6)
        is_boot = jnp.broadcast_to(jnp.arange(rows)[:, None] < self._boot_rows(rows), shape)
        power = jnp.where(is_boot, jax.random.randint(k[0], shape, 0, config.stride_rows - 1), config.stride_rows - 1)
        count = 2**power
        place = jnp.floor(jax.random.uniform(k[1], shape) * count).astype(jnp.int32)
        level = jnp.minimum(place, count - 1) * (config.levels // count)
        split = jax.random.randint(k[2], (rows, 1), 1, frames)
        has_past = jax.random.bernoulli(k[3], self.context, (rows, 1))
        is_past = has_past & (jnp.arange(frames)[None] < split)
        floor = min(round(self.context_floor * config.levels), config.levels - 1)
        shared = jax.random.randint(k[4], (rows, 1), floor, config.levels)
        level = jnp.where(is_past, shared, level)
        return level, jnp.where(is_past, config.stride_rows - 1, power), is_boot & ~is_past, is_past

    def _segments(self, key, is_first):
        """Which frames may see each other, and whose controls are known."""
        rows, frames = is_first.shape
        k = jax.random.split(key, 4)
        cut_at = jax.random.randint(k[0], (rows, 1), 1, frames)
        cut = jax.random.bernoulli(k[1], self.cuts, (rows, 1)) & (jnp.arange(frames)[None] == cut_at)
        alone = jax.random.bernoulli(k[2], self.images, (rows, 1))
        segment = jnp.cumsum((is_first | cut | alone).astype(jnp.int32), axis=1)
        is_known = ~is_first & ~jax.random.bernoulli(k[3], self.unknown, (rows, 1))
        return segment, is_known

    def _recycle(self, key, clean, is_past, step, errors):
        """Old errors for frames of a nearly clean past; a fifth of the rows stays clean.

        Source: Stable Video Infinity (error recycling); LongLive 2.0, context injection.
        """
        k = jax.random.split(key, 4)
        rows, frames = is_past.shape
        drawn = errors[jax.random.randint(k[0], (rows, frames), 0, self.bank)]
        chosen = is_past & jax.random.bernoulli(k[1], self.recycled, (rows, frames))
        chosen = chosen & jax.random.bernoulli(k[2], 0.8, (rows, 1)) & (step >= self.recycle_from)
        size = jax.random.uniform(k[3], (rows, frames), minval=0.7, maxval=1.3)
        return _at(jnp.where(chosen, size, 0.0)) * drawn

    def _bank(self, key, error, level, is_boot, errors):
        """The bank with some of this batch's errors in it, taken from middling levels."""
        k = jax.random.split(key, 2)
        flat = jax.lax.stop_gradient(error).reshape(-1, *error.shape[2:])
        count = min(flat.shape[0], max(self.bank // 16, 1))
        fits = (~is_boot & (level >= 0.2) & (level <= 0.8)).reshape(-1)
        picked = jnp.argsort(jax.random.uniform(k[0], fits.shape) + ~fits)[:count]
        place = jax.random.permutation(k[1], self.bank)[:count]
        return errors.at[place].set(jnp.where(fits[picked, None, None, None], flat[picked], errors[place]))


def _two_small(world, slow, clean, noisy, level, stride, is_boot, keys, is_known, segment):
    """The clean latent implied by two half strides of the slow weights; the true one where nothing is taught."""
    model, levels = world.model(slow), world.config.dynamics.levels
    conditions = model.embedder(keys, is_known)
    half = 0.5 * 2.0 ** -stride.astype(jnp.float32)
    finer = jnp.where(is_boot, stride + 1, stride)
    now = level / levels
    first = model.dynamics.denoise_clip(noisy, level, finer, conditions, segment)
    middle = jnp.where(_at(is_boot), update(noisy, first, _at(now), _at(half)), noisy)
    later = jnp.where(is_boot, level + jnp.round(half * levels).astype(jnp.int32), level)
    second = model.dynamics.denoise_clip(middle, later, finer, conditions, segment)
    # Where nothing is taught `later / levels` may be any level: keep the division away from 0.
    after = jnp.where(is_boot, later / levels, 0.0)
    end = update(middle, second, _at(after), _at(half))
    target = noisy + (end - noisy) * _at((1.0 - now) / (2.0 * half))
    return jax.lax.stop_gradient(jnp.where(_at(is_boot), target, clean))


def _at(per_frame):
    return per_frame[:, :, None, None, None]


def _mean_where(values, chosen):
    return jnp.sum(values * chosen) / jnp.maximum(jnp.sum(chosen), 1)
