"""The WebSocket half of wm.v1, spoken by a client that was written from the text of the protocol alone."""

import contextlib
import dataclasses
import itertools
import json
import time

import jax
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

import wm_jax as wm
from tests.serving.conftest import closing_code, playing_on, wait_until
from wm_jax.eval.hostile import GARBAGE
from wm_jax.serving.transport import WebSocketTransport
from wm_jax.world.step import pick_prompt

stepped = pytest.mark.parametrize("talk", [{"mode": "stepped", "media": {"codec": "raw"}}], indirect=True)


def test_the_first_message_is_session_created(talk, server):
    talk.receive()
    created = talk.messages[0]
    assert created["type"] == "session.created"
    assert created["protocol"] == {"major": 1, "minor": 0}
    assert created["session"]["model"] == "tiny" and created["session"]["width"] == 32
    assert created["capabilities"]["stepped"] is True and created["resume_token"]
    assert talk.socket.subprotocol == "wm.v1"
    talk.wait_for("status", status="running")


def test_frames_come_on_the_media_clock(even_pace, talk):
    frames = talk.wait_for_frames(40)
    heads = [head for head, _ in frames]
    first = heads[0]
    assert first["type"] == "frames" and (first["codec"], first["w"], first["h"], first["n"]) == ("jpeg", 32, 32, 1)
    assert all(sum(head["lengths"]) == len(payload) for head, payload in frames)
    assert all(later["seq"] == head["seq"] + 1 for head, later in itertools.pairwise(heads))
    assert all(later["frame_id"] > head["frame_id"] for head, later in itertools.pairwise(heads))
    assert all(abs(head["pts_ms"] - head["frame_id"] * 1000 / 30) < 0.01 for head in heads)
    assert {"queue", "step", "decode", "encode"} <= set(first["t"])


def test_an_action_is_acknowledged_with_the_frame_it_counts_in(talk):
    talk.wait_for_frames(2)
    talk.send("action", event_id="e1", held=["ArrowRight"], client_ts=123.5)
    ack = talk.wait_for("ack", event_id="e1")
    while talk.frames[-1][0].get("last_event_id") != "e1":
        talk.receive()
    head = talk.frames[-1][0]
    assert head["last_client_ts"] == 123.5
    assert head["frame_id"] >= ack["applied_at_frame"]
    before = [seen["frame_id"] for seen, _ in talk.frames if seen.get("last_event_id") != "e1"]
    assert all(frame_id < ack["applied_at_frame"] for frame_id in before)


def test_pause_stops_the_world_and_resume_goes_on_with_the_next_frame(talk, server):
    session = server.service.lobby.find(server.tickets[-1]["session_id"]).session
    talk.wait_for_frames(2)
    talk.send("control", op="pause", event_id=1)
    talk.wait_for("ack", event_id=1)
    talk.wait_for("status", status="paused")
    made = session.frames
    while talk.frames[-1][0]["frame_id"] < made - 1:
        talk.receive()  # what was under way
    time.sleep(0.3)
    talk.send("ping", event_id=2, client_ts=5.0)
    pong = talk.wait_for("pong")
    assert pong["client_ts"] == 5.0 and pong["server_ts"] > 0
    assert session.frames == made == talk.frames[-1][0]["frame_id"] + 1
    talk.send("control", op="resume", event_id=3)
    (frame,) = talk.wait_for_frames(1)
    assert made <= frame[0]["frame_id"] <= made + 1


def test_reset_with_a_seed_dreams_that_seed_again(server):
    def dream(talk_seed: int | None) -> list[bytes]:
        with server.connect(ticket) as socket:
            talk = server.talk(socket)
            if talk_seed is not None:
                talk.send("control", op="reset", seed=talk_seed, event_id="r")
                talk.wait_for("ack", event_id="r")
            talk.send("step", step_id=f"s{time.time_ns()}", n=4, actions=[[]])
            return [payload for _, payload in talk.wait_for_frames(4)]

    ticket = server.create(mode="stepped", media={"codec": "raw"}, init={"seed": 1})
    first, other, again = dream(None), dream(2), dream(1)
    assert first == again != other


