"""What outlives the process: snapshots on the disk, and sessions that come back after their server was stopped or killed."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import jax
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

import wm_jax as wm
from tests.serving.conftest import Server, Talk, closing_code, serving, tiny_prompts, wait_until
from wm_jax.client import roll_out
from wm_jax.export.programs import bare_shapes
from wm_jax.serving.config import ServeConfig, ServeConfigError
from wm_jax.serving.history import Memory, Trail
from wm_jax.serving.keeper import Keeper, Terms
from wm_jax.serving.lobby import DRAINING
from wm_jax.serving.protocol import Refusal
from wm_jax.serving.service import Service
from wm_jax.serving.session import Moment, Opening
from wm_jax.serving.snapshots import LOOKS, Record, SnapshotStore, Superseded, fingerprint

NAME = "a-name-of-sixteen-or-more"
STEPPED = {"mode": "stepped", "media": {"codec": "raw"}, "init": {"seed": 5}}


@pytest.fixture(scope="module")
def tiny():
    return wm.tiny_world(0)


@pytest.fixture
def store(tmp_path, tiny):
    return SnapshotStore(tmp_path / "kept", tiny[0], "weights", 3, 1.0, 60.0)


def set_age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def a_moment(world, frame_id: int = 9) -> Moment:
    rng = np.random.default_rng(frame_id)
    state = jax.tree.map(lambda leaf: rng.integers(0, 2, leaf.shape).astype(leaf.dtype), bare_shapes(world, 1))
    image = rng.integers(0, 255, (*world.config.image, 3), dtype=np.uint8)
    return Moment(Opening(3, 1, image, Memory(state)), frame_id, np.array([True, False, False, True]))


def a_record(**fields) -> Record:
    usual = dict(
        world="weights", session_id=NAME, resume_sha256="x", saved_at=1.0, linger_s=60.0, mode="stepped", codec="raw",
        quality=90, stride=1, seed=3, prompt=1, frame_id=9, held=[True, False, False, True], is_fork=False, stream=None,
    )  # fmt: skip
    return Record(**{**usual, **fields})


def test_a_snapshot_is_read_as_it_was_written(store, tiny):
    stream = np.random.default_rng(1).bit_generator.state
    size = store.save(NAME, a_record(stream=stream), a_moment(tiny[0]))
    record, moment = store.load(NAME)
    assert record == store.read(NAME) == a_record(stream=stream) and size > 1000
    assert (moment.frame_id, moment.opening.seed, moment.opening.prompt) == (9, 3, 1)
    jax.tree.map(np.testing.assert_array_equal, moment, a_moment(tiny[0])._replace(opening=moment.opening))
    wanted = a_moment(tiny[0]).opening
    assert moment.opening.memory is not None and wanted.memory is not None
    jax.tree.map(np.testing.assert_array_equal, moment.opening.memory.state, wanted.memory.state)
    np.testing.assert_array_equal(moment.opening.image, wanted.image)
    assert moment.opening.memory.stream == stream
    store.forget(NAME)
    with pytest.raises(Refusal, match="no such snapshot"):
        store.load(NAME)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd_and_more", "/etc/passwd/and/more", "short", "a" * 65, "with.dots.in.the.name"]
)
def test_a_name_that_leads_elsewhere_is_none(store, name):
    with pytest.raises(Refusal, match="no such snapshot"):
        store.load(name)


def test_what_is_broken_or_of_another_world_is_refused(store, tiny, tmp_path):
    store.save(NAME, a_record(), a_moment(tiny[0]))
    path = tmp_path / "kept" / f"{NAME}.safetensors"
    whole, arrays = path.read_bytes(), load_file(path)
    metadata = {"record": a_record().model_dump_json()}

    def refused(text: str) -> None:
        with pytest.raises(Refusal, match=text):
            store.load(NAME)

    path.write_bytes(whole[: len(whole) // 2])
    refused("broken")
    save_file(arrays, path)
    refused("broken")
    save_file(dict(list(arrays.items())[1:]), path, metadata)
    refused("other arrays")
    save_file({**arrays, "image": np.zeros((4000, 4000, 3), np.uint8)}, path, metadata)
    refused("other arrays")
    save_file(arrays, path, {"record": a_record(world="other").model_dump_json()})
    refused("another world")
    save_file(arrays, path, {"record": a_record(prompt=3).model_dump_json()})
    refused("ships 3")
    path.unlink()
    path.symlink_to("/dev/zero")
    refused("no such snapshot")


def test_what_is_old_or_too_much_makes_room(store, tiny, tmp_path):
    names = [f"{NAME}-{index}" for index in range(4)]
    for index, name in enumerate(names):
        size = store.save(name, a_record(), a_moment(tiny[0]))
        set_age(tmp_path / "kept" / f"{name}.safetensors", 10 - index)
    set_age(tmp_path / "kept" / f"{names[3]}.safetensors", 61)
    store.max_mb = 2.5 * size / 1e6
    store.sweep()
    assert sorted(path.stem for path in (tmp_path / "kept").iterdir()) == names[1:3]


def test_snapshots_make_room_before_sessions_do(store, tiny, tmp_path):
    kept, asked_for = f"{NAME}-old", f"snap_{NAME}"
    for name in (kept, asked_for):
        size = store.save(name, a_record(), a_moment(tiny[0]))
    set_age(tmp_path / "kept" / f"{kept}.safetensors", 30)
    store.max_mb = 1.5 * size / 1e6
    store.sweep()
    assert [path.stem for path in (tmp_path / "kept").iterdir()] == [kept]


def test_what_is_played_is_never_swept(store, tiny, tmp_path, caplog):
    """As where sessions are larger than the bound: the ones that stand still were removed, and never written again."""
    here, there = f"{NAME}-here", f"{NAME}-there"
    for name, age in ((here, 61), (there, 5), (f"{NAME}-sleeping", 20)):
        store.save(name, a_record(), a_moment(tiny[0]))
        set_age(tmp_path / "kept" / f"{name}.safetensors", age)
    store.max_mb, store.awake_s = 1e-6, 10.0
    store.sweep({here})
    assert sorted(path.stem for path in (tmp_path / "kept").iterdir()) == [here, there]
    store.sweep({here})
    warned = [said.getMessage() for said in caplog.records]
    assert len(warned) == 1 and "--snapshot-mb is 1e-06" in warned[0]
    set_age(tmp_path / "kept" / f"{there}.safetensors", 11)
    store.sweep()
    assert not list((tmp_path / "kept").iterdir()), "its server writes it no more"


def test_sessions_that_do_not_fit_on_the_disk_are_not_begun(tiny, tmp_path):
    world, params = tiny
    config = ServeConfig(slots=3, ladder=False, snapshots=str(tmp_path / "kept"), snapshot_mb=0.01)
    with pytest.raises(ServeConfigError, match=r"3 slots of them 1 MB, and snapshot_mb is 0.01: pass --snapshot-mb 1"):
        Service(config, world, params, tiny_prompts())
    assert not (tmp_path / "kept").exists()


def test_what_is_taken_up_while_it_is_opened_is_found(store, tiny, monkeypatch):
    store.save(NAME, a_record(), a_moment(tiny[0]))
    assert store.claim(NAME) == 1
    seen = iter([0, 0, 1])
    monkeypatch.setattr(store, "_newest", lambda name: next(seen))
    assert store.read(NAME).frame_id == 9


def test_a_sweep_leaves_strange_files_alone_and_does_not_mind_what_is_gone(store, tiny, tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    (folder / "model.safetensors").write_bytes(b"somebody's")
    for name in (NAME, f"{NAME}-2"):
        store.save(name, a_record(), a_moment(tiny[0]))
    listed = list(folder.glob("*.safetensors"))
    store.forget(NAME)  # as its session ends while the sweep goes through what it listed
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(listed))
    store.max_mb = 1e-6
    store.sweep()
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]


def test_a_save_that_fails_leaves_the_one_before_it(store, tiny, monkeypatch):
    store.save(NAME, a_record(), a_moment(tiny[0]))

    def fails(*arguments):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("wm_jax.serving.snapshots.save_file", fails)
    with pytest.raises(OSError, match="No space"):
        store.save(NAME, a_record(frame_id=10), a_moment(tiny[0], 10))
    assert store.load(NAME)[0].frame_id == 9


def test_what_a_kill_left_half_written_is_removed_and_what_another_server_writes_is_not(store, tiny, tmp_path):
    abandoned, in_work = (".tmpZsDkqv", f"{NAME}.host.1.2.tmp"), (".tmpAsDkqv", f"{NAME}.host.1.3.tmp")
    for name in (*abandoned, *in_work):
        (tmp_path / "kept" / name).write_bytes(b"half")
    for name in abandoned:
        set_age(tmp_path / "kept" / name, 601)
    store.save(NAME, a_record(), a_moment(tiny[0]))
    SnapshotStore(tmp_path / "kept", tiny[0], "weights", 3, 1.0, 60.0)
    left = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert left == sorted([*in_work, f"{NAME}.safetensors"])


def test_only_the_server_that_took_a_session_up_last_writes_it(store, tiny, tmp_path):
    other = SnapshotStore(tmp_path / "kept", tiny[0], "weights", 3, 1.0, 60.0)
    store.save(NAME, a_record(), a_moment(tiny[0]))
    assert other.claim(NAME) == 1
    with pytest.raises(Superseded, match="epoch 1 is on the disk, this is 0"):
        store.save(NAME, a_record(frame_id=50), a_moment(tiny[0], 50))
    store.forget(NAME)
    assert other.load(NAME)[0].frame_id == 9
    other.save(NAME, a_record(frame_id=12), a_moment(tiny[0], 12), 1)
    # What a server wrote that had not noticed counts for nothing, and is swept away.
    (tmp_path / "kept" / f"{NAME}.safetensors").write_bytes(b"stale")
    assert store.read(NAME).frame_id == 12
    store.sweep()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [f"{NAME}.1.safetensors"]
    assert store.claim(NAME) == 2
    other.forget(NAME, 1)
    store.forget(NAME, 2)
    with pytest.raises(Refusal, match="no such snapshot"):
        store.claim(NAME)


def test_of_many_servers_that_take_a_session_up_at_once_each_gets_its_own_epoch(store, tiny):
    store.save(NAME, a_record(), a_moment(tiny[0]))
    with ThreadPoolExecutor(8) as pool:
        epochs = list(pool.map(lambda _: store.claim(NAME), range(64)))
    assert len(set(epochs)) == 64, f"two servers have the same epoch: {sorted(epochs)}"
    store.sweep()
    assert store.load(NAME)[0].frame_id == 9 and [store._newest(NAME)] == store._epochs(NAME) == [max(epochs)]


class Gate:
    """What is behind it begins once it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._opened = threading.Event()
        self.open = self._opened.set

    def before(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*arguments: Any) -> Any:
            self.reached.set()
            assert self._opened.wait(20), "the gate stayed shut"
            return work(*arguments)

        return wait


