"""A gateway before two real servers that share a folder of snapshots; the directory is a plain object, there is no Ray."""

import asyncio
import contextlib
import dataclasses
import io
import itertools
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import uvicorn
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_socket
from websockets.typing import Subprotocol

import wm_jax as wm
from tests.serving.conftest import Server, Talk, serving, tiny_prompts
from wm_jax.client import ServerError, connect, open_session, roll_out
from wm_jax.rest import socket_url
from wm_jax.scale import gateway as gateway_module
from wm_jax.scale.config import ScaleConfig
from wm_jax.scale.directory import Directory
from wm_jax.scale.gateway import make_gateway
from wm_jax.scale.heart import DirectoryLost, Heart
from wm_jax.serving.config import ServeConfig
from wm_jax.serving.server import bind

LEASE_S = 4.0  # a busy machine may hold a beat up for seconds
STEPPED = {"mode": "stepped", "media": {"codec": "raw"}, "init": {"seed": 5}, "linger_s": 60}
NAMES = itertools.count()


class Cluster:
    """Servers with hearts that a test may cut off, a directory, and the URL of a gateway before them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.servers: dict[str, Server] = {}
        self.cut_off: set[str] = set()
        self._directory = Directory(LEASE_S)
        self._lock = threading.Lock()
        self.http = httpx.Client(timeout=30)

    def tell(self, method: str, *arguments: Any) -> Any:
        with self._lock:
            return getattr(self._directory, method)(*arguments)

    async def ask(self, method: str, *arguments: Any) -> Any:
        return self.tell(method, *arguments)

    def beat(self, report: Any) -> Any:
        if report.replica in self.cut_off:
            raise DirectoryLost("cut off")
        return self.tell("beat", report)

    @contextlib.contextmanager
    def replica(self, **settings: Any) -> Iterator[str]:
        """One server more, with its heart."""
        name = f"replica-{next(NAMES)}"
        usual = dict(
            snapshots=str(self.folder), snapshot_every_s=600.0, resume_url="http://gate", allow_origins=(self.url,)
        )
        with serving(*wm.tiny_world(0), tiny_prompts(), **{**usual, **settings}) as server:
            identity = (name, server.url, "here", 1)
            heart = Heart(identity, server.service, self.beat, server.stop, beat_s=0.05, lease_s=LEASE_S)
            heart.start()
            self.servers[name] = server
            wait_until(lambda: name in {known.beat.replica for known in self.tell("replicas")})
            try:
                yield name
            finally:
                heart.stop()
                self.tell("leave", name)
                del self.servers[name]

    def owner(self, session_id: str) -> str | None:
        found = self.tell("find", session_id)
        return None if found is None or found.address is None else found.address.replica

    def create(self, **fields: Any) -> dict[str, Any]:
        answer = self.http.post(f"{self.url}/v1/sessions", json={**STEPPED, **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def resume(self, session_id: str, token: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return self.http.post(f"{self.url}/v1/sessions/{session_id}/resume", headers=headers)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline, "waited for 20 s"
        time.sleep(0.01)


@contextlib.contextmanager
def gateway(cluster: Cluster, **settings: Any) -> Iterator[str]:
    """A gateway that listens, before these servers."""
    scale = ScaleConfig(**{name: settings.pop(name) for name in ("media_url", "is_proxied") if name in settings})
    config = ServeConfig(port=0, **settings)
    with bind(config) as sock:
        app = make_gateway(config, cluster.ask, scale)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One gateway for all tests here."""
    made = Cluster(tmp_path_factory.mktemp("kept"))
    with gateway(made) as made.url, made.http:
        yield made


@pytest.fixture
def cluster(whole: Cluster) -> Iterator[Cluster]:
    wait_until(lambda: set(whole.servers) <= {known.beat.replica for known in whole.tell("replicas")})
    yield whole
    whole.cut_off.clear()
    for server in whole.servers.values():
        for session_id in list(server.service.lobby._places):
            server.http.delete(f"{server.url}/v1/sessions/{session_id}")
    assert not list(whole.folder.glob("*.tmp"))


@pytest.fixture(scope="module")
def pair(whole: Cluster) -> Iterator[tuple[str, str]]:
    """Two servers of two slots."""
    with whole.replica() as first, whole.replica() as second:
        yield first, second


