"""Players who wait in line for a slot."""

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

import wm_jax as wm
from tests.serving.conftest import Server, closing_code, serving, tiny_prompts, wait_until
from wm_jax.serving.pace import SHARES
from wm_jax.serving.service import _keeper


def test_who_waits_is_told_its_place_and_plays_when_a_slot_is_free():
    with serving(*wm.tiny_world(0), tiny_prompts(), slots=1, queue=2) as server:
        first, second, third = (server.create(init={"seed": seed}) for seed in range(3))
        assert [ticket["status"] for ticket in (first, second, third)] == ["ready", "queued", "queued"]
        assert [ticket.get("queue") for ticket in (first, second)] == [
            None,
            {"type": "queue", "position": 1, "size": 1, "eta_s": None},
        ]
        refused = server.http.post(f"{server.url}/v1/sessions", json={})
        assert refused.status_code == 503 and "2 wait" in refused.json()["message"]
        with server.connect(second) as socket, server.connect(third) as behind:
            talk, last = server.talk(socket), server.talk(behind)
            talk.wait_for("queue", position=1, size=2)
            last.wait_for("queue", position=2, size=2)
            talk.wait_for("status", status="queued")
            talk.send("action", held=["ArrowUp"], event_id="early")
            assert talk.wait_for("ack", event_id="early")["applied_at_frame"] == 0
            server.delete(first)
            frames = talk.wait_for_frames(3)
            assert frames[0][0]["frame_id"] == 0 and frames[0][0]["last_event_id"] == "early"
            assert last.wait_for("queue", position=1)["eta_s"] >= 0
            server.delete(third)
            assert last.wait_for("session.ended")["reason"] == "deleted"
        states = server.http.get(f"{server.url}/v1/sessions/{second['session_id']}").json()
        assert states["status"] in ("ready", "running")


def test_a_server_that_stops_says_who_may_come_back(tmp_path: Path):
    with serving(*wm.tiny_world(0), tiny_prompts(), slots=1, queue=1, snapshots=str(tmp_path)) as server:
        player, waiter = server.create(mode="stepped"), server.create()
        with server.connect(player) as socket, server.connect(waiter) as behind:
            talk, last = server.talk(socket), server.talk(behind)
            last.wait_for("queue", position=1)
            talk.send("step", step_id=1, n=1)
            talk.wait_for_frames(1)
            server.stop()
            for one, may in ((talk, True), (last, False)):
                assert one.wait_for("session.go_away")["resumable"] == may
                assert one.wait_for("session.ended")["resumable"] == may


@pytest.fixture
def keeping(server: Server, tmp_path: Path) -> Iterator[Server]:
    """The same server as if it had been started with `--snapshots`."""
    service = server.service
    config = dataclasses.replace(service.config, snapshots=str(tmp_path))
    keeper = _keeper(config, service.studio.identity, service.batcher)
    assert keeper is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "keeper", keeper)
        patch.setattr(service.lobby, "keeper", keeper)
        yield server
    keeper.close()


def let_go(server: Server) -> None:
    """As a server whose directory does not answer any more."""
    service = server.service
    assert service.loop is not None
    asyncio.run_coroutine_threadsafe(service.lobby.release(), service.loop).result(20)


def test_while_the_device_is_too_slow_new_players_wait_and_who_comes_back_does_not(keeping, monkeypatch):
    server, service, lobby = keeping, keeping.service, keeping.service.lobby
    pace = service.batcher.pace
    monkeypatch.setattr(lobby, "config", dataclasses.replace(lobby.config, queue=1))
    left = server.create()
    with server.connect(left) as socket:
        token = server.talk(socket).wait_for("session.created")["resume_token"]
    let_go(server)
    playing = server.create()

    def is_seated(**body: str) -> bool:
        ticket = server.create(**body)
        server.delete(ticket)
        return ticket["status"] == "ready"

    def status() -> str:
        return server.http.get(f"{server.url}/v1/sessions/{waiting['session_id']}").json()["status"]

    with server.connect(playing) as socket:
        talk = server.talk(socket)
        talk.wait_for_frames(1)
        pace._run(len(SHARES) - 1)
        talk.wait_for("status", fps=pace.wanted / 16)
        assert is_seated(mode="realtime"), "it costs nothing: the call steps all slots anyway"
        engine = service.batcher.engine
        # Before the sizes change: there are no such programs.
        monkeypatch.setattr(engine, "choose", lambda wanted, least=0: range(engine.slots))
        monkeypatch.setattr(engine, "size_for", lambda count: count)
        assert is_seated(mode="stepped"), "the clock waits for the others alone"
        waiting = server.create()
        assert (waiting["status"], waiting["queue"]["position"], server.free_slots()) == ("queued", 1, 1)
        refused = server.http.post(f"{server.url}/v1/sessions", json={})
        assert (refused.status_code, refused.json()["code"]) == (503, "full")
        assert "1.875 of 30 frames a second" in refused.json()["message"] and "1 wait" in refused.json()["message"]
        with server.connect(left, token) as again:
            server.talk(again).wait_for_frames(1)
        server.delete(left)
        assert (status(), server.free_slots()) == ("queued", 1), "a slot that is free again changes nothing"
        pace._run(len(SHARES) - 2)
        wait_until(lambda: status() == "ready")
        pace._run(0)
        with server.connect(waiting) as seated:
            server.talk(seated).wait_for_frames(1)


def test_what_no_other_server_can_take_up_plays_on_when_the_others_are_let_go(server, tmp_path):
    with server.connect(server.create()) as socket:
        talk = server.talk(socket)
        talk.wait_for_frames(1)
        let_go(server)
        talk.wait_for_frames(10)
        assert server.free_slots() == 1, "nothing is written here at all"


def test_a_session_of_which_nothing_is_on_the_disk_plays_on_beside_one_that_is_let_go(keeping, monkeypatch):
    written, other = (keeping.create() for _ in range(2))
    lobby = keeping.service.lobby
    # As of one that plays the real game, which cannot be copied.
    monkeypatch.setattr(lobby, "_is_elsewhere", lambda place: place.session.id == other["session_id"])
    with keeping.connect(written) as first, keeping.connect(other) as second:
        one, two = keeping.talk(first), keeping.talk(second)
        for talk in (one, two):
            talk.wait_for_frames(1)
        let_go(keeping)
        code, said = closing_code(first)
        assert (code, said[-1]["type"], said[-1]["resumable"]) == (1012, "session.ended", True)
        two.wait_for_frames(10)
        assert {message["type"] for message in two.messages} <= {"session.created", "status"}


def test_of_a_real_game_that_was_a_dream_the_dream_is_let_go(keeping, monkeypatch):
    ticket, lobby = keeping.create(), keeping.service.lobby
    place = lobby.find(ticket["session_id"])
    with keeping.connect(ticket) as socket:
        keeping.talk(socket).wait_for_frames(1)
        asyncio.run_coroutine_threadsafe(lobby._keep(place), keeping.service.loop).result(60)
        monkeypatch.setattr(lobby, "_is_elsewhere", lambda place: True)
        let_go(keeping)
        code, said = closing_code(socket)
    assert (code, said[-1]["type"], said[-1]["resumable"]) == (1012, "session.ended", True)