def test_what_is_written_late_is_forgotten_all_the_same(store, tiny, tmp_path, monkeypatch):
    captured: list[Future[Moment]] = []
    session: Any = SimpleNamespace(
        id=NAME, mode="stepped", codec="raw", quality=90, stride=1, opening=Opening(3), trail=Trail(0),
        writing=Trail(0).next,
    )  # fmt: skip
    gates = {name: Gate() for name in ("save", "forget")}
    for name, gate in gates.items():
        monkeypatch.setattr(store, name, gate.before(getattr(store, name)))

    async def play() -> None:
        keeper = Keeper(store, lambda _: [captured.append(Future()), captured[-1]][1])

        async def save() -> "asyncio.Task[int]":
            saving = asyncio.create_task(keeper.keep(session, Terms("token", 60.0)))
            await asyncio.sleep(0)
            return saving

        saving = await save()
        captured[-1].set_result(a_moment(tiny[0]))
        await asyncio.to_thread(gates["save"].reached.wait, 20)
        keeper.forget(NAME)
        gates["save"].open()
        assert await saving == 9 and len(list(tmp_path.glob("kept/*"))) == 1
        with pytest.raises(Refusal, match="has ended"):
            await keeper.check(NAME, "token")
        settled = asyncio.create_task(keeper.settle())
        await asyncio.sleep(0.01)
        assert not settled.done()
        gates["forget"].open()
        await asyncio.wait_for(settled, 20)
        assert not list(tmp_path.glob("kept/*"))

        saving = await save()
        keeper.forget(NAME)
        await keeper.settle()
        captured[-1].set_result(a_moment(tiny[0]))
        with pytest.raises(Refusal, match="has ended"):
            await saving
        assert not list(tmp_path.glob("kept/*")) and not (keeper._queued or keeper._over or keeper._leaving)

    asyncio.run(play())