@contextlib.contextmanager
def playing(ticket: dict[str, Any], **options: Any) -> Iterator[Talk]:
    protocols = [Subprotocol("wm.v1"), Subprotocol("wm.auth." + ticket["token"])]
    with connect_socket(ticket["ws_url"], subprotocols=protocols, compression=None, **options) as socket:
        yield Talk(socket)


def steps(talk: Talk, count: int, step_id: int) -> list[tuple[int, bytes]]:
    talk.send("step", step_id=step_id, n=count, actions=[{"held": ["ArrowUp"]}])
    return [(header["frame_id"], payload) for header, payload in talk.wait_for_frames(count)]


def test_players_are_spread_and_each_talks_to_its_own_server(cluster, pair):
    tickets = [cluster.create() for _ in range(4)]
    hosts = [ticket["ws_url"].split("/")[2] for ticket in tickets]
    assert sorted(map(hosts.count, set(hosts))) == [2, 2]
    assert {f"http://{host}" for host in hosts} == {cluster.servers[name].url for name in pair}
    full = cluster.http.post(f"{cluster.url}/v1/sessions", json=STEPPED)
    assert (full.status_code, full.json()["code"]) == (503, "full") and int(full.headers["Retry-After"]) > 0
    for ticket in tickets:
        address = f"{cluster.url}/v1/sessions/{ticket['session_id']}"
        assert cluster.http.get(address).json()["session_id"] == ticket["session_id"]
        assert cluster.http.delete(address).json()["status"] == "ended"
    wait_until(lambda: cluster.tell("sessions") == {})


def test_who_comes_back_finds_the_session_where_it_was(cluster, pair):
    ticket = cluster.create()
    with playing(ticket) as talk:
        token = talk.wait_for("session.created")["resume_token"]
        first = steps(talk, 4, 1)
    assert cluster.resume(ticket["session_id"], "another").status_code == 401
    for _ in range(3):
        again = cluster.resume(ticket["session_id"], token).json()
        assert again["ws_url"] == ticket["ws_url"] and again["token"] != token
        with playing(again) as talk:
            assert "resumed_at" not in talk.wait_for("session.created")["session"]
            assert steps(talk, 4, 1) == first, "a step asked for twice is made once"


def test_forks_and_snapshots_go_through_the_gateway(cluster, pair):
    ticket = cluster.create()
    address = f"{cluster.url}/v1/sessions/{ticket['session_id']}"
    with playing(ticket) as talk:
        steps(talk, 2, 1)
        kept = cluster.http.post(f"{address}/snapshot").json()
        fork = cluster.http.post(f"{address}/fork", json={})
        wanted = steps(talk, 3, 2)
    assert fork.status_code == 201 and cluster.owner(fork.json()["session_id"]) == cluster.owner(ticket["session_id"])
    # A snapshot starts a session on any server: they share the folder.
    for _ in range(2):
        other = cluster.create(init={"snapshot": kept["snapshot"]})
        with playing(other) as talk:
            assert [pixels for _, pixels in steps(talk, 3, 1)] == [pixels for _, pixels in wanted]


def test_one_who_is_cut_off_lets_its_sessions_go_and_another_takes_them_up(cluster, pair):
    ticket = cluster.create()
    owner = cluster.owner(ticket["session_id"])
    with playing(ticket) as talk:
        token = talk.wait_for("session.created")["resume_token"]
        steps(talk, 6, 1)
        cluster.cut_off.add(owner)
        with pytest.raises(ConnectionClosed) as closed:
            talk.wait_for("nothing")
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
        assert talk.messages[-1]["type"] == "session.ended" and talk.messages[-1]["resumable"]
    wait_until(lambda: cluster.owner(ticket["session_id"]) is None)
    again = cluster.resume(ticket["session_id"], token).json()
    assert again["ws_url"] != ticket["ws_url"]
    with playing(again) as talk:
        assert talk.wait_for("session.created")["session"]["resumed_at"] == 6, "it was written before it was let go"
        assert [frame for frame, _ in steps(talk, 2, 2)] == [6, 7]
        # The one that was cut off knows nothing of it when it is back.
        cluster.cut_off.clear()
        wait_until(lambda: len(cluster.tell("replicas")) == 2)
        assert cluster.owner(ticket["session_id"]) not in (None, owner)
    assert [path.name for path in cluster.folder.glob(f"{ticket['session_id']}*")] == [
        f"{ticket['session_id']}.1.safetensors"
    ]


