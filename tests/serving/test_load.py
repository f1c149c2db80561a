"""The load generator against a real server: what it counts is what was sent."""

import json
import sys

import numpy as np
import pytest

from wm_jax.eval import load
from wm_jax.eval.load import LoadConfig, Played, lateness, rate


def test_the_rate_and_the_lateness_of_a_player():
    played = Played(arrived_s=[10.0, 10.1, 10.25, 10.3], due_s=[5.0, 5.1, 5.2, 5.3])
    assert rate(played) == pytest.approx(10.0)
    np.testing.assert_allclose(lateness(played), [0.0, 0.0, 0.05, 0.0], atol=1e-9)


def test_two_players_of_a_real_server(server, tmp_path, monkeypatch, capsys):
    out, plot = tmp_path / "load.json", tmp_path / "gaps.png"
    words = ["--players", "2", "--seconds", "2", "--warmup", "0.5", "--json", str(out), "--plot", str(plot)]
    monkeypatch.setattr(sys, "argv", ["load", server.url, *words])
    load.main()
    numbers = json.loads(out.read_text())
    assert "gap_p99_ms" in capsys.readouterr().out and plot.stat().st_size > 10_000
    assert numbers["players"] == 2 and numbers["fps_wanted"] == server.world.config.fps
    assert 0 < numbers["fps_least"] <= numbers["fps_together"] / 2 <= 1.1 * numbers["fps_wanted"]
    assert 1.0 < numbers["rows_a_step"] <= 2.0 and 0 < numbers["on_time"] <= 1
    assert 0 < numbers["gap_p50_ms"] <= numbers["gap_p95_ms"] <= numbers["gap_p99_ms"] <= numbers["gap_max_ms"]
    assert numbers["recompilations"] == 0 and numbers["action_to_frame_p50_ms"] > 0
    assert server.free_slots() == 2, "the players have left"


def test_what_the_server_refuses_is_said(server, monkeypatch):
    with pytest.raises(RuntimeError, match="503"):
        load.measure(server.url, LoadConfig(server.url, players=3, seconds=0.1, warmup=0.1))
    with pytest.raises(RuntimeError, match=r"serve\.py ended with exit status 2"):
        load.run(LoadConfig("no_world"))
    monkeypatch.setattr(sys, "argv", ["load", server.url, "--processes"])
    with pytest.raises(SystemExit, match="name a world folder"):
        load.main()
