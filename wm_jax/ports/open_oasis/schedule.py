"""How much signal is left at each timestep, and the deterministic step from one timestep to a cleaner one, by two solvers."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

START, END, LARGEST_BETA = -3.0, 3.0, 0.999


@functools.lru_cache(maxsize=8)
def signal(timesteps: int) -> Float[np.ndarray, " t"]:
    """Share of the variance that is signal at each timestep: a sigmoid from `START` to `END`.

    Source: Scalable Adaptive Computation for Iterative Generation (its sigmoid schedule); each single step keeps 0.001 at least.
    """
    time = np.linspace(0.0, 1.0, timesteps + 1)
    low, high = _sigmoid(START), _sigmoid(END)
    left = (high - _sigmoid(START + time * (END - START))) / (high - low)
    beta = np.clip(1.0 - left[1:] / left[:-1], 0.0, LARGEST_BETA)
    return np.cumprod(1.0 - beta)


def passes(
    timesteps: int, steps: int
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Of each denoising pass: the timestep that the frame is at, its share of signal, and the share to bring it to.

    The last pass lands on the clean frame.
    """
    timestep = (timesteps * np.arange(steps, 0, -1) // steps - 1).astype(np.int32)
    share = signal(timesteps)[timestep].astype(np.float32)
    return timestep, share, np.append(share[1:], np.float32(1.0))


def update(noisy: Float[Array, "*b"], v: Float[Array, "*b"], share: Float[Array, ""], to: Float[Array, ""]):
    """The frame at share `to` of signal, given the velocity seen at `share`.

    Source: Denoising Diffusion Implicit Models, equation 12 with sigma 0; Progressive Distillation, section 4 (v).
    """
    return _mix(*_parts(noisy, v, share), to)


class Plan(NamedTuple):
    """The passes of a frame, the noisiest first.

    Attributes:
      timestep: That the frame is at.
      share: Of signal there.
      to: Share that the pass brings it to; the last one lands on the clean frame.
      lead: How many times its last change the clean frame is taken to change on the way: 0 where nothing is known of it.
    """

    timestep: Int[Array, " n"]
    share: Float[Array, " n"]
    to: Float[Array, " n"]
    lead: Float[Array, " n"]

    def of(self, i: Any) -> "Plan":
        """One of the passes, by a number that may be traced."""
        return jax.tree.map(lambda rows: rows[i], self)


def plan(timesteps: int, steps: int, solver: str) -> Plan:
    """The passes of a solver: evenly over the timesteps for DDIM, as published, evenly in log signal to noise for the other.

    Source of `lead`: DPM-Solver++ (Lu et al. 2022), algorithm 2, 1 / (2 r). Its first pass knows no change yet, its last
    goes to a ratio without bound: both are of first order.
    """
    if solver == "ddim":
        timestep, share, to = passes(timesteps, steps)
        lead = np.zeros_like(share)
    else:
        timestep = _even_in_ratio(timesteps, steps)
        share = signal(timesteps)[timestep]
        stride = np.diff(_log_ratio(share))
        to, lead = np.append(share[1:], 1.0), np.zeros(steps)
        lead[1:-1] = stride[1:] / (2 * stride[:-1])
    return Plan(jnp.asarray(timestep), *(jnp.asarray(part, jnp.float32) for part in (share, to, lead)))


def solve(solver: str, noisy: Float[Array, "*b"], v: Float[Array, "*b"], now: Plan, before: Any) -> tuple[Any, Any]:
    """One pass: the frame at share `now.to`, and what the next pass is told as `before` (None to the first one).

    With "dpmpp2m" the clean frame goes on changing by `now.lead` times its last change, which is what makes the solver one
    of second order; with a lead of 0 it is DDIM. Source: DPM-Solver++ (Lu et al. 2022), equation 5.6 (multistep, 2M).
    """
    if solver == "ddim":
        return update(noisy, v, now.share, now.to), None
    clean, noise = _parts(noisy, v, now.share)
    change = jnp.zeros_like(clean) if before is None else now.lead * (clean - before)
    noise = noise - jnp.sqrt(now.share / (1.0 - now.share)) * change
    return _mix(clean + change, noise, now.to), clean


def _parts(noisy, v, share):
    """The clean frame and the noise that a velocity says are in a noisy one."""
    clean = jnp.sqrt(share) * noisy - jnp.sqrt(1.0 - share) * v
    noise = jnp.sqrt(1.0 - share) * noisy + jnp.sqrt(share) * v
    return clean, noise


def _mix(clean, noise, share):
    return jnp.sqrt(share) * clean + jnp.sqrt(1.0 - share) * noise


def _even_in_ratio(timesteps: int, steps: int) -> Int[np.ndarray, " n"]:
    """As many timesteps, no two alike, nearest to even strides in the log ratio of signal to noise.

    The strides are counted from the last timestep but one: the last has next to no signal, and its ratio is far off.
    """
    ratio = _log_ratio(signal(timesteps))
    wanted = np.linspace(ratio[-2], ratio[0], steps + 1)[:-1]
    count = np.arange(steps)
    nearest = np.abs(ratio[:, None] - wanted).argmin(axis=0)
    nearest[0] = timesteps - 1
    falling = np.minimum.accumulate(nearest + count) - count
    return np.maximum(falling, steps - 1 - count).astype(np.int32)


def _log_ratio(share: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Logarithm of signal over noise, both as amplitudes."""
    return 0.5 * np.log(share / (1.0 - share))


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))