def test_what_cannot_be_written_is_not_let_go_until_it_can(cluster, pair, monkeypatch):
    ticket = cluster.create()
    owner = cluster.owner(ticket["session_id"])
    tried: list[str] = []

    def fails(name: str, *_: Any) -> int:
        tried.append(name)
        raise OSError("the disk is full")

    with playing(ticket) as talk, monkeypatch.context() as broken:
        broken.setattr(cluster.servers[owner].service.keeper._store, "save", fails)
        steps(talk, 3, 1)
        cluster.cut_off.add(owner)
        wait_until(lambda: len(tried) >= 2)
        assert [frame for frame, _ in steps(talk, 3, 2)] == [3, 4, 5], "it plays on between two attempts"
        broken.undo()
        with pytest.raises(ConnectionClosed):
            talk.wait_for("nothing")
        last = talk.messages[-1]
        assert (last["type"], last["resumable"], last["frames"]) == ("session.ended", True, 6)
    assert set(tried) == {ticket["session_id"]}


def test_of_two_owners_the_older_one_stops_and_writes_nothing(cluster, pair):
    """As if a server had slept for longer than its lease: another has the session when it wakes."""
    ticket = cluster.create()
    first, second = (
        cluster.servers[name] for name in sorted(pair, key=lambda n: n != cluster.owner(ticket["session_id"]))
    )
    with playing(ticket) as old:
        token = old.wait_for("session.created")["resume_token"]
        steps(old, 3, 1)
        assert first.service.loop is not None
        place = first.service.lobby.find(ticket["session_id"])
        asyncio.run_coroutine_threadsafe(first.service.lobby._keep(place), first.service.loop).result(20)
        taken = second.http.post(
            f"{second.url}/v1/sessions/{ticket['session_id']}/resume", headers={"Authorization": f"Bearer {token}"}
        ).json()
        with playing(taken) as new:
            assert new.wait_for("session.created")["session"]["resumed_at"] == 3
            with pytest.raises(ConnectionClosed) as closed:
                old.wait_for("nothing")
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 4409
            assert [frame for frame, _ in steps(new, 2, 2)] == [3, 4]
    wait_until(lambda: first.service.lobby.get(ticket["session_id"]) is None)
    assert [path.name for path in cluster.folder.glob(f"{ticket['session_id']}*")] == [
        f"{ticket['session_id']}.1.safetensors"
    ]


def test_what_is_written_by_one_that_has_not_noticed_ends_its_session_and_counts_for_nothing(cluster, pair):
    ticket = cluster.create()
    first = cluster.servers[cluster.owner(ticket["session_id"]) or ""]
    assert first.service.keeper is not None and first.service.loop is not None
    lobby, place = first.service.lobby, first.service.lobby.find(ticket["session_id"])
    with playing(ticket) as talk:
        steps(talk, 3, 1)
        asyncio.run_coroutine_threadsafe(lobby._keep(place), first.service.loop).result(20)
        (cluster.folder / f"{place.session.id}.safetensors").rename(
            cluster.folder / f"{place.session.id}.4.safetensors"
        )
        steps(talk, 3, 2)
        asyncio.run_coroutine_threadsafe(lobby._keep(place), first.service.loop).result(20)
        with pytest.raises(ConnectionClosed) as closed:
            talk.wait_for("nothing")
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 4409
    assert [path.name for path in cluster.folder.glob(f"{place.session.id}*")] == [f"{place.session.id}.4.safetensors"]


def test_a_script_goes_on_with_the_same_frames_when_its_server_is_drained(cluster, pair):
    with connect(cluster.url, seed=9, codec="raw") as alone:
        wanted = alone.step(["ArrowUp"], 8)
    with cluster.replica() as third, connect(cluster.url, seed=9, codec="raw") as session:
        if cluster.owner(session.id) != third:  # the emptiest, and the others are as empty: seat it there
            session.close()
            session = connect(cluster.servers[third].url, seed=9, codec="raw")
            session._url = cluster.url
            wait_until(lambda: cluster.owner(session.id) == third)
        frames = [session.step(["ArrowUp"], 5)]
        cluster.tell("drain", third)
        with pytest.raises(ServerError, match="closed"):
            while True:
                session._receive()
        assert session.resume() == session.resumed_at == 5 and cluster.owner(session.id) != third
        frames.append(session.step(["ArrowUp"], 3))
        np.testing.assert_array_equal(np.concatenate(frames), wanted)
        session.close()


