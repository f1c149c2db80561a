"""States that stay on the disk after newer ones were written: to go back to, in the same process or in another."""

import asyncio
import json
import threading

import jax
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open

import wm_jax as wm
from tests.serving.conftest import Server, Talk, serving, tiny_prompts, wait_until
from tests.serving.test_snapshots import NAME, STEPPED, a_moment, a_record, set_age, steps
from wm_jax.serving import keeper, recording, snapshots
from wm_jax.serving.history import Filed, Trail
from wm_jax.serving.protocol import Refusal
from wm_jax.serving.replay import frames_of
from wm_jax.serving.snapshots import SnapshotStore


@pytest.fixture(scope="module")
def tiny():
    return wm.tiny_world(0)


@pytest.fixture
def store(tmp_path, tiny) -> SnapshotStore:
    return SnapshotStore(tmp_path / "kept", tiny[0], "weights", 3, 1.0, 60.0)


def write(store: SnapshotStore, trail: Trail, world, frames: list[int], epoch: int = 0) -> None:
    """Saves a session before each of these frames, as the keeper does."""
    for frame in frames:
        writing = trail.next(frame)
        past = [(filed.epoch, filed.frame_id) for filed in writing.filed]
        store.save(NAME, a_record(frame_id=frame, past=past), a_moment(world, frame), epoch, writing)
        trail.follow(writing, Filed(epoch, frame))


def names(store: SnapshotStore) -> set[str]:
    return {path.name.removeprefix(NAME) for path in store._folder.iterdir()}


def test_what_was_written_before_stays_and_is_read_as_it_was(store, tiny):
    trail = Trail(2)
    write(store, trail, tiny[0], [9, 9, 20, 30, 40])
    assert trail.frames == [20, 30] and store.read(NAME).past == [(0, 20), (0, 30)]
    assert names(store) == {".safetensors", ".20.past", ".30.past"}, "the oldest made room"
    assert [trail.find(frame) for frame in (19, 29, 99)] == [None, Filed(0, 20), Filed(0, 30)]
    wanted = a_moment(tiny[0], 20).opening.memory
    assert wanted is not None
    jax.tree.map(np.testing.assert_array_equal, store.recall(NAME, Filed(0, 20)).state, wanted.state)
    with pytest.raises(Refusal, match="frame 9 of session .* is not there any more"):
        store.recall(NAME, Filed(0, 9))
    assert store.load(NAME)[1].frame_id == 40
    store.forget(NAME)
    assert not names(store)


def test_who_takes_a_session_up_takes_its_past_along_and_nobody_elses(store, tiny):
    """A server that slept may have written what never was, for the session went on elsewhere from an earlier frame."""
    write(store, Trail(4), tiny[0], [10, 20])
    epoch = store.claim(NAME)
    record = store.read(NAME)
    trail = Trail(4, [Filed(*one) for one in record.past], Filed(epoch, record.frame_id))
    (store._folder / f"{NAME}.25.past").write_bytes(b"stale")
    write(store, trail, tiny[0], [30], epoch)
    assert trail.frames == [10, 20] and names(store) == {".1.safetensors", ".10.past", ".1.20.past", ".25.past"}
    for filed in (Filed(0, 10), Filed(1, 20)):
        assert store.recall(NAME, filed) is not None
    store.forget(NAME)
    assert len(names(store)) == 4, "a server that has it no more leaves alone what is another's"
    store.forget(NAME, epoch)
    assert not names(store)


