"""Speed is measured on the step that is played, whatever the age of the dream."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import wm_jax as wm
from wm_jax.dynamics import ring_cache
from wm_jax.eval.aging import not_finite
from wm_jax.eval.evaluate import EvalConfig
from wm_jax.eval.latency import measure
from wm_jax.eval.progress import progress
from wm_jax.nn.rope import PERIOD


def test_every_figure_is_a_number_that_can_be() -> None:
    world, params = wm.tiny_world()
    with progress(quiet=True) as bar:
        found = measure(world, params, wm.Prompt(), 200, bar)
    assert all(np.isfinite(value) for value in dataclasses.asdict(found).values())
    assert found.step_p99_ms >= found.step_p50_ms > 0 and found.fps > 0
    assert 0 < found.host_us < 1e3 * found.step_p99_ms and found.old_over_young > 0
    assert found.old_not_finite == 0 and 0 < found.old_largest_id < found.id_bound == ring_cache.largest_id(4)


def test_a_number_that_is_none_is_counted() -> None:
    state = wm.empty(wm.tiny_world()[0])
    assert not_finite(state) == 0
    assert not_finite(dataclasses.replace(state, latent=state.latent.at[0, 0, 0, :2].set(jnp.nan))) == 2


def test_the_old_dream_of_an_evaluation_has_moved_its_ids_back_at_least_twice() -> None:
    assert EvalConfig(Path()).latency_frames > 2 * PERIOD