def test_a_player_is_told_where_to_come_back_to_and_asyncio_does(cluster, pair):
    async def play() -> None:
        async with open_session(cluster.url, **STEPPED) as client:
            first = client.created["session"]["id"]
            owner = cluster.owner(first)
            assert owner is not None
            await client.send("step", step_id=1, n=2)
            async with asyncio.timeout(20):
                async for header, _ in client.frames():
                    if header.frame_id == 1:
                        break
            cluster.cut_off.add(owner)
            with pytest.raises(ConnectionClosed):
                async with asyncio.timeout(20):
                    async for _ in client.frames():
                        pass
            again = await client.resume()
            assert again["session"]["id"] == first and again["session"]["resumed_at"] == 2

    asyncio.run(play())


@pytest.mark.browser
def test_the_page_plays_on_another_server_when_its_own_is_drained(cluster, pair, browser, monkeypatch):
    page, watching = browser.new_page(), browser.new_page()
    page.set_default_timeout(60_000)
    watching.set_default_timeout(60_000)
    with cluster.replica() as third:
        for name in pair:  # as servers with one --auth: each takes the other's tokens
            monkeypatch.setattr(cluster.servers[name].service, "tokens", cluster.servers[third].service.tokens)
        # Only there is room: so the page is seated there.
        for name in pair:
            for _ in range(2):
                cluster.servers[name].create(**STEPPED)
        wait_until(lambda: sum(one.beat.load.free_slots for one in cluster.tell("replicas")) == 2)
        page.goto(cluster.url)
        page.wait_for_function("window.__wm?.frames > 10")
        (session_id,) = cluster.servers[third].service.lobby.epochs()
        for name in pair:
            for other in list(cluster.servers[name].service.lobby.epochs()):
                cluster.http.delete(f"{cluster.servers[name].url}/v1/sessions/{other}")
        invited = cluster.http.post(f"{cluster.url}/v1/sessions/{session_id}/spectators").json()
        watching.goto(f"{cluster.url}/#join={session_id}.{invited['token']}")
        watching.wait_for_function("window.__wm?.state === 'watching' && window.__wm.frames > 5")
        shown = page.evaluate("window.__wm.frames")
        cluster.tell("drain", third)
        wait_until(lambda: cluster.owner(session_id) in pair)
        page.wait_for_function(f"window.__wm.frames > {shown + 20}")
        assert cluster.servers[cluster.owner(session_id)].service.lobby.epochs() == {session_id: 1}
        shown = page.evaluate("window.__wm.frameId")
        watching.wait_for_function(f"window.__wm.state === 'watching' && window.__wm.frameId > {shown}")
    page.close()
    watching.close()


def test_go_away_names_the_place_to_come_back_to(cluster):
    with cluster.replica() as name:
        server = cluster.servers[name]
        ticket = server.create(**STEPPED)
        with playing(ticket) as talk:
            talk.wait_for("session.created")
            server.stop()
            told = talk.wait_for("session.go_away")
            assert told["resume_url"] == f"http://gate/v1/sessions/{ticket['session_id']}/resume"


def test_a_session_of_a_server_that_is_gone_must_be_resumed_first(cluster, pair):
    with cluster.replica() as name:
        session_id = cluster.servers[name].create(**STEPPED)["session_id"]
        wait_until(lambda: cluster.owner(session_id) == name)
    refused = cluster.http.get(f"{cluster.url}/v1/sessions/{session_id}")
    assert refused.status_code == 404 and "/resume" in refused.json()["message"]
    assert cluster.resume(session_id, "x").status_code == 401, "with its own token"
    assert cluster.resume("a-name-that-nobody-has", "x").json()["code"] == "unknown_session"