def test_many_who_ask_for_what_is_not_there_cost_as_much_as_one(store, monkeypatch):
    keeper = Keeper(store, lambda _: Future())
    listed: list[int] = []

    def names() -> set[str]:
        listed.append(1)
        return {NAME} if len(listed) > LOOKS + 2 else set()

    monkeypatch.setattr(store, "names", names)

    async def ask() -> None:
        asked = (keeper.check(f"{NAME}-{index}", "any") for index in range(200))
        refused = await asyncio.gather(*asked, return_exceptions=True)
        assert {getattr(one, "code", one) for one in refused} == {"unknown_session"} and len(listed) == LOOKS
        # Somebody takes it up while the folder is listed: the third time it is seen, and looked at.
        with pytest.raises(Refusal, match="no such snapshot"):
            await keeper.check(NAME, "any")
        assert len(listed) == LOOKS + 3

    asyncio.run(ask())


def test_other_weights_and_other_worlds_have_another_fingerprint(tiny):
    world, params = tiny
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    known = {fingerprint(world, params), fingerprint(world, other), fingerprint(wm.tiny_world(0)[0], params)}
    assert len(known) == 2 and fingerprint(world, params) in known


def steps(talk: Talk, count: int, step_id: int, held=()) -> list[bytes]:
    talk.send("step", step_id=step_id, n=count, actions=[{"held": list(held)}])
    return [payload for _, payload in talk.wait_for_frames(count)]


