"""The load generator against a real server: what it counts is what was sent."""

import asyncio
import contextlib
import json
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wm_jax as wm
from tests.serving.conftest import serving, tiny_prompts
from wm_jax.eval import hostile, load
from wm_jax.eval.load import LoadConfig
from wm_jax.eval.players import Played, Server, Visit, _watch, rate, repeats
from wm_jax.ports.published import Published

TINY = """
import dataclasses
import wm_jax as wm

@dataclasses.dataclass
class Run:
    world: object

def config():
    return Run(wm.tiny_world(0)[0].config)
"""


def test_the_rate_of_a_player():
    assert rate(Played(arrived_s=[10.0, 10.1, 10.25, 10.3])) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("behind", "again"),
    [
        ([0.0, 0.09, 0.0, 0.09, 0.0], 0),
        ([0.0, 0.11, 0.0, 0.0, 0.11], 2),
        ([0.0, 0.0, 0.11, 0.1, 0.1, 0.19, 0.22], 2),
        ([0.09, 0.0, 0.11, 0.0], 1),
        ([0.0, 1.05, 1.0, 1.09], 10),
        ([0.07 * frame for frame in range(6)], 3),
    ],
    ids=["jitter", "spikes", "a tick skipped", "a late first frame", "a freeze", "a clock that runs away"],
)
def test_a_screen_shows_a_frame_again_where_the_next_one_is_late(behind, again):
    due = [0.1 * frame for frame in range(len(behind))]
    played = Played(arrived_s=[7.0 + one + more for one, more in zip(due, behind, strict=True)], due_s=due)
    assert repeats(played, 0.1) == again


def test_an_action_that_a_later_one_overtook_counts_as_long_as_it_waited():
    class Client:
        async def recv(self) -> bytes:
            header = json.dumps({"seq": 0, "pts_ms": 0, "dropped": 0, "t": {"step": 1.0}, "last_event_id": 2}).encode()
            return struct.pack("<I", len(header)) + header

        async def send(self, _: str) -> None:
            pass

    played, now = Played(), time.perf_counter()
    pressed = {1: now - 3.0, 2: now - 1.0, 3: now}
    asyncio.run(_watch(Client(), played, pressed, now, Visit(players=1, seconds=0.0, warmup=0.0)))
    assert played.latency_s == pytest.approx([3.0, 1.0], abs=0.5) and list(pressed) == [3]


def test_drift_is_told_from_the_first_and_the_last_tenth():
    arrived = np.cumsum([0.0, *[0.1] * 10, *[0.2] * 80, *[0.3] * 10])
    told = load.drift([Played(arrived_s=list(arrived), latency_s=[0.5, *[1.0] * 8, 2.0])])
    assert told["gap_p99_first_ms"] == pytest.approx(100) and told["gap_p99_last_ms"] == pytest.approx(300)
    assert told["action_to_frame_p50_first_ms"] == 500 and told["action_to_frame_p50_last_ms"] == 2000


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
    assert numbers["gap_p99_first_ms"] > 0 and numbers["gap_p99_last_ms"] > 0
    assert 50 < numbers["memory_first_mb"] < 1.2 * numbers["memory_last_mb"] and numbers["files_last"] > 5
    assert server.free_slots() == 2, "the players have left"


def test_what_the_server_refuses_is_said(server, tmp_path):
    with pytest.raises(RuntimeError, match="503"):
        load.measure(server.url, LoadConfig(server.url, players=3, seconds=0.1, warmup=0.1))
    with pytest.raises(RuntimeError, match=r"serve\.py ended with exit status 2"):
        load.run(LoadConfig("no_world"))
    worldless = tmp_path / "worldless.py"
    worldless.write_text(TINY.replace("world:", "other:"))
    with pytest.raises(ValueError, match="has no world"):
        load.run(LoadConfig(str(worldless)))
    random = Published(random_weights=True)
    refused: list[tuple[str, dict[str, Any], str]] = [
        (server.url, {"processes": True}, "name a world, not a URL"),
        (server.url, {"published": random}, "runs already"),
        ("world", {"search": True, "hostile": True}, "two measurements"),
        ("world", {"search": True, "plot": Path("gaps.png")}, "makes several"),
    ]
    for target, settings, error in refused:
        with pytest.raises(ValueError, match=error):
            LoadConfig(target, **settings)