@stepped
def test_stepped_mode_equals_rollout(talk, server):
    rng = np.random.default_rng(0)
    keys = rng.random((24, 4)) < 0.4
    for step in range(3):
        rows = keys[8 * step : 8 * step + 8]
        talk.send("step", step_id=step, n=8, actions=[{"raw": row.astype(float).tolist()} for row in rows])
    frames = talk.wait_for_frames(24)
    assert [head["frame_id"] for head, _ in frames] == list(range(24))
    shown = np.stack([np.frombuffer(payload, np.uint8).reshape(32, 32, 3) for _, payload in frames])
    state = wm.start(server.world, server.params, pick_prompt(server.prompts, 0), jax.random.key(0))
    _, rolled = wm.rollout(server.world, server.params, state, wm.Controls(keys[None]))
    difference = np.abs(shown.astype(int) - np.asarray(rolled)[0])
    assert difference.max() <= 1 and difference.mean() < 0.01, "a scan, and a batch, round a little differently"


def test_the_same_events_give_the_same_frames_however_fast_they_come(server):
    def play(waits: bool) -> tuple[list[bytes], list[int]]:
        with server.connect(server.create(mode="stepped", media={"codec": "raw"})) as socket:
            talk = server.talk(socket)
            for event in (
                {"kind": "step", "step_id": 1, "n": 12, "actions": [["ArrowUp"]]},
                {"kind": "control", "op": "reset", "seed": 7, "event_id": 2},
                {"kind": "action", "held": ["ArrowLeft"], "event_id": 3},
                {"kind": "step", "step_id": 4, "n": 6},
            ):
                talk.send(**event)
                if waits and event["kind"] == "step":
                    talk.wait_for_frames(event["n"])
            while len(talk.frames) < 18:
                talk.receive()
            acks = [said["applied_at_frame"] for said in talk.messages if said["type"] == "ack"]
            return [payload for _, payload in talk.frames], acks

    hasty, patient = play(waits=False), play(waits=True)
    assert hasty == patient
    assert hasty[1] == [0, 12, 12, 12]


@stepped
def test_an_action_at_a_frame_is_refused_in_stepped_mode(talk):
    talk.send("action", held=[], at=2, event_id=4)
    error = talk.wait_for("error")
    assert (error["code"], error["param"], error["event_id"]) == ("wrong_mode", "at", 4)


@stepped
def test_a_step_asked_for_twice_is_sent_twice_and_made_once(talk):
    talk.send("step", step_id="a", n=3, actions=[["ArrowLeft"]])
    first = talk.wait_for_frames(3)
    talk.send("step", step_id="a", n=3, actions=[["ArrowLeft"]])
    again = talk.wait_for_frames(3)
    assert [payload for _, payload in first] == [payload for _, payload in again]
    talk.send("step", step_id="b", n=1)
    assert talk.wait_for_frames(1)[0][0]["frame_id"] == 3


@stepped
def test_stepped_mode_never_drops_even_without_credit(talk):
    talk.acknowledges = False
    talk.send("step", step_id=1, n=40)
    time.sleep(0.5)
    frames = talk.wait_for_frames(40)
    assert [head["frame_id"] for head, _ in frames] == list(range(40))
    assert frames[-1][0]["dropped"] == 0


def test_a_stalled_client_loses_frames_which_are_counted_and_its_neighbour_none(server):
    tickets = [server.create(), server.create()]
    with server.connect(tickets[0]) as stalled, server.connect(tickets[1]) as lively:
        slow, quick = server.talk(stalled, acknowledges=False), server.talk(lively)
        slow.wait_for_frames(2)
        assert len(quick.wait_for_frames(30)) == 30
        slow.send("frame.ack", seq=1)
        head = slow.wait_for_frames(1)[0][0]
        assert head["dropped"] >= 10
        assert head["frame_id"] == head["dropped"] + head["seq"]
        assert quick.frames[-1][0]["dropped"] < head["dropped"]