def test_a_session_comes_back_after_the_server_was_stopped(tiny, tmp_path):
    world, params = tiny
    settings = dict(snapshots=str(tmp_path / "kept"), snapshot_every_s=600.0)
    with serving(world, params, tiny_prompts(), **settings) as server:
        alone = server.create(**STEPPED)
        with server.connect(alone) as socket:
            wanted = steps(server.talk(socket), 9, 1, ["ArrowUp"])
        server.delete(alone)
        token = server.http.post(f"{server.url}/v1/tokens", json={"max_session_s": 600}).json()["token"]
        shown = {"Authorization": f"Bearer {token}"}
        ticket = server.http.post(f"{server.url}/v1/sessions", json=STEPPED, headers=shown).json()
        terms = server.service.lobby.find(ticket["session_id"])
        watching = server.http.post(f"{server.url}/v1/sessions/{ticket['session_id']}/spectators").json()
        with server.connect(ticket) as socket, server.connect(watching) as watched:
            talk = server.talk(socket)
            created = talk.wait_for("session.created")
            assert created["capabilities"]["snapshot"] and "resumed_at" not in created["session"]
            assert steps(talk, 4, 1, ["ArrowUp"]) == wanted[:4]
            server.stop()
            talk.wait_for("session.go_away", resumable=True)
            assert talk.wait_for("session.ended")["resumable"]
            code, seen = closing_code(watched)
            assert code == 1012 and seen[-1]["type"] == "session.ended"
            assert "session.go_away" in [message["type"] for message in seen]
            assert created["resume_token"] not in str(seen)
    assert [path.stem for path in (tmp_path / "kept").iterdir()] == [ticket["session_id"]]
    with serving(world, params, tiny_prompts(), **settings) as server:
        ticket["ws_url"] = ticket["ws_url"].replace(ticket["ws_url"].split("/")[2], server.url.split("/")[2])
        with server.connect(ticket) as socket:
            refused = server.talk(socket).wait_for("error")
            assert refused["code"] == "unauthorized" and refused["fatal"]
        with server.connect(ticket, created["resume_token"]) as socket:
            talk = server.talk(socket)
            again = talk.wait_for("session.created")
            assert (again["session"]["id"], again["session"]["resumed_at"]) == (ticket["session_id"], 4)
            back = server.service.lobby.find(ticket["session_id"])
            assert back.permit is not None and (back.permit, back.ends_at) == (terms.permit, terms.ends_at)
            talk.send("step", step_id=2, n=5)
            assert [payload for _, payload in talk.wait_for_frames(5)] == wanted[4:], (
                "the keys that were held still are"
            )
            assert [header["frame_id"] for header, _ in talk.frames] == list(range(4, 9))
            talk.send("control", op="reset", event_id="anew")
            talk.wait_for("ack", event_id="anew")
            assert steps(talk, 3, 3, ["ArrowUp"]) == wanted[:3]
        server.delete({"session_id": ticket["session_id"]})
        with server.connect(ticket, created["resume_token"]) as socket:
            assert server.talk(socket).wait_for("error")["code"] == "unknown_session"
    assert not list((tmp_path / "kept").iterdir()), "who has left is forgotten"