def test_the_past_makes_room_before_anything_else_and_when_it_is_old(store, tiny):
    write(store, Trail(3), tiny[0], [10, 20, 30])
    size = store.save(f"snap_{NAME}", a_record(), a_moment(tiny[0]))
    ages = {".safetensors": 5, ".20.past": 10, ".10.past": 20}
    for suffix, age in ages.items():
        set_age(store._folder / f"{NAME}{suffix}", age)
    set_age(store._folder / f"snap_{NAME}.safetensors", 40)
    (store._folder / "notes.past").write_text("not ours")
    store.max_mb = 4.5 * size / 1e6  # until the next sweep the session may leave one more
    store.sweep({NAME})
    assert names(store) == {".safetensors", ".20.past", f"snap_{NAME}.safetensors", "notes.past"}
    set_age(store._folder / f"{NAME}.20.past", 61)
    store.sweep({NAME})
    assert ".20.past" not in names(store)


def test_on_a_full_disk_the_past_makes_room_for_what_counts(store, tiny, monkeypatch):
    other = f"{NAME}-other"
    write(store, Trail(3), tiny[0], [10, 20, 30])
    store.save(other, a_record(), a_moment(tiny[0]))
    (store._folder / f"{other}.5.past").write_bytes(b"x")
    save_file = snapshots.save_file

    def full(*asked):
        if list(store._folder.glob("*.past")):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(*asked)

    def broken(*asked):
        raise SafetensorError("I/O error: Input/output error (os error 5)")

    monkeypatch.setattr(snapshots, "save_file", broken)
    with pytest.raises(OSError, match="Input/output error"):
        store.save(NAME, a_record(frame_id=40), a_moment(tiny[0], 40))
    assert len(list(store._folder.glob("*.past"))) == 3, "that disk is not full"
    monkeypatch.setattr(snapshots, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(NAME, a_record(frame_id=40), a_moment(tiny[0], 40))
    assert names(store) >= {".safetensors", "-other.5.past"} and ".20.past" not in names(store), "first its own"
    store.save(NAME, a_record(frame_id=50), a_moment(tiny[0], 50))
    assert store.load(NAME)[1].frame_id == 50 and not list(store._folder.glob("*.past"))
    monkeypatch.undo()
    store.max_mb = 1e-6
    store.sweep({NAME})
    write(store, Trail(3), tiny[0], [60, 70])
    assert not list(store._folder.glob("*.past")), "where there is no room nothing stays"


def test_an_older_version_reads_what_is_written_of_a_session(store, tiny):
    write(store, Trail(3), tiny[0], [10, 20])
    with safe_open(store._folder / f"{NAME}.safetensors", framework="numpy") as file:
        told = file.metadata()
    assert "past" not in json.loads(told["record"]) and json.loads(told["past"]) == [[0, 10]]


def save(server: Server, ticket: dict) -> None:
    lobby, loop = server.service.lobby, server.service.loop
    assert loop is not None
    assert asyncio.run_coroutine_threadsafe(lobby._keep(lobby.find(ticket["session_id"])), loop).result(20)


def seek(talk: Talk, frame: int, event_id: str) -> int:
    talk.send("control", op="seek", frame=frame, event_id=event_id)
    return talk.wait_for("ack", event_id=event_id)["restored_frame"]


def test_a_session_goes_back_to_what_is_on_the_disk_alone_and_in_another_process_too(tiny, tmp_path, monkeypatch):
    world, params = tiny
    folder = tmp_path / "kept"
    settings = dict(snapshots=str(folder), snapshot_every_s=600.0, history=2, history_every=5, history_disk=3)
    with serving(world, params, tiny_prompts(), **settings) as server:
        ticket = server.create(**STEPPED)
        url = f"{server.url}/v1/sessions/{ticket['session_id']}"
        with server.connect(ticket) as socket:
            talk = server.talk(socket)
            token, wanted = talk.wait_for("session.created")["resume_token"], []
            for number in range(4):
                wanted += steps(talk, 7, number, ["ArrowUp"])
                save(server, ticket)
            assert server.http.get(url).json()["kept"] == [7, 14, 20, 25]
            assert seek(talk, 13, "back") == 7
            assert steps(talk, 5, 5, ["ArrowUp"]) == wanted[7:12]
            fork = server.http.post(f"{url}/fork", json={"at": 15}).json()
            with server.connect(fork) as other:
                assert steps(server.talk(other), 4, 1, ["ArrowUp"]) == wanted[14:18]
            server.delete(fork)
            talk.send("control", op="seek", frame=3, event_id="older")
            assert "one can go back to 7, 14, 21, 25, 30" in talk.wait_for("error", event_id="older")["message"]
            server.stop()
            assert talk.wait_for("session.ended")["resumable"]
    with serving(world, params, tiny_prompts(), **settings) as server:
        ticket["ws_url"] = ticket["ws_url"].replace(ticket["ws_url"].split("/")[2], server.url.split("/")[2])
        with server.connect(ticket, token) as socket:
            talk = server.talk(socket)
            assert talk.wait_for("session.created")["session"]["resumed_at"] == 33
            assert seek(talk, 20, "before") == 14
            assert steps(talk, 6, 1, ["ArrowUp"]) == wanted[14:20]
            gate, recall = threading.Event(), SnapshotStore.recall

            def slow(*asked):
                assert gate.wait(20)
                return recall(*asked)

            monkeypatch.setattr(SnapshotStore, "recall", slow)
            monkeypatch.setattr(keeper, "RECALL_S", 0.05)
            talk.send("control", op="seek", frame=20, event_id="slow")
            assert talk.wait_for("error", event_id="slow")["code"] == "busy"
            gate.set()
            monkeypatch.undo()
            (folder / f"{ticket['session_id']}.21.past").write_bytes(b"broken")
            assert seek(talk, 22, "older") == 14, "what cannot be read is not there"
            for path in folder.glob("*.past"):
                path.unlink()
            talk.send("control", op="seek", frame=20, event_id="gone")
            assert "frame 20 is not kept" in talk.wait_for("error", event_id="gone")["message"]
            assert len(steps(talk, 2, 2)) == 2, "it plays on"
            place = server.service.lobby.find(ticket["session_id"])
        server.delete(ticket)
        wait_until(lambda: place.ended is not None)
    assert not list(folder.iterdir())


def test_what_was_left_at_a_new_beginning_cannot_be_gone_back_to(tiny, tmp_path):
    """It was written, and then the session went on from elsewhere: of two states before one frame a recording shows the other."""
    world, params = tiny
    settings = dict(snapshots=str(tmp_path / "kept"), snapshot_every_s=600.0, history=0)
    with serving(world, params, tiny_prompts(), **settings) as server:
        ticket = server.create(**STEPPED)
        url = f"{server.url}/v1/sessions/{ticket['session_id']}"
        with server.connect(ticket) as socket:
            talk = server.talk(socket)
            steps(talk, 7, 1, ["ArrowUp"])
            save(server, ticket)
            steps(talk, 5, 2, ["ArrowUp"])
            save(server, ticket)
            assert seek(talk, 9, "back") == 7
            steps(talk, 4, 3, ["ArrowDown"])
            save(server, ticket)
            steps(talk, 3, 4)
            save(server, ticket)
            assert server.http.get(url).json()["kept"] == [7, 16], "at 12 it went back to 7"
            assert seek(talk, 18, "again") == 16
            steps(talk, 3, 5)
            told = server.http.get(f"{url}/recording")
            (tmp_path / "recording.zip").write_bytes(told.content)
            shown = {header["frame_id"]: payload for header, payload in talk.frames}
            known = server.service.studio.identity
            info, events = recording.read(tmp_path / "recording.zip", known)

            async def again() -> list[bytes]:
                frames = frames_of(events, world.config.controls, info.fps, server.service.batcher, info.history)
                return [frame.tobytes() async for frame in frames]

            assert server.service.loop is not None
            replayed = asyncio.run_coroutine_threadsafe(again(), server.service.loop).result(60)
            assert [shown[frame] for frame in sorted(shown)] == replayed
        server.delete(ticket)