@pytest.mark.parametrize(
    ("message", "code", "says"),
    [
        ("garbage", "bad_message", ""),
        (b"\x00\x01", "bad_message", "JSON"),
        ('{"type": "dance", "event_id": 4}', "unknown_type", ""),
        ('{"type": "action", "held": ["KeyQ"], "event_id": 4}', "unknown_key", "ArrowLeft"),
        ('{"type": "action", "raw": [1, 0], "event_id": 4}', "wrong_dimension", "2 numbers, this world has 4"),
        ('{"type": "step", "step_id": 4, "n": 1}', "wrong_mode", "stepped"),
        ('{"type": "frame.ack", "seq": 100000}', "bad_ack", "never sent"),
        ('{"type": "control", "op": "seek", "event_id": 4}', "bad_message", "needs the frame"),
        ('{"type": "prompt.set", "event_id": 4}', "unsupported", "prompt.set"),
    ],
)
def test_a_bad_message_gets_an_error_and_play_goes_on(talk, message, code, says):
    talk.wait_for_frames(1)
    talk.socket.send(message)
    error = talk.wait_for("error")
    assert error["code"] == code and error["fatal"] is False
    assert says in error["message"]
    assert "event_id" not in error or error["event_id"] == 4
    talk.wait_for_frames(3)


def test_a_message_nested_too_deeply_gets_an_error_and_play_goes_on(talk):
    talk.wait_for_frames(1)
    talk.socket.send("[" * 60_000)
    error = talk.wait_for("error")
    assert error["code"] == "bad_message" and error["fatal"] is False
    talk.wait_for_frames(3)


def test_a_failure_of_the_server_itself_is_told_before_the_socket_closes(server, monkeypatch):
    def fail(message) -> int:
        raise RuntimeError("a mistake of ours")

    ticket = server.create()
    monkeypatch.setattr(server.service.lobby.find(ticket["session_id"]).session, "press", fail)
    with server.connect(ticket) as socket:
        server.talk(socket).send("action", held=[])
        code, messages = closing_code(socket)
    assert code == 1011
    assert (messages[-1]["code"], messages[-1]["fatal"]) == ("server_failed", True)
    assert "mistake" not in messages[-1]["message"]


@stepped
def test_a_step_too_long_is_refused_with_the_limit(talk):
    talk.send("step", step_id=1, n=65)
    error = talk.wait_for("error")
    assert error["code"] == "step_too_long" and "65" in error["message"] and "64" in error["message"]


def test_a_client_that_says_nothing_for_long_loses_its_session(server, monkeypatch):
    lobby, ticket = server.service.lobby, server.create()
    with server.connect(ticket) as socket:
        monkeypatch.setattr(lobby, "config", dataclasses.replace(lobby.config, idle_s=0.3))
        code, messages = closing_code(socket)
    assert (code, messages[-1]["type"], messages[-1]["reason"]) == (4408, "session.ended", "idle")
    wait_until(lambda: server.free_slots() == 2)


def test_nothing_is_deflated_though_a_client_offers_it(server):
    ticket = server.create()
    protocols = [Subprotocol("wm.v1"), Subprotocol(f"wm.auth.{ticket['token']}")]
    with connect(ticket["ws_url"], subprotocols=protocols, compression="deflate") as socket:
        assert socket.request is not None and "permessage-deflate" in socket.request.headers["Sec-WebSocket-Extensions"]
        assert socket.response is not None and "Sec-WebSocket-Extensions" not in socket.response.headers


def test_nothing_but_garbage_ends_the_connection(server):
    ticket = server.create()
    with server.connect(ticket) as socket:
        for _ in range(GARBAGE):  # one more could come after the server has closed
            socket.send("garbage")
        code, messages = closing_code(socket)
    assert code == 1008
    assert messages[-1]["fatal"] is True


def test_a_flood_is_refused_then_ended_and_the_neighbour_plays_on(server):
    tickets = [server.create(), server.create()]
    place = server.service.lobby.find(tickets[0]["session_id"])
    with server.connect(tickets[0]) as flooding, server.connect(tickets[1]) as lively:
        server.talk(flooding).wait_for("session.created")
        place.connection._bucket.rate = place.connection._patience.rate = 0.01  # a flood also for a slow machine
        action = json.dumps({"type": "action", "held": []})
        with playing_on(server.talk(lively)):
            with contextlib.suppress(ConnectionClosed):
                for _ in range(5000):
                    flooding.send(action)
            code, messages = closing_code(flooding)
    assert code == 4429
    assert {message["code"] for message in messages if message["type"] == "error"} == {"rate_limited"}
    assert any("retry_after_ms" in message for message in messages if message["type"] == "error")