def test_a_disk_that_fails_costs_no_session_what_was_written_before(tiny, tmp_path, monkeypatch):
    world, params = tiny
    settings = dict(snapshots=str(tmp_path / "kept"), snapshot_every_s=0.05)
    with serving(world, params, tiny_prompts(), **settings) as server:
        ticket = server.create(**STEPPED)
        path = tmp_path / "kept" / f"{ticket['session_id']}.safetensors"
        with server.connect(ticket) as socket:
            talk = server.talk(socket)
            steps(talk, 3, 1)
            wait_until(path.exists)

            def fails(*arguments):
                raise SafetensorError("I/O error: No space left on device (os error 28)")

            monkeypatch.setattr("wm_jax.serving.snapshots.save_file", fails)
            steps(talk, 3, 2)
            talk.send("session.snapshot", event_id="full")
            assert talk.wait_for("error", event_id="full")["code"] == "busy"
            server.stop()
            assert talk.wait_for("session.ended")["resumable"]
    assert path.exists() and not list((tmp_path / "kept").glob("*.tmp"))


def test_a_session_that_was_taken_up_is_not_lost_before_its_client_can_come(server):
    """It would be forgotten on the disk as well."""
    lobby = server.service.lobby

    async def take_up() -> None:
        place = lobby.resume(a_record(linger_s=0.0), a_moment(server.world), "token", 1)
        lobby._sweep(place, time.monotonic() + lobby.config.token_s - 1)
        assert place.ended is None
        lobby._sweep(place, time.monotonic() + lobby.config.token_s + 1)
        assert place.ended == "connection lost"

    asyncio.run_coroutine_threadsafe(take_up(), server.service.loop).result(20)


def test_a_snapshot_starts_any_number_of_sessions(tiny, tmp_path):
    world, params = tiny
    with serving(world, params, tiny_prompts(), snapshots=str(tmp_path)) as server:
        ticket = server.create(**STEPPED)
        with server.connect(ticket) as socket:
            talk = server.talk(socket)
            steps(talk, 3, 1)
            talk.send("session.snapshot", event_id="keep")
            told = talk.wait_for("session.snapshotted", event_id="keep")
            answer = server.http.post(f"{server.url}/v1/sessions/{ticket['session_id']}/snapshot").json()
            assert told["frame_id"] == answer["frame_id"] == 3 and told["snapshot"] != answer["snapshot"]
            wanted = steps(talk, 4, 2)
        server.delete(ticket)
        for name in (told["snapshot"], told["snapshot"], answer["snapshot"]):
            other = server.create(mode="stepped", media={"codec": "raw"}, init={"snapshot": name})
            with server.connect(other) as socket:
                assert steps(server.talk(socket), 4, 1) == wanted
            server.delete(other)
        # A session's own file is its own client's alone.
        for name in (ticket["session_id"], "snap_" + "a" * 24, "../../../../etc/passwd"):
            refused = server.http.post(f"{server.url}/v1/sessions", json={"init": {"snapshot": name}})
            assert (refused.status_code, refused.json()["code"]) == (404, "unknown_snapshot")


