"""How weights move: Muon for the hidden matrices, AdamW for all else, one learning rate on a WSD schedule."""

import dataclasses
from typing import Any

import jax
import optax

HIDDEN = ("qkv", "out", "gate_up", "down")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer.

    Attributes:
      learning_rate: Peak.
      warmup_steps: Linear rise from 0.
      decay_fraction: Last share of the run in which the rate falls to 0 as 1 - sqrt.
      weight_decay: Decoupled, on all trained weights.
      clip_norm: Largest global gradient norm.
      ema: Largest decay of the slow weights; early in a run it is (1 + n) / (10 + n).
      use_muon: Orthogonalise the updates of attention and MLP matrices.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_fraction: float = 0.2
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999
    use_muon: bool = True


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Warm-up, constant, decay. Source: Scaling Laws and Compute-Optimal Training Beyond Fixed Durations, section 3."""
    decay_steps = max(int(steps * config.decay_fraction), 1)
    warm = optax.linear_schedule(0.0, config.learning_rate, max(config.warmup_steps, 1))

    def cool(step):
        return config.learning_rate * (1.0 - jax.numpy.sqrt(jax.numpy.clip(step / decay_steps, 0.0, 1.0)))

    flat = optax.constant_schedule(config.learning_rate)
    return optax.join_schedules([warm, flat, cool], [config.warmup_steps, max(steps - decay_steps, 1)])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Gradient clipping, then Muon and AdamW on one schedule.

    Source: Muon is Scalable for LLM Training, section 2.2 (update RMS matched to AdamW's).
    """
    schedule = make_schedule(config, steps)
    clip = optax.clip_by_global_norm(config.clip_norm)
    if not config.use_muon:
        return optax.chain(clip, optax.adamw(schedule, b1=0.9, b2=0.99, weight_decay=config.weight_decay))
    muon = optax.contrib.muon(
        schedule,
        adam_b1=0.9,
        adam_b2=0.95,
        weight_decay=config.weight_decay,
        adam_weight_decay=config.weight_decay,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=hidden_matrices,
    )
    return optax.chain(clip, muon)


def hidden_matrices(params: Any) -> Any:
    """For each weight, the axes that Muon orthogonalises, or None (AdamW): the stacked matrices of the blocks."""

    def axes(path, leaf):
        names = [getattr(part, "key", "") for part in path]
        is_hidden = names[-1] == "kernel" and "blocks" in names and any(name in HIDDEN for name in names)
        if not is_hidden or leaf.ndim != 3:
            return None
        return optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)

    return jax.tree_util.tree_map_with_path(axes, params)