@pytest.mark.parametrize(
    ("role", "message"), [("player", {"kind": "action", "held": []}), ("spectator", {"kind": "ping"})]
)
def test_an_acknowledgement_is_taken_also_of_a_client_that_spoke_too_fast(server, role, message):
    ticket = server.create()
    place = server.service.lobby.find(ticket["session_id"])
    with server.connect(ticket) as played:
        seat = server.talk(played)
        seat.wait_for_frames(1)
        invited = server.http.post(f"{server.url}/v1/sessions/{ticket['session_id']}/spectators", json={}).json()
        with played if role == "player" else server.connect(invited) as socket:
            talk = seat if role == "player" else server.talk(socket)
            talk.acknowledges = False
            talk.wait_for_frames(2)  # as many as may be on their way
            connection = place.connection if role == "player" else place.spectators[0]
            connection._bucket.rate = 0.01  # a burst empties it however slow the machine is
            for _ in range(300):
                talk.send(**message)
            talk.send("frame.ack", seq=talk.frames[-1][0]["seq"])
            talk.acknowledges = True
            assert len(talk.wait_for_frames(5)) == 5
            assert [said["code"] for said in talk.messages if said["type"] == "error"] == ["rate_limited"]


def test_a_flood_of_acknowledgements_ends_the_connection(server):
    ticket = server.create()
    place = server.service.lobby.find(ticket["session_id"])
    with server.connect(ticket) as flooding:
        server.talk(flooding).wait_for_frames(1)
        place.connection._bucket.rate = place.connection._patience.rate = 0.01  # a flood also for a slow machine
        with contextlib.suppress(ConnectionClosed):
            for _ in range(5000):
                flooding.send('{"type": "frame.ack", "seq": 0}')
        assert closing_code(flooding)[0] == 4429


def test_a_message_that_is_too_long_ends_the_connection(talk):
    talk.wait_for_frames(1)
    talk.socket.send(json.dumps({"type": "action", "held": ["x" * 70_000]}))
    assert closing_code(talk.socket)[0] == 1009


@pytest.mark.parametrize("token", ["wrong", "other"])
def test_a_token_opens_its_own_session_only(server, token):
    tickets = [server.create(), server.create()]
    shown = tickets[1]["token"] if token == "other" else "nonsense"
    with server.connect(tickets[0], shown) as socket:
        code, messages = closing_code(socket)
    assert code == 4401
    assert messages[0]["code"] == "unauthorized" and messages[0]["fatal"] is True


def test_an_expired_token_is_refused(server):
    ticket = server.create()
    server.service.lobby.find(ticket["session_id"]).expires_at = time.time() - 1
    with server.connect(ticket) as socket:
        assert closing_code(socket)[0] in (4401, 4404), "its session is gone as soon as anybody looks"


def test_a_foreign_page_may_not_connect(server):
    ticket = server.create()
    with server.connect(ticket, additional_headers={"Origin": "https://evil.example"}) as socket:
        code, messages = closing_code(socket)
    assert code == 4403 and "--allow-origins" in messages[0]["message"]


def test_an_unknown_session_is_told_so(server):
    ticket = server.create()
    server.delete(ticket)
    with server.connect(ticket) as socket:
        assert closing_code(socket)[0] == 4404


def test_old_client_is_told_so(server):
    from websockets.sync.client import connect

    ticket = server.create()
    with connect(ticket["ws_url"], compression=None) as socket:
        code, messages = closing_code(socket)
    assert code == 1008 and messages[0]["code"] == "wrong_version" and "wm.v1" in messages[0]["message"]


def test_a_dropped_socket_keeps_the_world_until_it_is_resumed(server):
    ticket = server.create(linger_s=30)
    place = server.service.lobby.find(ticket["session_id"])
    with server.connect(ticket) as socket:
        talk = server.talk(socket)
        token = talk.wait_for("session.created")["resume_token"]
        last = talk.wait_for_frames(5)[-1][0]["frame_id"]
    wait_until(lambda: place.connection is None)
    made = place.session.frames
    with server.connect(ticket, token) as socket:
        (head, _), *_ = server.talk(socket).wait_for_frames(1)
    assert last < made <= head["frame_id"] < made + 30


def test_a_second_connection_takes_the_session_over(server):
    ticket = server.create()
    with server.connect(ticket) as first:
        server.talk(first).wait_for_frames(1)
        with server.connect(ticket) as second:
            server.talk(second).wait_for_frames(2)
            code, messages = closing_code(first)
    assert code == 4409 and messages[-1]["code"] == "taken_over"