def test_the_gateway_tells_what_models_and_metrics_there_are(cluster, pair):
    assert cluster.http.get(f"{cluster.url}/readyz").json()["stage"] == "2 of 2 replicas"
    assert cluster.http.get(f"{cluster.url}/healthz").json() == {"status": "ok", "replicas": 2}
    (model,) = cluster.http.get(f"{cluster.url}/v1/models").json()["models"]
    assert cluster.http.get(f"{cluster.url}/v1/models/{model['id']}").json()["id"] == model["id"]
    assert "wm_cluster_slots_free 4.0" in cluster.http.get(f"{cluster.url}/metrics").text
    targets = cluster.http.get(f"{cluster.url}/metrics/targets").json()
    assert {f"http://{one['targets'][0]}" for one in targets} == {cluster.servers[name].url for name in pair}
    assert all(b"wm_slots_free" in cluster.http.get(f"http://{one['targets'][0]}/metrics").content for one in targets)
    assert "player.js" in cluster.http.get(f"{cluster.url}/page/main.js").text


def test_foreign_pages_and_strangers_are_kept_out(cluster, pair):
    foreign = cluster.http.post(f"{cluster.url}/v1/sessions", json={}, headers={"Origin": "https://evil.example"})
    assert (foreign.status_code, foreign.json()["code"]) == (403, "forbidden_origin")
    with gateway(cluster, auth="secret") as guarded:
        for path in ("/v1/replicas", "/metrics", "/metrics/targets"):
            assert cluster.http.get(guarded + path).json()["code"] == "unauthorized"
            assert cluster.http.get(guarded + path, headers={"Authorization": "Bearer secret"}).status_code == 200


def test_behind_a_proxy_sockets_have_the_address_that_players_see(cluster, pair):
    with gateway(cluster, media_url="wss://play.example/{host}/{port}") as proxied:
        ticket = cluster.http.post(f"{proxied}/v1/sessions", json=STEPPED).json()
    server = cluster.servers[cluster.owner(ticket["session_id"]) or ""]
    port = server.url.rpartition(":")[2]
    assert ticket["ws_url"] == f"wss://play.example/127.0.0.1/{port}/v1/sessions/{ticket['session_id']}/ws"
    assert socket_url("https://play.example", {"ws_url": "ws://play.example/x"}) == "wss://play.example/x"
    assert socket_url("https://play.example", {"ws_url": "ws://10.0.0.1:9000/x"}) == "ws://10.0.0.1:9000/x"


def test_spectators_are_told_where_they_can_connect(cluster, pair):
    invited = []
    for settings in ({"media_url": "wss://play.example/{host}/{port}"}, {"is_proxied": True}):
        with gateway(cluster, **settings) as proxied:
            ticket = cluster.http.post(f"{proxied}/v1/sessions", json=STEPPED).json()
            invited.append(cluster.http.post(f"{proxied}/v1/sessions/{ticket['session_id']}/spectators").json())
            assert urlsplit(invited[-1]["ws_url"]).netloc == urlsplit(ticket["ws_url"]).netloc
            assert invited[-1]["ws_url"] == ticket["ws_url"]
            shown = {"Authorization": f"Bearer {invited[-1]['token']}"}
            asked = cluster.http.get(f"{proxied}/v1/sessions/{ticket['session_id']}/spectators", headers=shown)
            assert asked.json() == invited[-1]
            if "is_proxied" in settings:
                with playing(ticket) as talk, playing(invited[-1]) as watcher:
                    assert watcher.wait_for("session.created")["role"] == "spectator"
                    frames = steps(talk, 2, 1)
                    ((header, pixels),) = watcher.wait_for_frames(1)  # a slow one loses some
                    assert (header["frame_id"], pixels) in frames


def test_rollouts_are_made_behind_the_gateway_as_by_a_server_alone(cluster, pair):
    scripts = [
        {"frames": 5, "init": {"seed": seed}, "events": [{"frame": 1, "held": ["ArrowLeft"]}]} for seed in (3, 4)
    ]
    alone = roll_out(cluster.servers[pair[0]].url, scripts)
    behind = roll_out(cluster.url, scripts)
    assert all(np.array_equal(one, other) for one, other in zip(alone, behind, strict=True))
    assert not np.array_equal(behind[0], behind[1])


