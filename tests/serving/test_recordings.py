"""What was played can be played again, to the bit: recordings of sessions, and what they refuse."""

import asyncio
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import threading
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import av
import httpx
import pytest

from tests.serving.conftest import Server, Talk, wait_until
from wm_jax.serving import recording
from wm_jax.serving.protocol import ErrorCode, Refusal
from wm_jax.serving.replay import frames_of

RAW: dict[str, Any] = {"mode": "stepped", "media": {"codec": "raw"}}


@pytest.fixture
def strict(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The same server as if it had been started to keep little, for those who know its secret."""
    service = server.service
    config = dataclasses.replace(service.config, record_frames=40, auth="secret")
    for holder in (service, service.lobby):
        monkeypatch.setattr(holder, "config", config)
    with httpx.Client(headers={"Authorization": "Bearer secret"}) as http:
        yield dataclasses.replace(server, http=http)


def download(server: Server, ticket: dict[str, Any], **query: Any) -> httpx.Response:
    return server.http.get(f"{server.url}/v1/sessions/{ticket['session_id']}/recording", params=query, timeout=60)


def unpack(answer: httpx.Response) -> tuple[dict[str, Any], list[dict[str, Any]], zipfile.ZipFile]:
    """session.json, the lines of events.jsonl, and the zip."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip" and ".zip" in answer.headers["content-disposition"]
    file = zipfile.ZipFile(io.BytesIO(answer.content))
    lines = [json.loads(line) for line in file.read("events.jsonl").splitlines()]
    return json.loads(file.read("session.json")), lines, file


def replayed(server: Server, answer: httpx.Response, tmp_path) -> list[bytes]:
    """Every frame of a recording, read from its file and made again in a slot of the same server."""
    path = tmp_path / "downloaded.zip"
    path.write_bytes(answer.content)
    known = server.service.studio.identity
    info, events = recording.read(path, known)

    async def play() -> list[bytes]:
        frames = frames_of(events, known.world.config.controls, info.fps, server.service.batcher, info.history)
        return [frame.tobytes() async for frame in frames]

    assert server.service.loop is not None
    return asyncio.run_coroutine_threadsafe(play(), server.service.loop).result(60)


def step(talk: Talk, number: int, *rows: list[str], n: int | None = None) -> list[bytes]:
    talk.send("step", step_id=number, actions=[{"held": row} for row in rows], **({} if n is None else {"n": n}))
    return [payload for _, payload in talk.wait_for_frames(n or len(rows))]


def test_a_stepped_session_is_replayed_to_the_bit(server, tmp_path):
    ticket = server.create(**RAW, init={"seed": 5})
    with server.connect(ticket) as socket:
        talk = server.talk(socket)
        live = step(talk, 1, ["ArrowUp"], ["ArrowUp", "ArrowLeft"], [], n=34)
        for number, change in enumerate(({"op": "seek", "frame": 20}, {"op": "reset"}, {"op": "reset", "seed": 9})):
            talk.send("control", event_id=f"change {number}", **change)
            live += step(talk, 2 + number, ["ArrowRight"], n=6 + number)
        for number, source in enumerate(("real", "dream")):
            talk.send("session.update", source=source)
            live += step(talk, 5 + number, ["ArrowUp"], n=3)
        answer = download(server, ticket)
    told, lines, file = unpack(answer)
    assert told["frames"] == len(live) == 61 and told["first_frame"] == 0 and not told["is_cut"]
    assert told["keys"] == list(server.world.config.controls.codes) and told["fps"] == server.world.config.fps
    begun = [line for line in lines if line["type"] == "begin"]
    begins = [(line["frame"], line["seed"], line.get("back_to")) for line in begun]
    assert begins == [(0, 5, None), (34, 5, 15), (40, 5, None), (47, 9, None), (55, 9, None), (58, 9, None)]
    assert [line["source"] for line in begun] == ["dream"] * 4 + ["real", "dream"]
    assert sorted(file.namelist()) == ["events.jsonl", "session.json", "video.mp4"]
    with av.open(io.BytesIO(file.read("video.mp4")), "r") as video:
        assert sum(1 for _ in video.decode(video=0)) == 61
    assert replayed(server, answer, tmp_path) == live
    assert told["frames_sha256"] == sha256(live)


def sha256(frames: list[bytes]) -> str:
    return hashlib.sha256(b"".join(frames)).hexdigest()


@contextlib.contextmanager
def holding(server: Server) -> Iterator[None]:
    """No frame is made for a while."""
    held, loop = server.service.batcher.holding(), server.service.loop
    assert loop is not None

    async def begin() -> None:
        held.__enter__()

    async def end() -> None:
        held.__exit__(None, None, None)

    asyncio.run_coroutine_threadsafe(begin(), loop).result(20)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(20)


def test_a_played_session_beside_a_neighbour_is_replayed_to_the_bit(server, tmp_path):
    """Taps, held keys, a reset and a way back while another one plays; then both are gone and it is made again alone."""
    ticket = server.create(media={"codec": "raw"}, init={"seed": 3, "prompt": 1})
    other = server.create(**RAW, init={"seed": 8})
    with server.connect(ticket) as socket, server.connect(other) as neighbour:
        talk, beside = server.talk(socket), server.talk(neighbour)
        step(beside, 1, ["ArrowDown"], n=40)
        talk.wait_for_frames(17)
        for held in (["ArrowUp"], ["ArrowUp", "ArrowLeft"], [], ["ArrowRight"]):
            talk.send("action", held=held)  # all between two frames: those that were let go are taps
        talk.wait_for_frames(4)
        talk.send("control", op="seek", frame=16, event_id="back")
        assert talk.wait_for("ack", event_id="back")["restored_frame"] == 15
        talk.wait_for_frames(4)
        talk.send("control", op="reset", seed=77)
        talk.wait_for_frames(4)
        talk.send("control", op="pause", event_id="stop")
        talk.wait_for("ack", event_id="stop")
        time.sleep(0.2)
        answer = download(server, ticket, video=False)
    told, lines, _ = unpack(answer)
    assert any(len(line["held"]) > 1 for line in lines if line["type"] == "frames"), "no tap was written down"
    for gone in (ticket, other):
        server.delete(gone)
    frames = replayed(server, answer, tmp_path)
    assert len(frames) == told["frames"]
    shown = {header["frame_id"]: payload for header, payload in talk.frames}
    assert len(shown) > 25 and all(frames[frame_id] == payload for frame_id, payload in shown.items())


def test_a_way_back_that_was_asked_for_long_before_it_came_is_replayed(server, tmp_path):
    """Its state is found at once, its frame comes after all steps that wait, and meanwhile the history moves on; out of
    the real game too."""
    service = server.service
    reach = service.lobby.room.depth * service.config.history_every
    assert reach < 320
    ticket = server.create(**RAW, init={"seed": 5})
    with server.connect(ticket) as socket:
        talk = server.talk(socket)
        step(talk, 1, ["ArrowUp"], ["ArrowLeft"], n=20)
        with holding(server):  # the way back is asked for before its frame is too old to be kept
            for number in range(2, 8):
                talk.send("step", step_id=number, n=50, actions=[{"held": ["ArrowRight"]}])
            talk.send("control", op="seek", frame=0, event_id="back")
            assert talk.wait_for("ack", event_id="back")["restored_frame"] == 0
        talk.send("step", step_id=8, n=9)
        talk.wait_for_frames(329 - len(talk.frames))
        talk.send("session.update", source="real")
        step(talk, 9, ["ArrowUp"], n=2)
        talk.send("session.update", source="dream")
        talk.send("control", op="seek", frame=325, event_id="again")
        assert talk.wait_for("ack", event_id="again")["restored_frame"] > 0
        step(talk, 10, ["ArrowDown"], n=3)
        answer = download(server, ticket, video=False)
    begun = [line for line in unpack(answer)[1] if line["type"] == "begin"]
    assert begun[1]["back_to"] == 0 and begun[1]["frame"] > reach and "back_to" in begun[-1]
    assert replayed(server, answer, tmp_path) == [payload for _, payload in talk.frames]


def test_a_recording_leaves_nothing_open_and_no_file(server):
    ticket = server.create(**RAW)
    url = f"{server.url}/v1/sessions/{ticket['session_id']}/recording?video=false"
    with server.connect(ticket) as socket:
        step(server.talk(socket), 1, [])
        statuses = [server.http.get(url, headers={"Range": wanted}).status_code for wanted in ("junk", "bytes=1-0")]
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(8):
            assert download(server, ticket, video=False).status_code == 200
        assert len(os.listdir("/proc/self/fd")) < before + 8
    assert all(status in (400, 416) for status in statuses), "the range was read"
    wait_until(lambda: not list(server.service.studio.folder.glob("*.zip")))  # the last goes once it was sent


def test_a_fault_of_the_server_is_no_fault_of_the_request(server, monkeypatch):
    async def fails(*_):
        raise Refusal(ErrorCode.GAME_FAILED, "a frame of the replay could not be made")

    ticket = server.create(**RAW)
    monkeypatch.setattr(server.service, "record", fails)
    refused = download(server, ticket)
    assert (refused.status_code, refused.json()["code"]) == (500, "game_failed")


def test_a_fork_is_replayed_from_what_it_began_with(server, tmp_path):
    ticket = server.create(**RAW, init={"seed": 2})
    with server.connect(ticket) as socket:
        step(server.talk(socket), 1, ["ArrowUp"], n=5)
        fork = server.http.post(f"{server.url}/v1/sessions/{ticket['session_id']}/fork").json()
    server.delete(ticket)
    with server.connect(fork) as socket:
        talk = server.talk(socket)
        live = step(talk, 1, ["ArrowLeft"], n=3)
        talk.send("control", op="reset")  # a fork begins again where it was forked
        live += step(talk, 2, [], n=3)
        answer = download(server, fork)
    _, lines, file = unpack(answer)
    begins = [line["memory"] for line in lines if line["type"] == "begin"]
    assert begins == ["memory-0.safetensors"] * 2 and begins[0] in file.namelist()
    assert replayed(server, answer, tmp_path) == live


def test_a_frame_that_was_made_twice_is_written_down_once(server, tmp_path, monkeypatch):
    engine = server.service.batcher.engine
    made, calls = engine.step, []

    def fails_once(*asked):
        calls.append(1)
        if len(calls) == 7:
            raise RuntimeError("the device had a bad moment")
        return made(*asked)

    ticket = server.create(**RAW, init={"seed": 4})
    with server.connect(ticket) as socket:
        monkeypatch.setattr(engine, "step", fails_once)
        live = step(server.talk(socket), 1, *[["ArrowUp"], []] * 10)
        monkeypatch.undo()
        answer = download(server, ticket, video=False)
    assert len(calls) > 20 and unpack(answer)[0]["frames"] == 20
    assert replayed(server, answer, tmp_path) == live


def test_a_player_who_comes_gets_the_slot_of_a_replay(server, films_go_on):
    ticket = server.create(**RAW)
    with server.connect(ticket) as socket:
        step(server.talk(socket), 1, [], n=64)
        step(server.talk(socket), 2, [], n=64)
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(download(server, ticket)))
        asking.start()
        deadline = time.monotonic() + 20
        while server.service.batcher.empty_slots and time.monotonic() < deadline:
            time.sleep(0.001)
        assert not server.service.batcher.empty_slots and server.free_slots() == 1
        other = server.create(**RAW)
        films_go_on.set()
        asking.join(30)
        refused = answers[0].json()
        assert (answers[0].status_code, refused["code"]) == (503, "full") and "?video=false" in refused["message"]
        assert download(server, ticket).json()["code"] == "full", "no slot is free"
        assert unpack(download(server, ticket, video=False))[0]["frames"] == 128
        with server.connect(other) as socket:
            assert len(step(server.talk(socket), 1, [])) == 1