@pytest.fixture(scope="module")
def keeping(tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that writes its sessions all the time."""
    world, params = tiny
    folder = tmp_path_factory.mktemp("kept")
    with serving(world, params, tiny_prompts(), snapshots=str(folder), snapshot_every_s=0.05) as server:
        yield server


def file_of(server: Server, ticket: dict[str, Any]) -> Path:
    assert server.service.config.snapshots is not None
    return Path(server.service.config.snapshots) / f"{ticket['session_id']}.safetensors"


def put_to_sleep(server: Server) -> tuple[str, str]:
    """A session that is on the disk alone, and its token."""
    ticket = server.create(**STEPPED)
    with server.connect(ticket) as socket:
        token = server.talk(socket).wait_for("session.created")["resume_token"]
        steps(server.talk(socket), 2, 1)
        lobby, loop = server.service.lobby, server.service.loop
        assert loop is not None
        place = lobby.find(ticket["session_id"])
        assert asyncio.run_coroutine_threadsafe(lobby._keep(place), loop).result(20)
        loop.call_soon_threadsafe(lobby.end, place, DRAINING)
        closing_code(socket)
    return ticket["session_id"], token


def resume(server: Server, session_id: str, token: str) -> httpx.Response:
    shown = {"Authorization": f"Bearer {token}"}
    return httpx.post(f"{server.url}/v1/sessions/{session_id}/resume", headers=shown, timeout=20)


def test_a_session_that_stands_still_is_written_again_when_its_file_is_gone(keeping):
    ticket = keeping.create(**STEPPED)
    with keeping.connect(ticket) as socket:
        steps(keeping.talk(socket), 3, 1)
        place = keeping.service.lobby.find(ticket["session_id"])
        wait_until(lambda: place.kept_at == place.session.frames)
        file_of(keeping, ticket).unlink()
        wait_until(file_of(keeping, ticket).exists)
    keeping.delete(ticket)


def test_a_new_beginning_is_written_before_its_first_frame(keeping):
    """Else whoever takes it up would go on with the old dream."""
    ticket = keeping.create(**STEPPED)
    with keeping.connect(ticket) as socket:
        talk = keeping.talk(socket)
        steps(talk, 3, 1)
        place = keeping.service.lobby.find(ticket["session_id"])
        wait_until(lambda: place.kept_at == place.session.frames)
        talk.send("control", op="reset", seed=77)

        def seed() -> int:
            with safe_open(file_of(keeping, ticket), framework="numpy") as file:
                return json.loads(file.metadata()["record"])["seed"]

        wait_until(lambda: seed() == 77)
    keeping.delete(ticket)


def test_nobody_stands_in_the_way_of_who_comes_back(keeping, monkeypatch):
    """A stranger's guess at one session's token waits for the disk; another session is taken up meanwhile, once for all who ask."""
    (slow, slows), (quick, token) = put_to_sleep(keeping), put_to_sleep(keeping)
    store = keeping.service.keeper._store
    read, gate = store.read, Gate()
    waits = gate.before(read)
    monkeypatch.setattr(store, "read", lambda name: (waits if name == slow else read)(name))
    with ThreadPoolExecutor(5) as pool:
        strangers = pool.submit(resume, keeping, slow, "guessed")
        try:
            assert gate.reached.wait(20)
            answers = [*pool.map(lambda _: resume(keeping, quick, token), range(4))]
        finally:
            gate.open()
        assert [answer.status_code for answer in answers] == [200] * 4
        assert strangers.result(20).json()["code"] == "unauthorized"
    assert keeping.service.lobby.find(quick).epoch == 1 and not keeping.service._returning
    assert resume(keeping, slow, slows).status_code == 200
    for session_id in (quick, slow):
        keeping.delete({"session_id": session_id})


def test_a_rollout_loads_what_its_scripts_begin_with_once_and_only_where_there_is_room(keeping, monkeypatch):
    store, loaded = keeping.service.keeper._store, []
    load = store.load
    monkeypatch.setattr(store, "load", lambda name: [loaded.append(name), load(name)][1])
    ticket = keeping.create(**STEPPED)
    with keeping.connect(ticket) as socket:
        talk = keeping.talk(socket)
        steps(talk, 3, 1)
        name = keeping.http.post(f"{keeping.url}/v1/sessions/{ticket['session_id']}/snapshot").json()["snapshot"]
        wanted = steps(talk, 4, 2)
    keeping.delete(ticket)
    scripts = [{"frames": 4, "init": {"snapshot": name}}] * 3
    large = [{"frames": 9000, "init": {"snapshot": name}}] * 3
    refused = keeping.http.post(f"{keeping.url}/v1/rollouts", json={"scripts": large})
    assert (refused.status_code, loaded) == (413, [])
    for frames in roll_out(keeping.url, scripts):
        assert [frame.tobytes() for frame in frames] == wanted
    assert loaded == [name]


def test_a_disk_that_hangs_holds_up_no_frame_and_nobody_who_leaves(tiny, tmp_path, monkeypatch):
    marking, forgetting = Gate(), Gate()
    world, params = tiny
    with serving(world, params, tiny_prompts(), snapshots=str(tmp_path), snapshot_every_s=0.05) as server:
        assert server.service.keeper is not None
        store, device = server.service.keeper._store, server.service.batcher._device
        leaving, staying = server.create(**STEPPED), server.create(**STEPPED)
        with server.connect(leaving) as socket, server.connect(staying) as other:
            token = server.talk(socket).wait_for("session.created")["resume_token"]
            steps(server.talk(socket), 2, 1)
            talk = server.talk(other)
            steps(talk, 2, 1)
            wait_until(lambda: all(file_of(server, ticket).exists() for ticket in (leaving, staying)))
            monkeypatch.setattr(store, "forget", forgetting.before(store.forget))
            monkeypatch.setattr(store, "touch", marking.before(store.touch))
            try:
                assert marking.reached.wait(20)
                steps(talk, 3, 2)
                server.delete(leaving)
                marking.open()
                assert forgetting.reached.wait(20)
                steps(talk, 3, 3)
                assert resume(server, leaving["session_id"], token).json()["code"] == "unknown_session"
                server.delete(staying)
                assert file_of(server, leaving).exists() and file_of(server, staying).exists()
                server.stop()
                time.sleep(0.5)
                assert device.is_alive(), "a drain waits until nothing is left on the disk of those who left"
            finally:
                marking.open()
                forgetting.open()
    assert not device.is_alive() and not list(tmp_path.iterdir())


def test_a_server_without_a_folder_keeps_none(server, talk):
    assert not talk.wait_for("session.created")["capabilities"]["snapshot"]
    talk.send("session.snapshot", event_id="keep")
    assert "--snapshots" in talk.wait_for("error", event_id="keep")["message"]
    refused = server.http.post(f"{server.url}/v1/sessions", json={"init": {"snapshot": "snap_" + "a" * 24}})
    assert refused.json()["code"] == "unsupported"


class Killable:
    """`serve.py` as a process of its own, on the same port whenever it is started anew."""

    def __init__(self, root: Path, world: Path, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
        options = ["--port", port, "--slots", 2, "--snapshots", folder, "--snapshot-every-s", 0.2, "--cache-dir", cache]
        self._command, self._root = [str(word) for word in (sys.executable, "serve.py", world, *options)], root
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=self._root)
        while True:
            assert self._process.poll() is None, "the server ended"
            try:
                answer = httpx.get(f"{self.url}/readyz").json()
                if answer["status"] == "failed":
                    self.kill()
                    raise AssertionError(answer)
                if answer["ready"]:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def playing(ticket: dict, token: str) -> Iterator[Talk]:
    protocols = [Subprotocol("wm.v1"), Subprotocol(f"wm.auth.{token}")]
    with connect(ticket["ws_url"], subprotocols=protocols, compression=None) as socket:
        yield Talk(socket)


def note(seen: dict[int, bytes], frames: list[tuple[dict, bytes]]) -> None:
    """Frames as they were given; one that is made twice is the same."""
    for header, payload in frames:
        assert seen.setdefault(header["frame_id"], payload) == payload, header["frame_id"]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.full)])
def test_killed_at_any_moment_it_goes_on_where_it_was_last_written(world_folder, root, tmp_path, free_port, kills):
    """A player who reconnects is told the frame it goes on with, and gets there what it would have got alone."""
    rng = np.random.default_rng(kills)
    server = Killable(root, world_folder, tmp_path / "kept", free_port)
    seen: dict[int, bytes] = {}
    try:
        ticket = httpx.post(f"{server.url}/v1/sessions", json=STEPPED).json()
        token, resumed, asked = ticket["token"], 0, 0
        for life in range(kills + 1):
            with playing(ticket, token) as talk:
                created = talk.wait_for("session.created")
                token, at = created["resume_token"], created["session"]["frames"]
                assert at == created["session"].get("resumed_at", 0) <= asked
                resumed += at > 0
                asked, until = at, time.monotonic() + rng.uniform(0.1, 1.0)
                while time.monotonic() < until:
                    talk.send("step", step_id=f"{life}-{asked}", n=3)
                    note(seen, talk.wait_for_frames(3))
                    asked += 3
                wait_until(lambda: any((tmp_path / "kept").glob(f"{ticket['session_id']}*.safetensors")))
                if life < kills:
                    talk.send("step", step_id="in flight", n=30)
                    asked += 30
                    time.sleep(rng.uniform(0.0, 0.05))
                    server.kill()
                    with pytest.raises(ConnectionClosed):
                        while True:
                            talk.receive()
                    note(seen, talk.frames)
            if life < kills:
                server.start()
        assert resumed
        other = httpx.post(f"{server.url}/v1/sessions", json=STEPPED).json()
        with playing(other, other["token"]) as talk:
            for first in range(0, max(seen) + 1, 30):
                talk.send("step", step_id=first, n=30)
                note(seen, talk.wait_for_frames(30))
    finally:
        server.kill()
