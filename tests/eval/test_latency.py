"""Speed is measured on the step that is played, whatever the age of the dream."""

import dataclasses

import numpy as np

import wm_jax as wm
from wm_jax.eval.latency import measure
from wm_jax.eval.progress import progress


def test_every_figure_is_a_positive_number() -> None:
    world, params = wm.tiny_world()
    with progress(quiet=True) as bar:
        found = measure(world, params, wm.Prompt(), 200, bar)
    assert all(np.isfinite(value) for value in dataclasses.asdict(found).values())
    assert found.step_p99_ms >= found.step_p50_ms > 0 and found.fps > 0
    assert 0 < found.host_us < 1e3 * found.step_p99_ms and found.old_over_young > 0