def test_what_there_is_no_recording_of(server):
    assert download(server, {"session_id": "nobody"}).json()["code"] == "unknown_session"
    ticket = server.create(**RAW)
    refused = download(server, ticket)
    assert refused.json()["code"] == "busy" and "no frame" in refused.json()["message"]


def test_a_long_session_is_recorded_from_a_state_that_it_kept(strict, tmp_path):
    ticket = strict.create(**RAW, init={"seed": 6})
    with strict.connect(ticket) as socket:
        talk = strict.talk(socket)
        live = step(talk, 1, ["ArrowUp"], ["ArrowLeft"], [], n=64)
        live += step(talk, 2, ["ArrowDown"], n=17)
        answer = download(strict, ticket)
    strict.delete(ticket)
    told, lines, _ = unpack(answer)
    assert told["is_cut"] and 20 <= told["frames"] <= 40 and told["first_frame"] + told["frames"] == 81
    assert lines[0]["memory"] == "memory-0.safetensors" and lines[0]["frame"] == told["first_frame"]
    assert replayed(strict, answer, tmp_path) == live[told["first_frame"] :]


def test_a_recording_is_its_sessions_alone(strict):
    ticket = strict.create(**RAW)
    with strict.connect(ticket) as socket:
        talk = strict.talk(socket)
        resume_token = talk.wait_for("session.created")["resume_token"]
        step(talk, 1, [])
        for token, code in (("none", 401), (ticket["session_id"], 401), (resume_token, 200), ("secret", 200)):
            url = f"{strict.url}/v1/sessions/{ticket['session_id']}/recording?video=false"
            assert httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code == code
    strict.delete(ticket)
