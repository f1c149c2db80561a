"""Going back and forking: a session's own past, and nobody else's."""

from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest

import wm_jax as wm
from tests.serving.conftest import serving, tiny_prompts, wait_until
from wm_jax.serving import engine, history
from wm_jax.serving.config import ServeConfig
from wm_jax.serving.history import History, Memory, Room, host_memory_mb, room_for
from wm_jax.serving.lobby import Lobby
from wm_jax.serving.session import Opening


def test_the_newest_are_kept_and_found_at_or_before_a_frame():
    history = History(depth=3, every=5)
    assert history.find(100) is None
    for frame in range(19):
        if history.lateness(frame) == 0:
            assert history.keep(frame, Memory(f"state {frame}")) is None, "all that is kept stays on the device"
    assert history.frames == [5, 10, 15]
    found = [history.find(frame) for frame in (4, 5, 9, 10, 99)]
    assert [kept and kept.frame_id for kept in found] == [None, 5, 5, 10, 15]
    assert History(depth=0, every=1).lateness(0) is None


def test_what_could_not_be_kept_in_time_is_kept_later_and_the_device_holds_the_newest_alone():
    history, leaving = History(depth=3, every=5, on_device=1), []
    for frame in range(24):
        late = history.lateness(frame)
        if late is not None and frame not in (5, 6, 10):  # there was no room on the way to the host
            assert late == {7: 2, 11: 1}.get(frame, 0)
            leaving.append(history.keep(frame, Memory(frame)))
    assert history.frames == [11, 15, 20]
    assert [left and left.state for left in leaving] == [None, 0, 7, 11, 15]
    assert (room_for(100, 16, 1e-3, 1e-3), room_for(100, 16, 1e-5, 1e-5)) == (Room(16, 10), Room(0, 0))
    assert room_for(100, 4, 1e-3, 1e-3) == Room(4, 4)


def test_all_sessions_together_fit_into_half_of_the_hosts_memory(monkeypatch, tmp_path):
    whole = host_memory_mb()
    assert 500 < whole < 1e8
    for text, wanted in (("max\n", whole), ("64000000\n", 64.0), (f"{10**18}\n", whole)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(history, "CONTAINER_LIMIT", tmp_path / "memory.max")
        assert host_memory_mb() == wanted
    (tmp_path / "memory.max").write_text("64000000")
    batcher = SimpleNamespace()
    config = ServeConfig(slots=4, history=99, history_mb=3.0, history_host_mb=20.0)
    assert Lobby(config, cast(Any, None), 30.0, cast(Any, batcher), memory_bytes=1_000_000).room == Room(3 + 8, 3)


def test_states_too_large_for_the_device_are_kept_on_the_host(monkeypatch):
    """Going back, forking and a failed frame: all to the bit, as if they had stayed where they were made."""
    raw = {"mode": "stepped", "media": {"codec": "raw"}, "init": {"seed": 5}}
    with serving(*wm.tiny_world(0), tiny_prompts(), history=4, history_every=5, history_mb=0.0) as server:
        ticket = server.create(**raw)
        session, served = server.service.lobby.find(ticket["session_id"]).session, server.service.batcher.engine
        with server.connect(ticket) as socket:
            talk = server.talk(socket)
            assert talk.wait_for("session.created")["capabilities"]["kept_frames"] == 4
            first = steps(server, talk, 23, 1)
            wait_until(lambda: all(is_on_host(kept.memory) for kept in session._history._kept))
            assert session.kept_frames() == [5, 10, 15, 20]
            talk.send("control", op="seek", frame=12, event_id="back")
            assert talk.wait_for("ack", event_id="back")["restored_frame"] == 10
            assert steps(server, talk, 9, 2) == first[10:19]
            fork = server.http.post(f"{server.url}/v1/sessions/{ticket['session_id']}/fork", json={"at": 25}).json()
            with server.connect(fork) as other:
                ahead = steps(server, server.talk(other), 12, 1)
            held = server.service.lobby.find(fork["session_id"]).session.opening.memory
            wait_until(lambda: is_on_host(held))
            server.delete(fork)
            assert ahead[:7] == first[12:19]
            step = served.step

            def broken(*asked):
                for leaf in jax.tree.leaves(served._state):
                    leaf.delete()
                monkeypatch.setattr(served, "step", step)  # once
                raise RuntimeError("the device had a bad moment")

            monkeypatch.setattr(served, "step", broken)
            assert steps(server, talk, 5, 3) == ahead[7:]
            assert server.service.batcher.pulse.failures == 1 and served.recompilations == 0


def is_on_host(memory: Memory | None) -> bool:
    return memory is not None and all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(memory.state))


