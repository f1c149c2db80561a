"""Stage 2: each frame learned from noise after its remembered past, clean latents predicted, big strides taught by two.

Source: Diffusion Forcing, algorithm 1; One Step Diffusion via Shortcut Models, section 3; Training Agents Inside of
Scalable World Models, section 3.1 (x-space loss, ramp weight); Causal Forcing and LongLive 2.0 (a remembered copy of the
clip, so that every frame is learned in the situation in which it is played).
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
      bootstrap: Share of rows that teach big strides; one row at least, unless it is 0.
      ramp_floor: Weight of the error at pure noise; at the clean end it is 1.
      as_played: Share of rows remembered at the very level of playing; the others anywhere from `context_floor` up.
      context_floor: Lowest signal level of a remembered frame.
      images: Share of rows cut into single frames, which teaches to start from nothing.
      cuts: Share of rows whose past is hidden before a random frame.
      unknown: Share of rows whose controls are hidden.
      recycled: Chance that a remembered frame carries one of the model's own old errors.
      recycle_from: Updates after which that begins.
      bank: Old errors kept.
      is_rematerialised: Whether the gradient computes each layer again instead of keeping what is inside: a third more
        time, most of the memory saved.
    """

    bootstrap: float = 0.125
    ramp_floor: float = 0.3
    as_played: float = 0.5
    context_floor: float = 0.7
    images: float = 0.05
    cuts: float = 0.1
    unknown: float = 0.1
    recycled: float = 0.5
    recycle_from: int = 2000
    bank: int = 1024
    is_rematerialised: bool = False
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
        config = world.config.dynamics
        clean = batch.latents.astype(jnp.float32)
        keys = jax.random.split(key, 7)
        level, stride, is_boot = self._levels(config, keys[0], clean.shape[:2])
        segment, is_known = self._segments(keys[1], batch.is_first)
        memory = self._context_levels(config, keys[2], clean.shape[:2])
        dirty = clean + self._recycle(keys[3], clean, step, carry["errors"])
        past = (mix(jax.random.normal(keys[4], clean.shape), dirty, _at(memory / config.levels)), memory)
        noisy = mix(jax.random.normal(keys[5], clean.shape), clean, _at(level / config.levels))
        given = (batch.controls.keys, is_known, segment, past)
        guess = _predict(world, params, noisy, level, stride, given, self.is_rematerialised)
        rows, target = self._boot_rows(clean.shape[0]), clean
        if rows:
            few = jax.tree.map(lambda leaf: leaf[:rows], (clean, noisy, level, stride, given))
            target = jnp.concatenate([_two_small(world, slow, *few), clean[rows:]])
        error = jnp.mean((guess - target) ** 2, axis=(2, 3, 4))
        weight = (1.0 - self.ramp_floor) * level / config.levels + self.ramp_floor
        loss = jnp.mean(weight * error)
        metrics = {
            "flow": _mean_where(error, ~is_boot),
            "bootstrap": _mean_where(error, is_boot),
            "from_noise": _mean_where(error, ~is_boot & (level < config.levels // 4)),
        }
        carry = {"errors": self._bank(keys[6], guess - clean, level / config.levels, is_boot, carry["errors"])}
        return loss, (metrics, carry)

    def _boot_rows(self, batch: int) -> int:
        """How many rows teach big strides: at least one, which playing in few passes needs, and never all.

        Raises:
          ValueError: one row cannot teach both.
        """
        if not self.bootstrap:
            return 0
        if batch < 2:
            raise ValueError(f"a batch of {batch} row has no room for a bootstrap row beside another: use 2 or more")
        return min(max(round(batch * self.bootstrap), 1), batch - 1)

    def _levels(self, config: DynamicsConfig, key, shape):
        """Level and stride rows of each frame, and which frames teach a big stride."""
        k = jax.random.split(key, 2)
        is_boot = jnp.broadcast_to(jnp.arange(shape[0])[:, None] < self._boot_rows(shape[0]), shape)
        finest = config.stride_rows - 1
        stride = jnp.where(is_boot, _integers(k[0], shape, 0, finest), finest)
        count = 2**stride
        place = jnp.floor(jax.random.uniform(k[1], shape) * count).astype(jnp.int32)
        return jnp.minimum(place, count - 1) * (config.levels // count), stride, is_boot

    def _context_levels(self, config: DynamicsConfig, key, shape):
        """The level at which each row remembers; never clean, which playing does not visit."""
        k = jax.random.split(key, 2)
        rows = (shape[0], 1)
        floor = min(round(self.context_floor * config.levels), config.levels - 1)
        other = _integers(k[0], rows, floor, config.levels)
        level = jnp.where(jax.random.bernoulli(k[1], self.as_played, rows), config.context_index, other)
        return jnp.broadcast_to(level, shape)

    def _segments(self, key, is_first):
        """Which frames may see each other, and whose controls are known."""
        rows, frames = is_first.shape
        k = jax.random.split(key, 4)
        cut_at = _integers(k[0], (rows, 1), 1, frames)
        cut = jax.random.bernoulli(k[1], self.cuts, (rows, 1)) & (jnp.arange(frames)[None] == cut_at)
        alone = jax.random.bernoulli(k[2], self.images, (rows, 1))
        segment = jnp.cumsum((is_first | cut | alone).astype(jnp.int32), axis=1)
        is_known = ~is_first & ~jax.random.bernoulli(k[3], self.unknown, (rows, 1))
        return segment, is_known

    def _recycle(self, key, clean, step, errors):
        """Old errors for remembered frames; a fifth of the rows stays clean.

        Source: Stable Video Infinity (error recycling); LongLive 2.0, context injection.
        """
        k = jax.random.split(key, 4)
        shape = clean.shape[:2]
        drawn = errors[_integers(k[0], shape, 0, self.bank)]
        chosen = jax.random.bernoulli(k[1], self.recycled, shape) & (step >= self.recycle_from)
        chosen = chosen & jax.random.bernoulli(k[2], 0.8, (shape[0], 1))
        size = jax.random.uniform(k[3], shape, minval=0.7, maxval=1.3)
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


def _predict(world: World, params: Params, noisy, level, stride, given, is_rematerialised=False):
    keys, is_known, segment, past = given
    model = world.model(params)
    given = model.embedder(keys, is_known), segment, past
    return model.dynamics.denoise_clip(noisy, level, stride, *given, is_rematerialised)


def _two_small(world: World, slow: Params, clean, noisy, level, stride, given):
    """The clean latent implied by two half strides of the slow weights; the true one where nothing is taught."""
    levels, finest = world.config.dynamics.levels, world.config.dynamics.stride_rows - 1
    is_boot = stride < finest
    half = 0.5 * 2.0 ** -stride.astype(jnp.float32)
    finer = jnp.minimum(stride + 1, finest)
    now = level / levels
    first = _predict(world, slow, noisy, level, finer, given)
    middle = jnp.where(_at(is_boot), update(noisy, first, _at(now), _at(half)), noisy)
    later = jnp.where(is_boot, level + jnp.round(half * levels).astype(jnp.int32), level)
    second = _predict(world, slow, middle, later, finer, given)
    # Where nothing is taught `later / levels` may be any level: keep the division away from 0.
    after = jnp.where(is_boot, later / levels, 0.0)
    end = update(middle, second, _at(after), _at(half))
    target = noisy + (end - noisy) * _at((1.0 - now) / (2.0 * half))
    return jax.lax.stop_gradient(jnp.where(_at(is_boot), target, clean))


def _integers(key, shape, low, high):
    """Whole numbers from `low` to below `high`, drawn by way of `uniform`: randint is not right on every accelerator."""
    number = jnp.floor(jax.random.uniform(key, shape) * (high - low)).astype(jnp.int32)
    return low + jnp.minimum(number, high - low - 1)


def _at(per_frame):
    return per_frame[:, :, None, None, None]


def _mean_where(values, chosen):
    return jnp.sum(values * chosen) / jnp.maximum(jnp.sum(chosen), 1)
