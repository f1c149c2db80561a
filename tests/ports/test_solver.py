"""The two solvers of the published schedule, on a dream that is known exactly: data of a Gaussian, each channel its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wm_jax as wm
from wm_jax.ports import open_oasis
from wm_jax.ports.open_oasis import OasisConfig, schedule
from wm_jax.ports.open_oasis.config import SOLVERS
from wm_jax.ports.open_oasis.frame import next_latent

pytestmark = pytest.mark.oasis
WIDTH = np.geomspace(0.05, 2.0, 32).astype(np.float32)
MIDDLE = np.random.default_rng(0).standard_normal(32).astype(np.float32)
NOISE = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)


def velocity(noisy, share):
    """What a perfect model of N(MIDDLE, WIDTH^2) says: v = (sqrt(share) noisy - E[clean]) / sqrt(1 - share)."""
    a, spread = jnp.sqrt(share), share * WIDTH**2 + 1.0 - share
    clean = MIDDLE + a * WIDTH**2 / spread * (noisy - a * MIDDLE)
    return (a * noisy - clean) / jnp.sqrt(1.0 - share)


def dreamed(solver, steps):
    """The clean frames that a solver makes of the noise, its passes in a scan as in a step."""
    passes = schedule.plan(1000, steps, solver)

    def one(carry, i):
        (noisy, before), now = carry, passes.of(i)
        return schedule.solve(solver, noisy, velocity(noisy, now.share), now, before), None

    now, noise = passes.of(0), jnp.asarray(NOISE)
    first = schedule.solve(solver, noise, velocity(noise, now.share), now, None)
    return np.asarray(jax.lax.scan(one, first, jnp.arange(1, steps))[0][0])


def error(made):
    """Against where the exact flow takes the noise: every channel keeps its place among its widths."""
    share = schedule.signal(1000)[-1]
    spread = np.sqrt(share * WIDTH**2 + 1.0 - share)
    exact = MIDDLE + WIDTH / spread * (NOISE - np.sqrt(share) * MIDDLE)
    return np.sqrt(np.mean((made - exact) ** 2) / np.mean(exact**2))


@pytest.mark.parametrize("steps", [4, 5, 6, 8, 16])
def test_the_second_order_is_nearer_to_the_exact_flow_with_as_many_passes(steps):
    assert error(dreamed("dpmpp2m", steps)) < 0.75 * error(dreamed("ddim", steps))


def test_five_passes_of_the_second_order_are_worth_ten_of_the_first():
    assert error(dreamed("dpmpp2m", 5)) < error(dreamed("ddim", 10))


def test_even_strides_in_the_ratio_are_better_than_in_time(monkeypatch: pytest.MonkeyPatch):
    errors = {steps: error(dreamed("dpmpp2m", steps)) for steps in (4, 5, 6, 8, 16)}
    monkeypatch.setattr(schedule, "_even_in_ratio", lambda timesteps, steps: schedule.passes(timesteps, steps)[0])
    assert all(found < error(dreamed("dpmpp2m", steps)) for steps, found in errors.items())


def test_one_pass_is_the_same_by_both():
    np.testing.assert_array_equal(dreamed("ddim", 1), dreamed("dpmpp2m", 1))


def test_both_go_to_the_exact_flow():
    assert error(dreamed("dpmpp2m", 200)) < 1e-3 < error(dreamed("ddim", 200)) < 0.02


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 400, 1000])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_plan_goes_from_the_last_timestep_to_clean(solver, steps):
    found = schedule.plan(1000, steps, solver)
    assert found.timestep[0] == 999 and found.timestep[-1] >= 0 and np.all(np.diff(found.timestep) < 0)
    assert np.all(np.diff(found.share) > 0) and found.to[-1] == 1.0
    np.testing.assert_array_equal(found.share[1:], found.to[:-1])
    assert np.all(np.isfinite(found.lead)) and found.lead[0] == found.lead[-1] == 0.0
    assert np.any(found.lead > 0) == (solver == "dpmpp2m" and steps > 2)


def test_the_step_takes_what_the_config_says(small, expected):
    """With one pass both dream the same, with more they differ; which is the better one random weights cannot say."""

    def latent(solver, steps):
        world = open_oasis.OasisWorld(dataclasses.replace(small[0].config, solver=solver, steps=steps))
        state = wm.empty(world, 2)
        given = expected["rollout.actions"][:, 0], jnp.ones((2,), bool), expected["rollout.noise"][:, 1]
        return np.asarray(jax.jit(next_latent, static_argnums=0)(world.config, small[1], state, *given).latent)

    np.testing.assert_allclose(latent("ddim", 1), latent("dpmpp2m", 1), atol=1e-6)
    one, other, last = latent("ddim", 8), latent("dpmpp2m", 8), np.abs(latent("ddim", 50)).mean()
    assert 0.01 * last < np.abs(one - other).mean() < 0.5 * last


def test_another_solver_is_refused():
    with pytest.raises(ValueError, match="solver is 'euler': it must be one of ddim, dpmpp2m"):
        OasisConfig(solver="euler")  # pyright: ignore[reportArgumentType]