@pytest.mark.parametrize("platforms", [(), ("cpu",)], ids=["drawn", "given"])
def test_a_memory_goes_on_in_any_slot_to_the_bit(monkeypatch, platforms):
    monkeypatch.setattr(engine, "NEEDS_GIVEN_NOISE", platforms)
    world, params = wm.tiny_world(0)
    served = engine.Engine(world, params, engine.Scenes(wm.Prompt()), 2)
    served.compile(lambda name, share: None)
    held = wm.Controls(np.ones((2, 4), bool))

    def play(slot: int, frames: int) -> np.ndarray:
        active = np.arange(2) == slot
        return np.stack([np.asarray(served.step(held, active))[slot] for _ in range(frames)])

    served.seat(0, Opening(7))
    play(0, 3)
    memory = served.take(0)
    wanted = play(0, 4)
    served.seat(1, Opening(9))
    play(1, 2)
    for slot in (1, 0, 1):
        served.seat(slot, Opening(1, memory=memory))
        np.testing.assert_array_equal(play(slot, 4), wanted)
    assert served.memory_bytes == sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(memory.state))


def steps(server, talk, count: int, step_id: int, held=()) -> list[bytes]:
    talk.send("step", step_id=step_id, n=count, actions=[{"held": list(held)}])
    return [payload for _, payload in talk.wait_for_frames(count)]


@pytest.mark.parametrize("talk", [{"mode": "stepped", "media": {"codec": "raw"}, "init": {"seed": 5}}], indirect=True)
def test_a_session_goes_back_and_dreams_on_from_there(talk, server):
    created = talk.wait_for("session.created")
    every = created["capabilities"]["kept_every"]
    assert created["capabilities"]["kept_frames"] > 1
    first = steps(server, talk, 2 * every + 3, 1)
    talk.send("control", op="seek", frame=every + 2, event_id="back")
    ack = talk.wait_for("ack", event_id="back")
    assert (ack["restored_frame"], ack["applied_at_frame"]) == (every, 2 * every + 3)
    again = steps(server, talk, every + 3, 2)
    assert again == first[every:]
    talk.send("control", op="seek", frame=every, event_id="other")
    talk.wait_for("ack", event_id="other")
    assert steps(server, talk, 5, 3, held=["ArrowRight"]) != first[every : every + 5]


@pytest.mark.parametrize("talk", [{"mode": "stepped", "media": {"codec": "raw"}, "init": {"seed": 5}}], indirect=True)
def test_a_fork_agrees_up_to_the_fork_and_differs_after_it(talk, server):
    every = talk.wait_for("session.created")["capabilities"]["kept_every"]
    first = steps(server, talk, every + 4, 1)
    session = server.tickets[-1]["session_id"]
    then, now = (
        server.http.post(f"{server.url}/v1/sessions/{session}/fork", json=body).json() for body in ({"at": every}, {})
    )
    assert "code" in now, "two slots: the second fork finds none free"
    with server.connect(then) as socket:
        fork = server.talk(socket)
        assert steps(server, fork, 4, 1) == first[every:]
        mine, theirs = steps(server, talk, 3, 2), steps(server, fork, 3, 2, held=["ArrowUp"])
        assert mine != theirs
    server.delete(then)
    now = server.http.post(f"{server.url}/v1/sessions/{session}/fork", json={}).json()
    with server.connect(now) as socket:
        fork = server.talk(socket)
        assert steps(server, fork, 3, 1) == steps(server, talk, 3, 3)
    server.delete(now)


def test_what_is_not_kept_and_who_is_not_there_is_refused(talk, server):
    talk.send("control", op="seek", event_id="none")
    assert "needs the frame" in talk.wait_for("error", event_id="none")["message"]
    answer = server.http.post(f"{server.url}/v1/sessions/nobody/fork", json={})
    assert answer.status_code == 404
