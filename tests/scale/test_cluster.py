"""A real Ray cluster of two replicas, started by its front door: killed, drained and updated while somebody plays."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors import safe_open

from wm_jax.client import ServerError, Session, connect

KEYS = ["ArrowUp"]


class Launched:
    """`python -m wm_jax.scale`, and what it shows of itself."""

    def __init__(self, world: Path, root: Path, folder: Path, **settings: Any) -> None:
        with socket.socket() as asked:
            asked.bind(("127.0.0.1", 0))
            port = asked.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.kept = folder / "kept"
        self._log = folder / "scale.log"
        self.http = httpx.Client(timeout=30)
        options = {
            "replicas": 2, "slots": 2, "queue": 0, "port": port, "num-cpus": 0.1, "ray-cpus": 2, "ray-memory-mb": 100,
            "snapshots": self.kept, "snapshot-every-s": 0.2, "lease-s": 4, "drain-s": 0.3,
            "cache-dir": os.environ["JAX_COMPILATION_CACHE_DIR"], "log": "json",
            **{name.replace("_", "-"): value for name, value in settings.items()},
        }  # fmt: skip
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        self._out = self._log.open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wm_jax.scale", str(world), *words],
            cwd=root, stdout=self._out, stderr=self._out, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    def wait_for(self, text: str, times: int = 1) -> None:
        self.wait_until(lambda: self._log.read_text().count(text) >= times)

    def wait_until(self, is_so: Callable[[], bool], seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, f"waited for {seconds} s\n{self._log.read_text()[-4000:]}"
            time.sleep(0.05)

    def replicas(self) -> list[dict[str, Any]]:
        try:
            return self.http.get(f"{self.url}/v1/replicas").json()["replicas"]
        except (httpx.TransportError, KeyError, ValueError):
            return []

    def wait_until_whole(self, but: int | None = None, count: int = 2) -> None:
        """So many replicas play, none of them this process."""

        def playing() -> list[int]:
            return [one["pid"] for one in self.replicas() if one["ready"] and not one["draining"] and one["pid"] != but]

        self.wait_until(lambda: len(playing()) == count)

    def owner(self, session_id: str) -> dict[str, Any]:
        """The replica that says it has the session."""
        found = [one for one in self.replicas() if self._has(one["url"], session_id)]
        assert len(found) == 1, f"{len(found)} replicas have session {session_id}"
        return found[0]

    def _has(self, url: str, session_id: str) -> bool:
        try:
            return self.http.get(f"{url}/v1/sessions/{session_id}").status_code == 200
        except httpx.TransportError:
            return False

    def written(self, session_id: str) -> int | None:
        """The frame with which a session would go on from the disk, by its newest file."""
        paths = sorted(
            self.kept.glob(f"{session_id}*.safetensors"),
            key=lambda path: int("0" + path.name.split(".")[1].removeprefix("safetensors")),
        )
        if not paths:
            return None
        with safe_open(paths[-1], framework="numpy") as file:
            return json.loads(file.metadata()["record"])["frame_id"]

    def process_named(self, name: str) -> int:
        """The one process of that name, as Ray names it."""
        (pid,) = [pid for pid in descendants(self.process.pid) if command_line(pid).startswith(name)]
        return pid

    def stop(self) -> None:
        """Told to stop it ends well, and leaves no process behind."""
        family = descendants(self.process.pid)
        try:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(90) == 0, self._log.read_text()
            deadline = time.monotonic() + 20
            while left := [pid for pid in family if is_alive(pid)]:
                assert time.monotonic() < deadline, f"processes {left} outlive the cluster"
                time.sleep(0.1)
        finally:
            for pid in [self.process.pid, *family]:
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            self._out.close()
            self.http.close()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_line(pid: int) -> str:
    """What a process calls itself; nothing once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def descendants(pid: int) -> list[int]:
    """Every process that this one started, and those started."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, ahead = [], [pid]
    while ahead:
        children = [child for child, parent in parents.items() if parent == ahead[0]]
        ahead = ahead[1:] + children
        found += children
    return found


class Player:
    """Plays a stepped session, comes back whenever it is sent away, and notes every frame it was given."""

    def __init__(self, url: str, seed: int) -> None:
        self.session: Session = connect(url, seed=seed, codec="raw")
        self.seen: dict[int, np.ndarray] = {}
        self.resumed: list[tuple[int, int]] = []
        self._pool = ThreadPoolExecutor(1)
        self._stopped = threading.Event()
        self._playing: Future[None] | None = None

    def start(self) -> None:
        """Plays in the background until it is told to stop."""
        self._playing = self._pool.submit(self._play_on)

    def _play_on(self) -> None:
        while not self._stopped.is_set():
            self.play()

    def play(self) -> None:
        """Three frames, or the way back to where they can be had."""
        if not self.ask(3):
            self.come_back()

    def ask(self, count: int) -> bool:
        """So many frames, from where the session says it is; whether they came. Asked again, a step that was cut goes on."""
        first = self.session.frame_id
        try:
            frames = self.session.step(KEYS, count)
        except ServerError:
            return False
        assert self.session.frame_id == first + count, "a frame index went on or back without a word"
        for frame_id, frame in enumerate(frames, first):
            known = self.seen.setdefault(frame_id, frame)
            np.testing.assert_array_equal(known, frame, err_msg=f"frame {frame_id} was another one before")
        return True

    def come_back(self) -> None:
        at = self.session.resume(patience_s=90.0)
        if self.session.resumed_at is not None:
            self.resumed.append((max(self.seen, default=-1) + 1, at))

    def stop(self) -> None:
        """Raises what went wrong while it played."""
        self._stopped.set()
        playing, self._playing = self._playing, None
        if playing is not None:
            playing.result(120)

    def check(self, alone: np.ndarray) -> None:
        """All that was seen is what this player would have seen alone."""
        for frame_id, frame in self.seen.items():
            np.testing.assert_array_equal(frame, alone[frame_id], err_msg=f"frame {frame_id}")


@pytest.fixture(scope="module")
def cluster(world_folder: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    launched = Launched(world_folder, root, tmp_path_factory.mktemp("cluster"))
    try:
        launched.wait_for("play it at")
        launched.wait_until_whole()
        yield launched
    finally:
        launched.stop()


@pytest.fixture
def player(cluster: Launched) -> Iterator[Player]:
    cluster.wait_until_whole()
    made = Player(cluster.url, seed=7)
    yield made
    made.stop()
    made.session.close()


def alone(cluster: Launched, seed: int, frames: int) -> np.ndarray:
    with connect(cluster.url, seed=seed, codec="raw") as session:
        return np.concatenate([session.step(KEYS, min(50, frames - done)) for done in range(0, frames, 50)])


@pytest.mark.slow
def test_who_comes_back_finds_the_same_replica(cluster, player):
    player.play()
    first = cluster.owner(player.session.id)["replica"]
    for _ in range(4):
        player.session.resume()
        assert player.session.resumed_at is None and cluster.owner(player.session.id)["replica"] == first
        player.play()
    assert sorted(player.seen) == list(range(15))


@pytest.mark.slow
def test_servers_and_gateway_log_as_they_were_asked_to(cluster, player):
    owner, gateway = cluster.owner(player.session.id), cluster.process_named("ray::ServeReplica:wm_jax:gateway")
    for pid, event, name, value in (
        (owner["pid"], "session begins", "session_id", player.session.id),
        (gateway, "gateway begins", "replicas", 2),
    ):
        lines = Path(f"/proc/{pid}/fd/2").read_text().splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        assert [one for one in told if one["event"] == event and one[name] == value], lines


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.full)])
def test_killed_at_any_moment_a_session_goes_on_elsewhere_where_it_was_last_written(cluster, player, kills):
    rng = np.random.default_rng(kills)
    session_id = player.session.id
    for kill in range(kills):
        until = time.monotonic() + rng.uniform(0.1, 1.5)
        while time.monotonic() < until or cluster.written(session_id) is None:
            player.play()
        victim = cluster.owner(session_id)["pid"]
        killer = threading.Timer(rng.uniform(0.0, 0.1), os.kill, (victim, signal.SIGKILL))
        killer.start()
        cut = player.session.frame_id
        while player.ask(30):  # its frames are on their way
            cut = player.session.frame_id
        cluster.wait_until(lambda pid=victim: not is_alive(pid))
        written = cluster.written(session_id)
        player.come_back()
        assert player.session.resumed_at == written, "it goes on where it was last written"
        assert written is not None and written <= cut + 30, "and never beyond what was asked for"
        assert player.session.frame_id in (cut, written), "the step that was cut goes on, or the session before it"
        assert cluster.owner(session_id)["pid"] != victim
        assert player.ask(30)
        assert len(player.resumed) == kill + 1
        cluster.wait_until_whole(but=victim)
    player.check(alone(cluster, 7, len(player.seen)))
    assert sorted(player.seen) == list(range(len(player.seen))), "no frame is missing"
    player.session.close()
    cluster.wait_until(lambda: sum(one["sessions"] for one in cluster.replicas()) == 0)
    cluster.wait_until(lambda: cluster.written(session_id) is None)
    assert sum(one["slots_free"] for one in cluster.replicas()) == 4, "nothing leaks"


@pytest.mark.slow
def test_a_directory_that_is_killed_comes_back_and_knows_who_plays_where(cluster, player):
    player.play()
    directory = cluster.process_named("ray::Directory")
    os.kill(directory, signal.SIGKILL)
    cluster.wait_until(lambda: not is_alive(directory))
    player.start()
    cluster.wait_until_whole()
    player.stop()
    # If it took longer than a lease the session was let go and taken up again; its world is the same either way.
    player.play()
    assert cluster.http.get(f"{cluster.url}/v1/sessions/{player.session.id}").status_code == 200
    player.check(alone(cluster, 7, max(player.seen) + 1))


@pytest.mark.slow
def test_who_plays_does_not_notice_that_the_gateway_was_killed(cluster, player):
    player.play()
    gateway = cluster.process_named("ray::ServeReplica:wm_jax:gateway")
    os.kill(gateway, signal.SIGKILL)
    cluster.wait_until(lambda: not is_alive(gateway))
    assert player.ask(3), "its socket does not pass the gateway"
    player.start()
    cluster.wait_until_whole()
    player.stop()
    assert not player.resumed and cluster.process_named("ray::ServeReplica:wm_jax:gateway") != gateway
    assert cluster.http.get(f"{cluster.url}/v1/sessions/{player.session.id}").status_code == 200
    player.check(alone(cluster, 7, max(player.seen) + 1))


@pytest.mark.slow
def test_a_drained_replica_hands_its_player_over(cluster, player, root):
    player.play()
    victim = cluster.owner(player.session.id)["replica"]
    player.start()
    done = subprocess.run(
        [sys.executable, "-m", "wm_jax.scale.drain", victim],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0 and victim in done.stdout, done.stdout + done.stderr
    cluster.wait_until(lambda: len(player.resumed) == 1)
    player.stop()
    assert cluster.owner(player.session.id)["replica"] != victim
    player.check(alone(cluster, 7, max(player.seen) + 1))


@pytest.mark.slow
def test_a_rolling_update_costs_nobody_the_world(cluster, player):
    before = {one["replica"] for one in cluster.replicas()}
    player.start()
    cluster.process.send_signal(signal.SIGHUP)
    cluster.wait_for("every replica was replaced")
    cluster.wait_until(lambda: before.isdisjoint(one["replica"] for one in cluster.replicas()))
    shown = len(player.seen)
    cluster.wait_until(lambda: len(player.seen) > shown + 3)
    player.stop()
    assert player.resumed, "its replica was replaced as well"
    player.check(alone(cluster, 7, max(player.seen) + 1))


@pytest.mark.full
def test_there_are_more_servers_when_slots_run_out_and_fewer_when_players_leave(world_folder, root, tmp_path):
    """By Ray Serve's own controller, which ends the newest server first: who sits there is handed over."""
    limits = {"replicas": 1, "max_replicas": 2, "spare_slots": 1, "up_s": 1, "down_s": 1}
    cluster = Launched(world_folder, root, tmp_path, **limits)
    try:
        cluster.wait_for("play it at")
        cluster.wait_until_whole(count=1)
        players = [Player(cluster.url, seed=7) for _ in range(2)]
        cluster.wait_until_whole(count=2)
        players.append(Player(cluster.url, seed=7))
        cluster.wait_until(lambda: sorted(one["sessions"] for one in cluster.replicas()) == [1, 2])
        for player in players:
            player.play()
        first, last = players[0], players[-1]
        ends = cluster.owner(last.session.id)["replica"]
        for player in (first, last):
            player.start()
        players[1].session.close()
        time.sleep(8)  # as many servers are needed as before: one slot is to be free
        assert len(cluster.replicas()) == 2 and not first.resumed + last.resumed
        first.stop()
        first.session.close()
        cluster.wait_until_whole(count=1)
        cluster.wait_until(lambda: len(last.resumed) == 1)
        last.stop()
        assert cluster.owner(last.session.id)["replica"] != ends
        last.play()
        last.check(alone(cluster, 7, max(last.seen) + 1))
        last.session.close()
    finally:
        cluster.stop()
