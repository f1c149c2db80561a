"""Sockets that only watch: the player's bytes, no say, and no cost to anybody."""

import contextlib
import time

import pytest

from tests.serving.conftest import Server, Talk, closing_code


def invite(server: Server, session: dict, **body) -> dict:
    answer = server.http.post(f"{server.url}/v1/sessions/{session['session_id']}/spectators", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def wait_until(is_so) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_spectator_sees_the_players_bytes_and_nothing_of_his_own(server):
    session = server.create()
    with server.connect(session) as played, server.connect(invite(server, session)) as watched:
        player, spectator = server.talk(played), server.talk(watched)
        created = spectator.wait_for("session.created")
        assert created["role"] == "spectator" and "resume_token" not in created
        player.send("action", held=["ArrowUp"], event_id="secret", client_ts=5.0)
        both: list[tuple[bytes, bytes]] = []
        deadline = time.monotonic() + 60
        while len(both) < 8 and time.monotonic() < deadline:  # each loses some where the machine is busy
            for talk in (player, spectator) * 15:
                talk.wait_for_frames(1)
            theirs = {head["frame_id"]: data for head, data in player.frames}
            both = [(theirs[head["frame_id"]], data) for head, data in spectator.frames if head["frame_id"] in theirs]
        assert player.messages[0]["role"] == "player" and player.messages[0]["resume_token"]
        assert len(both) >= 8 and all(one == other for one, other in both)
        assert player.frames[-1][0]["last_event_id"] == "secret"
        own = {"last_event_id", "last_client_ts", "step_id"}
        assert not any(own & set(head) for head, _ in spectator.frames)
        assert any(message["type"] == "status" for message in spectator.messages)


def test_a_slow_spectator_loses_frames_and_the_player_none(server):
    session = server.create()
    with server.connect(session) as played, server.connect(invite(server, session)) as watched:
        player, slow = server.talk(played), server.talk(watched, acknowledges=False)
        player.wait_for_frames(1)
        place = server.service.lobby.find(session["session_id"])
        place.session.outbox.credit_window = 100  # or the player loses some because this test is slow to acknowledge
        slow.wait_for_frames(2)
        while player.frames[-1][0]["frame_id"] < slow.frames[-1][0]["frame_id"]:
            player.receive()
        before = player.frames[-1][0]["dropped"]
        player.wait_for_frames(30)
        lost = player.frames[-1][0]["dropped"] - before
        slow.send("frame.ack", seq=1)
        head = slow.wait_for_frames(1)[0][0]
        assert head["seq"] == 2 and head["dropped"] >= lost + 29
        assert lost <= 10, "some where the machine is busy"


@pytest.mark.parametrize("talk", [{"mode": "stepped", "media": {"codec": "raw"}}], indirect=True)
def test_a_stepped_session_is_watched_as_well(talk, server):
    session = server.tickets[-1]
    with server.connect(invite(server, session)) as watched:
        spectator = server.talk(watched)
        spectator.wait_for("status")
        for step in range(3):
            talk.send("step", step_id=step, n=1)
            assert spectator.wait_for_frames(1)[0][1] == talk.wait_for_frames(1)[0][1]
        spectator.acknowledges = False
        talk.send("step", step_id="many", n=40)
        assert len(talk.wait_for_frames(40)) == 40, "the player loses none, whoever watches"


@pytest.mark.parametrize(
    "message",
    [{"kind": "action", "held": []}, {"kind": "control", "op": "pause"}, {"kind": "step", "step_id": 4, "n": 1},
     {"kind": "session.update", "source": "real"}, {"kind": "session.snapshot"}, {"kind": "session.fork"}],
)  # fmt: skip
def test_a_spectator_has_no_say(server, message):
    session = server.create()
    with server.connect(session) as played, server.connect(invite(server, session)) as watched:
        player, spectator = server.talk(played), server.talk(watched)
        spectator.send(**message, event_id=4)
        error = spectator.wait_for("error")
        assert (error["code"], error["event_id"], error["fatal"]) == ("read_only", 4, False)
        assert message["kind"] in error["message"]
        spectator.send("ping", event_id=5)
        assert spectator.wait_for("pong")["event_id"] == 5
        player.wait_for_frames(3)
        assert server.http.get(f"{server.url}/v1/sessions/{session['session_id']}").json()["status"] == "running"


def test_so_many_may_watch(server):
    session = server.create()
    ticket, most = invite(server, session), server.service.config.spectators
    place = server.service.lobby.find(session["session_id"])
    with contextlib.ExitStack() as stack:
        for _ in range(most):
            Talk(stack.enter_context(server.connect(ticket))).wait_for("session.created")
        with server.connect(ticket) as late:
            code, messages = closing_code(late)
        assert (code, messages[0]["code"]) == (1013, "full") and str(most) in messages[0]["message"]
    wait_until(lambda: not place.spectators and not place.session.viewers)


def test_spectators_stay_while_the_session_waits_for_its_player_and_do_not_keep_it(server):
    session = server.create(linger_s=30)
    ticket = invite(server, session)
    with server.connect(ticket) as watched:
        spectator = server.talk(watched)
        with server.connect(session) as played:
            resume_token = server.talk(played).wait_for("session.created")["resume_token"]
            spectator.wait_for("status", status="running")
        spectator.wait_for("status", status="ready")
        with server.connect(session, resume_token) as played:
            Talk(played).wait_for_frames(1)
            spectator.wait_for_frames(2)
            server.service.lobby.find(session["session_id"]).linger_s = 0.1
        spectator.send("ping")
        code, messages = closing_code(watched)
    assert code == 1000
    assert (messages[-1]["type"], messages[-1]["reason"]) == ("session.ended", "connection lost")
    with server.connect(ticket) as late:
        assert closing_code(late)[0] == 4404


@pytest.mark.parametrize("of", ["another session", "nobody"])
def test_a_token_watches_its_own_session_only(server, of):
    sessions = [server.create(), server.create()]
    shown = invite(server, sessions[1])["token"] if of == "another session" else "a.b.c"
    with server.connect(sessions[0], shown) as socket:
        code, messages = closing_code(socket)
    assert code == 4401 and messages[0]["code"] == "unauthorized"
    path = f"{server.url}/v1/sessions/{sessions[0]['session_id']}/spectators"
    assert server.http.get(path, headers={"Authorization": f"Bearer {shown}"}).status_code == 401


def test_whoever_may_watch_a_session_can_ask_where_it_is(server):
    ticket = server.create()
    invited = invite(server, ticket)
    path, shown = (
        f"{server.url}/v1/sessions/{ticket['session_id']}/spectators",
        {"Authorization": f"Bearer {invited['token']}"},
    )
    assert server.http.get(path, headers=shown).json() == invited
    server.delete(ticket)
    assert server.http.get(path, headers=shown).json()["code"] == "unknown_session"


def test_of_a_video_stream_a_spectator_gets_one_of_its_own(server):
    session = server.create(media={"codec": "h264"})
    with server.connect(session) as played:
        player = server.talk(played)
        player.wait_for_frames(3)
        with server.connect(invite(server, session)) as watched:
            spectator = server.talk(watched)
            first, _ = spectator.wait_for_frames(1)[0]
            assert (first["codec"], first["key"]) == ("h264", True), (
                "it came in the middle, and can be understood at once"
            )
            player.wait_for_frames(3)
        heads = [head for head, _ in player.frames]
        assert heads[0]["key"] and not any(head["key"] for head in heads[1:]), "the player's own goes on"