def test_a_goodbye_that_fails_keeps_nobody_out(server, monkeypatch):
    def fails(*_) -> None:
        raise ValueError("as no transport should")

    ticket = server.create()
    with server.connect(ticket) as first:
        talk = server.talk(first)
        talk.wait_for_frames(1)
        talk.acknowledges = False  # what is written to a connection that is gone takes along what waits to be read
        monkeypatch.setattr(WebSocketTransport, "close", fails)
        with server.connect(ticket) as second:
            server.talk(second).wait_for_frames(2)
            talk.wait_for("error", code="taken_over")


@pytest.mark.parametrize("is_taken_up", [False, True])
def test_a_session_that_ends_while_it_is_taken_over_is_told_so(server, monkeypatch, is_taken_up):
    """Also where another connection took it up again from the disk meanwhile: it has the same name and is another one."""
    ticket = server.create()
    place = server.service.lobby.find(ticket["session_id"])
    with server.connect(ticket) as first:
        server.talk(first).wait_for_frames(1)
        finish = place.connection.finish

        def end_instead(message, code) -> None:
            server.service.lobby.end(place, "deleted")
            if is_taken_up:
                server.service.lobby._places[place.session.id] = dataclasses.replace(place, ended=None, connection=None)
            finish(message, code)

        monkeypatch.setattr(place.connection, "finish", end_instead)
        with server.connect(ticket) as second:
            code, messages = closing_code(second)
    assert code == 4404
    assert [(message["type"], message["code"]) for message in messages] == [("error", "unknown_session")]


def test_a_session_nobody_comes_back_to_ends(server):
    free = server.free_slots()
    ticket = server.create(linger_s=0)
    with server.connect(ticket) as socket:
        server.talk(socket).wait_for_frames(1)
    deadline = time.monotonic() + 10
    while server.free_slots() < free and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.free_slots() == free


def test_who_was_given_a_token_may_come_however_short_the_session_waits(server):
    lobby = server.service.lobby
    ticket = server.create(linger_s=30)
    with server.connect(ticket) as socket:
        token = server.talk(socket).wait_for("session.created")["resume_token"]
    place = lobby.find(ticket["session_id"])
    wait_until(lambda: place.connection is None)
    address = f"{server.url}/v1/sessions/{ticket['session_id']}"
    again = server.http.post(f"{address}/resume", headers={"Authorization": f"Bearer {token}"}).json()
    place.linger_s = 0.0

    def sweep() -> int:
        server.service.loop.call_soon_threadsafe(lobby._sweep, place, time.monotonic())
        return server.http.get(address).status_code

    assert sweep() == 200
    with server.connect(again) as socket:
        server.talk(socket).wait_for_frames(1)
    wait_until(lambda: sweep() == 404)  # it has come, and left


def test_deleting_a_session_tells_its_client(server):
    ticket = server.create()
    with server.connect(ticket) as socket:
        server.talk(socket).wait_for_frames(3)
        server.http.delete(f"{server.url}/v1/sessions/{ticket['session_id']}")
        code, messages = closing_code(socket)
    assert code == 1000
    assert messages[-1]["type"] == "session.ended" and messages[-1]["reason"] == "deleted"
    assert messages[-1]["frames"] >= 3


@pytest.mark.parametrize("talk", [{"source": "real"}], indirect=True)
def test_the_real_game_speaks_the_same_messages(talk):
    frames = talk.wait_for_frames(5)
    assert (frames[0][0]["w"], frames[0][0]["h"]) == (32, 32)
    talk.send("session.update", source="dream", event_id="d")
    ack = talk.wait_for("ack", event_id="d")
    talk.wait_for_frames(3)
    talk.send("session.update", source="real", event_id="r")
    assert talk.wait_for("ack", event_id="r")["applied_at_frame"] > ack["applied_at_frame"]
    talk.wait_for_frames(3)


@pytest.mark.parametrize("talk", [{"media": {"max_fps": 10}}], indirect=True)
def test_a_client_may_ask_for_fewer_frames(talk):
    heads = [head for head, _ in talk.wait_for_frames(5)]
    assert all(head["frame_id"] == 3 * (head["dropped"] + head["seq"]) for head in heads)