def test_a_rollout_is_found_on_its_server_and_ends_with_it(cluster, pair):
    body = {"scripts": [{"frames": 3}], "video": False, "lossless": True}
    with cluster.replica(slots=8) as third:
        server = cluster.servers[third]
        asked = cluster.http.post(f"{cluster.url}/v1/rollouts", json=body)
        assert asked.status_code == 201, asked.text
        name = asked.json()["rollout_id"]
        assert server.service.rollouts.names() == (name,), "that one has most room"
        where = f"{cluster.url}/v1/rollouts/{name}"
        wait_until(lambda: cluster.http.get(where).json()["status"] == "done")
        wait_until(
            lambda: (name,) in [one.beat.rollouts for one in cluster.tell("replicas") if one.beat.replica == third]
        )
        recording = cluster.http.get(f"{where}/recordings/0")
        assert "frames.npy" in zipfile.ZipFile(io.BytesIO(recording.content)).namelist()
        other = cluster.http.post(f"{cluster.url}/v1/rollouts", json=body).json()["rollout_id"]
        assert cluster.http.delete(f"{cluster.url}/v1/rollouts/{other}").json()["status"] == "removed"
        refused = cluster.http.post(f"{cluster.url}/v1/rollouts", json={"scripts": []})
        assert refused.status_code == 422 and refused.json()["code"] == "bad_message"
    wait_until(lambda: not cluster.tell("is_new"))  # until then it may be on a server that has not reported
    for gone in (name, other):
        assert cluster.http.get(f"{cluster.url}/v1/rollouts/{gone}").json()["code"] == "unknown_rollout"


def test_a_recording_may_take_long_and_be_long(cluster, pair, monkeypatch):
    ticket = cluster.create()
    server = cluster.servers[cluster.owner(ticket["session_id"]) or ""]
    with playing(ticket) as talk:
        steps(talk, 3, 1)
    at_once, path = server.service.record, f"/v1/sessions/{ticket['session_id']}/recording?video=false"

    async def record(*asked: Any) -> Path:
        await asyncio.sleep(0.8)
        return await at_once(*asked)

    monkeypatch.setattr(server.service, "record", record)
    monkeypatch.setattr(gateway_module, "ANSWER_S", 0.4)
    monkeypatch.setattr(gateway_module, "PIECE", 100)
    with gateway(cluster) as hurried:
        answer = cluster.http.get(hurried + path)
        assert answer.status_code == 200 and int(answer.headers["Content-Length"]) == len(answer.content) > 200
        assert "events.jsonl" in zipfile.ZipFile(io.BytesIO(answer.content)).namelist()
        assert cluster.http.get(f"{hurried}/v1/sessions/nobody/recording").json()["code"] == "unknown_session"
    assert not any(known.is_lost for known in cluster.tell("replicas"))