@pytest.mark.slow
def test_an_untrained_world_is_searched_for_how_many_it_carries(tmp_path, monkeypatch, capfd):
    """As on an accelerator: a config, no weights, a rate, a price."""
    told = tmp_path / "tiny.py"
    told.write_text(TINY)
    words = ["--players", "1", "--search", "--fps", "1", "--seconds", "6", "--warmup", "0.3", "--price", "3"]
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["load", str(told), *words, "--json", str(out)])
    load.main()
    numbers = json.loads(out.read_text())
    assert numbers["players"] == 1 and numbers["price_of_a_player_hour"] == 3.0 and "too_many" not in numbers
    assert 0 < numbers["step_p50_ms"] <= numbers["step_p99_ms"]
    assert "1 players: " in capfd.readouterr().err


def test_a_gateway_is_refused_before_anybody_plays(monkeypatch):
    monkeypatch.setattr(load, "request", lambda *_, **__: {"status": "ok", "replicas": 2})
    with pytest.raises(RuntimeError, match="gateway of many servers"):
        load.measure("http://gateway", LoadConfig("http://gateway"))


def test_one_batch_is_compared_with_a_server_for_each(monkeypatch):
    """A server makes 80 frames a second for one player, and 30 a player for four of them; servers beside each other share."""
    servers: list[int] = []

    @contextlib.contextmanager
    def serving(config, slots, fps):
        assert fps == load.UNPACED
        servers.append(slots)
        yield f"url {len(servers)}"

    async def play_all(urls, visit):
        fps = 30.0 if len(urls) == 1 else 80.0 / len(set(urls))
        return [Played(arrived_s=[0.0, 1 / fps, 2 / fps])] * visit.players

    monkeypatch.setattr(load, "serving", serving)
    monkeypatch.setattr(load, "play_all", play_all)
    numbers = load.run(LoadConfig("world", players=4, processes=True, rounds=2))
    assert servers == [4, 1, 1, 1, 1] * 2
    assert numbers == pytest.approx({"players": 4, "one_batch_fps": 120.0, "processes_fps": 80.0, "ratio": 1.5})


def test_the_search_says_how_many_are_too_many(monkeypatch):
    """The device gives 40 frames a second, to be shared."""
    servers: list[int] = []

    @contextlib.contextmanager
    def serving(config, slots, fps):
        servers.append(slots)
        yield "url"

    def measure(url, config):
        return (
            {"players": config.players, "fps_least": min(10.0, 40 / config.players), "fps_wanted": 10.0},
            [],
            Server(),
        )

    monkeypatch.setattr(load, "serving", serving)
    monkeypatch.setattr(load, "measure", measure)
    found = load.search(LoadConfig("world", players=12, search=True))
    assert (found["players"], found["too_many"], servers) == (4, 8, [1, 2, 4, 8])
    found = load.search(LoadConfig("world", players=3, search=True))
    assert found["players"] == 3 and "too_many" not in found and servers[4:] == [1, 2, 3]


@pytest.mark.parametrize(
    ("kind", "heard"),
    [
        (hostile.flood, {"flood: closed 4429", "flood: cut off"}),
        (hostile.huge, {"huge: closed 1009", "huge: cut off"}),
        (hostile.garbage, {"wrong token: closed 4401", "wrong origin: closed 4403", "bad UTF-8: closed 1007",
                           "garbage: closed 1008"}),
        (hostile.bomb, {"bomb: 422", "long body: 413"}),
        (hostile.burglar, {"path traversal: 404"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_a_hostile_client_hears_a_code_and_leaves_no_seat_taken(server, kind, heard):
    attack = hostile.Attack(server.url, None)
    asyncio.run(kind(attack))
    one_of = kind in (hostile.flood, hostile.huge)  # who still writes may not hear why
    assert attack.heard and (set(attack.heard) <= heard if one_of else set(attack.heard) == heard)
    assert server.free_slots() == 2


@pytest.mark.full
def test_players_are_measured_alone_and_beside_hostile_clients():
    with serving(*wm.tiny_world(0), tiny_prompts(), slots=1 + hostile.SEATS) as server:
        numbers = load.withstand(load.LoadConfig(server.url, seconds=3, warmup=0.5, rounds=2))
        assert server.free_slots() == 1 + hostile.SEATS, "everybody has left"
    assert numbers["company_rows_a_step"] > 3 and numbers["alone_rows_a_step"] < 1.5
    assert numbers["recompilations"] == 0 and numbers["alone_gap_p99_ms"] > 0 and numbers["beside_fps_least"] > 5
    assert numbers["beside_gap_p99_ms"] < 3 * numbers["company_gap_p99_ms"]
    assert {"bomb: 422", "wrong token: closed 4401", "path traversal: 404"} <= set(numbers["answers"])
    assert "bomb: 422" in load.show(numbers)
