"""The whole step is timed by arms that differ in nothing but the kernels."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wm_jax as wm
from pallas_kernels import block_causal_attention
from pallas_kernels.implementation import using
from wm_jax.dynamics import ring_cache
from wm_jax.eval import step_bench
from wm_jax.eval.step_bench import full_state

CONFIG = """
import dataclasses
import wm_jax as wm
from wm_jax.world import WorldConfig

@dataclasses.dataclass(frozen=True)
class Run:
    world: WorldConfig

def config():
    return Run(wm.tiny_world(sinks=1)[0].config)
"""


def bench(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr("sys.argv", ["step_bench", *flags])
    return step_bench.main()


def test_the_command_times_both_arms_and_writes_what_it_found(tmp_path, monkeypatch, capsys) -> None:
    config, out = tmp_path / "run.py", tmp_path / "out.json"
    config.write_text(CONFIG)
    flags = ("--batches", "1", "2", "--rounds", "1", "--frames", "2", "--price", "2.0", "--json", str(out))
    slow = ("--rate", "0.01")  # however slow the machine, it has a session
    assert bench(monkeypatch, "--config", str(config), *flags, *slow) == 0
    found = json.loads(out.read_text())
    assert [row["batch"] for row in found["rows"]] == [1, 2]
    for row in found["rows"]:
        assert row["auto_ms"] > 0 and row["reference_ms"] > 0 and row["sessions"] >= 1
        assert row["largest_difference"] == 0.0  # on a CPU both are the reference
        assert row["per_session_hour"] == pytest.approx(2.0 / row["sessions"])
    assert "| 2 |" in capsys.readouterr().out


def test_what_cannot_be_is_refused(tmp_path, monkeypatch, capsys) -> None:
    assert bench(monkeypatch, "--config", str(tmp_path / "none.py")) == 1
    assert "none.py" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench(monkeypatch, "--batches", "0")
    assert "--batches are (0,), each must be at least 1" in capsys.readouterr().err


def test_a_full_ring_is_what_a_long_session_has() -> None:
    world, params = wm.tiny_world()
    played, full = wm.start(world, params, wm.Prompt(), jax.random.key(0)), full_state(world, 1)
    for _ in range(2 * world.config.dynamics.window_frames + 1):
        played, _ = wm.step(world, params, played, wm.Controls(np.zeros((1, 4), bool)))
    ages = [np.sort(np.asarray(ring_cache.ages(state.cache))) for state in (played, full)]
    np.testing.assert_array_equal(ages[0], ages[1])


def test_using_takes_the_place_of_auto_and_of_nothing_else() -> None:
    q, segment = jnp.zeros((1, 1, 2, 2, 6)), jnp.zeros((1, 1), jnp.int32)
    attend = functools.partial(block_causal_attention, q, q, q, segment, window_frames=0, is_per_site=False)
    with using("tpu"):
        with pytest.raises(ValueError, match="'tpu' was asked for"):
            attend()
        assert attend(implementation="reference").shape == q.shape
    assert attend().shape == q.shape