def test_a_recording_that_nobody_waits_for_is_not_made(cluster, pair, monkeypatch):
    ticket = cluster.create()
    server = cluster.servers[cluster.owner(ticket["session_id"]) or ""]
    asked, stopped = threading.Event(), threading.Event()

    async def record(*_: Any) -> Path:
        asked.set()
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            stopped.set()

    monkeypatch.setattr(server.service, "record", record)
    monkeypatch.setattr(gateway_module, "LOOK_S", 0.05)
    with socket.socket() as client:
        client.connect(("127.0.0.1", urlsplit(cluster.url).port))
        client.sendall(f"GET /v1/sessions/{ticket['session_id']}/recording HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert asked.wait(20)
    assert stopped.wait(20)


def test_one_that_is_slow_to_answer_is_not_lost(cluster, pair, monkeypatch):
    monkeypatch.setattr(gateway_module, "ANSWER_S", 0.3)
    monkeypatch.setattr(cluster._directory, "_lease_s", 60.0)  # it beats only once
    with socket.create_server(("127.0.0.1", 0)) as listening, gateway(cluster) as hurried:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        beat = dataclasses.replace(cluster.tell("replicas")[0].beat, replica="slow", url=url, epochs={"slow-one": 0})
        cluster.tell("beat", dataclasses.replace(beat, load=dataclasses.replace(beat.load, free_slots=99)))
        try:
            for method, path in (("POST", "/v1/sessions"), ("GET", "/v1/sessions/slow-one")):
                refused = cluster.http.request(method, hurried + path)
                assert (refused.status_code, refused.json()["code"]) == (503, "busy") and refused.headers["Retry-After"]
            assert cluster.owner("slow-one") == "slow"
        finally:
            cluster.tell("leave", "slow")


def test_tokens_that_only_one_server_would_take_are_not_made(cluster, pair):
    refused = cluster.http.post(f"{cluster.url}/v1/tokens", json={})
    assert (refused.status_code, refused.json()["code"]) == (422, "unsupported") and "--auth" in refused.text
    with gateway(cluster, auth="secret") as guarded:
        assert cluster.http.post(f"{guarded}/v1/tokens", json={}).status_code == 201


def test_through_one_port_a_player_sees_the_same_frames_and_close_codes(cluster, pair):
    with gateway(cluster, is_proxied=True) as proxied:
        ticket = cluster.http.post(f"{proxied}/v1/sessions", json=STEPPED).json()
        assert ticket["ws_url"].startswith(proxied.replace("http", "ws"))
        name = cluster.owner(ticket["session_id"])
        with playing(ticket) as talk:
            token = talk.wait_for("session.created")["resume_token"]
            frames = steps(talk, 3, 1)
        address = ticket["ws_url"].replace(proxied[7:], cluster.servers[name].url[7:])
        with playing({**ticket, "ws_url": address, "token": token}) as talk:
            assert steps(talk, 3, 1) == frames
        with playing({**ticket, "token": token}) as talk:
            talk.wait_for("session.created")
            cluster.http.delete(f"{proxied}/v1/sessions/{ticket['session_id']}")
            assert talk.wait_for("session.ended")["reason"] == "deleted"
            with pytest.raises(ConnectionClosed) as closed:
                talk.wait_for("nothing")
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1000
        wait_until(lambda: cluster.tell("find", ticket["session_id"]) is None)
        with playing(ticket) as talk:
            assert talk.wait_for("error")["code"] == "unknown_session"
        protocols = [Subprotocol("wm.v1"), Subprotocol("wm.auth.x")]
        origin: Any = "https://evil.example"
        with connect_socket(ticket["ws_url"], subprotocols=protocols, origin=origin) as socket:
            assert Talk(socket).wait_for("error")["code"] == "forbidden_origin"


def test_through_one_port_a_token_works_from_its_page(cluster, pair):
    server, page = cluster.servers[pair[0]], {"Origin": cluster.url}
    token = server.http.post(f"{server.url}/v1/tokens", json={"origins": [cluster.url]}).json()["token"]
    shown = {**page, "Authorization": f"Bearer {token}"}
    ticket = server.http.post(f"{server.url}/v1/sessions", json=STEPPED, headers=shown).json()
    wait_until(lambda: cluster.owner(ticket["session_id"]) is not None)
    with gateway(cluster, is_proxied=True, allow_origins=(cluster.url,)) as proxied:
        address = ticket["ws_url"].replace(server.url[7:], proxied[7:])
        with playing({**ticket, "ws_url": address}) as talk:
            assert talk.wait_for("error")["code"] == "forbidden_origin"
        with playing({**ticket, "ws_url": address}, additional_headers=page) as talk:
            assert talk.wait_for("session.created")["session"]["id"] == ticket["session_id"]


def test_one_that_takes_no_socket_is_as_good_as_gone(cluster, pair):
    beat = cluster.tell("replicas")[0].beat
    cluster.tell("beat", dataclasses.replace(beat, replica="odd", url=cluster.url, epochs={"strange": 1}))
    try:
        with gateway(cluster, is_proxied=True) as proxied:
            address = f"{proxied.replace('http', 'ws')}/v1/sessions/strange/ws"
            with playing({"ws_url": address, "token": "any"}) as talk:
                assert talk.wait_for("error")["code"] == "unknown_session"
    finally:
        cluster.tell("leave", "odd")


def test_where_no_server_is_the_gateway_says_so(tmp_path):
    empty = Cluster(tmp_path)
    with gateway(empty) as url, empty.http:
        assert empty.http.get(f"{url}/readyz").status_code == 503
        for method, path in (("POST", "/v1/sessions"), ("GET", "/v1/models"), ("POST", "/v1/sessions/some/resume")):
            refused = empty.http.request(method, url + path)
            assert (refused.status_code, refused.json()["code"]) == (503, "full") and refused.headers["Retry-After"]


def test_one_that_does_not_answer_is_passed_over(cluster, pair):
    name = pair[0]
    silent = dataclasses.replace(
        cluster.tell("replicas")[0].beat, replica="silent", url="http://127.0.0.1:9", epochs={}
    )
    cluster.tell("beat", dataclasses.replace(silent, load=dataclasses.replace(silent.load, free_slots=99)))
    try:
        assert cluster.owner(cluster.create()["session_id"]) in pair
        assert name in {known.beat.replica for known in cluster.tell("replicas")}
    finally:
        cluster.tell("leave", "silent")
