"""Scripts that are dreamt without a player: what a stepped session would show, and never at a player's cost."""

import asyncio
import dataclasses
import io
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.serving.conftest import Server
from wm_jax.client import ServerError, connect, roll_out
from wm_jax.serving import recording
from wm_jax.serving.bodies import RolloutScript
from wm_jax.serving.config import ServeConfig
from wm_jax.serving.protocol import Refusal
from wm_jax.serving.replay import Film
from wm_jax.serving.rollouts import Rollouts
from wm_jax.types import ControlSpace, KeyBinding


@pytest.fixture(autouse=True)
def nothing_is_left(server: Server) -> Iterator[None]:
    yield
    for rollout in list(server.service.rollouts._known.values()):
        server.http.delete(f"{server.url}/v1/rollouts/{rollout.id}")
    wait_until(lambda: server.service.batcher.empty_slots == 2)


@pytest.fixture
def strict(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The same server as if it had been started to make little."""
    config = dataclasses.replace(server.service.config, rollouts=1, rollout_frames=40, rollout_mb=0.1)
    monkeypatch.setattr(server.service.rollouts, "_config", config)
    return server


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, "waited for 30 s"
        time.sleep(0.005)


def ask(server: Server, *scripts: dict[str, Any], **body: Any) -> httpx.Response:
    return server.http.post(f"{server.url}/v1/rollouts", json={"scripts": scripts, **body})


def show(server: Server, rollout_id: str) -> dict[str, Any]:
    return server.http.get(f"{server.url}/v1/rollouts/{rollout_id}").json()


def frames_of(answer: httpx.Response) -> np.ndarray:
    with zipfile.ZipFile(io.BytesIO(answer.content)) as file:
        return np.load(io.BytesIO(file.read("frames.npy")))


def test_a_rollout_is_what_stepped_sessions_show(server, tmp_path):
    walk = [{"frame": 2, "held": ["ArrowUp"]}, {"frame": 3, "raw": [0, 1, 0, 1]}, {"frame": 9, "held": []}]
    scripts = [
        {"frames": 12, "init": {"seed": 3}, "events": walk},
        {"frames": 5, "init": {"seed": 3, "prompt": 2}},
        {"frames": 70, "init": {"seed": 4}, "events": [{"frame": 0, "held": ["ArrowLeft"]}]},
    ]
    dreamt = roll_out(server.url, scripts, folder=tmp_path)
    assert [len(frames) for frames in dreamt] == [12, 5, 70]
    raw = [code for code, bit in zip(server.world.config.controls.codes, (0, 1, 0, 1), strict=True) if bit]
    for script, held in ((0, [[], [], ["ArrowUp"], *[raw] * 6, [], [], []]), (1, [[]] * 5), (2, [["ArrowLeft"]] * 70)):
        with connect(server.url, **scripts[script]["init"]) as session:
            shown = np.concatenate([session.step(keys) for keys in held])
        np.testing.assert_array_equal(dreamt[script], shown)
    info, events = recording.read(tmp_path / "0.zip", server.service.studio.identity)
    assert info.frames == events.frames == 12 and "video.mp4" in zipfile.ZipFile(tmp_path / "0.zip").namelist()
    assert not server.service.rollouts._known, "who has fetched the frames has removed them"


def test_players_take_the_slots_and_a_rollout_goes_on_when_they_have_left(server, films_go_on):
    scripts = [{"frames": 120, "init": {"seed": seed}} for seed in range(2)]
    rollout = ask(server, *scripts, lossless=True, video=False).json()
    assert rollout["status"] == "queued" and (rollout["frames"], rollout["scripts"], rollout["position"]) == (240, 2, 1)
    wait_until(lambda: show(server, rollout["rollout_id"])["done"] > 3)
    assert server.free_slots() == 2
    tickets = [server.create(mode="stepped", media={"codec": "raw"}, init={"seed": seed}) for seed in range(2)]
    films_go_on.set()
    wait_until(lambda: show(server, rollout["rollout_id"])["done"] == 0)
    shown = []
    for ticket in tickets:
        with server.connect(ticket) as socket:
            talk = server.talk(socket)
            talk.send("step", step_id=1, n=20)
            shown.append([payload for _, payload in talk.wait_for_frames(20)])
        assert show(server, rollout["rollout_id"])["status"] == "queued"
    for ticket in tickets:  # only now: a script begins as soon as one slot is free
        server.delete(ticket)
    wait_until(lambda: show(server, rollout["rollout_id"])["status"] == "done")
    state = show(server, rollout["rollout_id"])
    assert state["done"] == 240 and state["expires_at"] > time.time()
    assert not server.service.rollouts.find(rollout["rollout_id"]).scripts, "what they began with is let go"
    for index in range(2):
        answer = server.http.get(f"{server.url}/v1/rollouts/{rollout['rollout_id']}/recordings/{index}")
        assert answer.headers["content-type"] == "application/zip"
        frames = frames_of(answer)
        assert len(frames) == 120 and [frame.tobytes() for frame in frames[:20]] == shown[index]


def test_a_rollout_is_cancelled_and_its_slots_are_free(server):
    rollout = ask(server, *[{"frames": 4000, "init": {"seed": seed}} for seed in range(3)]).json()
    url = f"{server.url}/v1/rollouts/{rollout['rollout_id']}"
    wait_until(lambda: show(server, rollout["rollout_id"])["done"] > 0)
    early = server.http.get(f"{url}/recordings/2").json()
    assert early["code"] == "busy" and "script 2 is not done" in early["message"]
    assert server.http.get(f"{url}/recordings/3").status_code == 404
    assert server.http.delete(url).json()["status"] == "removed"
    wait_until(lambda: server.service.batcher.empty_slots == 2)
    gone = server.http.get(url)
    assert (gone.status_code, gone.json()["code"]) == (404, "unknown_rollout")
    wait_until(lambda: not list(server.service.studio.folder.iterdir()))


def test_a_script_that_fails_fails_its_rollout_and_says_so(server, monkeypatch):
    def fails(self, frame):
        raise OSError("No space left on device")

    monkeypatch.setattr(Film, "write", fails)
    with pytest.raises(ServerError, match=r"server_failed: script \d could not be made"):
        roll_out(server.url, [{"frames": 9}, {"frames": 9}])
    wait_until(lambda: server.service.batcher.empty_slots == 2)
    monkeypatch.undo()
    assert len(roll_out(server.url, [{"frames": 1}])[0]) == 1


@pytest.mark.parametrize(
    ("scripts", "code", "says"),
    [
        ([{"frames": 21}, {"frames": 20}], "too_large", "41 frames together, this server makes at most 40"),
        ([{"frames": 0}], "bad_message", "scripts.0.frames"),
        ([], "bad_message", "scripts"),
        ([{"frames": 9, "events": [{"frame": 9, "held": []}]}], "bad_message", "scripts.0.events.0.frame is 9"),
        ([{"frames": 9, "events": [{"frame": 3, "held": []}] * 2}], "bad_message", "events.1.frame is 3"),
        ([{"frames": 9, "events": [{"frame": 3, "held": ["KeyZ"]}]}], "unknown_key", "KeyZ"),
        ([{"frames": 9, "events": [{"frame": 3, "held": [], "mouse": [1, 0]}]}], "unsupported", "mouse"),
        ([{"frames": 9, "init": {"prompt": 3}}], "unsupported", "ships 3"),
        ([{"frames": 9, "init": {"snapshot": "snap_" + "a" * 24}}], "unsupported", "--snapshots"),
    ],
)
def test_scripts_that_cannot_be_dreamt_are_refused(strict, scripts, code, says):
    refused = ask(strict, *scripts)
    assert refused.status_code in (413, 422) and refused.json()["code"] == code and says in refused.text
    assert not strict.service.rollouts._known


def test_rollouts_are_bounded_in_number_size_and_age(strict, monkeypatch):
    assert "neither video nor lossless" in ask(strict, {"frames": 40}, video=False).text
    large = ask(strict, {"frames": 40}, lossless=True)
    assert large.json()["code"] == "too_large" and "0.1" in large.json()["message"]
    players = [strict.create() for _ in range(2)]  # nothing runs
    first = ask(strict, {"frames": 12}).json()["rollout_id"]
    full = ask(strict, {"frames": 1})
    assert (full.status_code, full.json()["code"]) == (503, "busy") and full.headers["retry-after"] == "10"
    assert "1 rollouts wait or run" in full.json()["message"]
    for player in players:
        strict.delete(player)
    wait_until(lambda: show(strict, first)["status"] == "done")
    second = ask(strict, {"frames": 12}).json()["rollout_id"]
    wait_until(lambda: show(strict, second)["status"] == "done")
    rollouts = strict.service.rollouts
    config = dataclasses.replace(strict.service.config, rollout_mb=1e-6)
    monkeypatch.setattr(rollouts, "_config", config)
    asyncio.run_coroutine_threadsafe(rollouts._sweep(), strict.service.loop).result(30)
    assert show(strict, second)["status"] == "done" and show(strict, first)["code"] == "unknown_rollout"
    monkeypatch.setattr(rollouts, "_config", dataclasses.replace(config, rollout_age_s=1e-6))
    asyncio.run_coroutine_threadsafe(rollouts._sweep(), strict.service.loop).result(30)
    assert show(strict, second)["code"] == "unknown_rollout"
    monkeypatch.setattr(rollouts, "_config", dataclasses.replace(config, rollouts=0))
    assert "--rollouts 0" in ask(strict, {"frames": 1}).json()["message"]


def test_frames_that_are_promised_take_up_room(strict, monkeypatch):
    monkeypatch.setattr(
        strict.service.rollouts, "_config", dataclasses.replace(strict.service.rollouts._config, rollouts=3)
    )
    players = [strict.create() for _ in range(2)]  # nothing runs
    assert ask(strict, {"frames": 20}, lossless=True).status_code == 201
    refused = ask(strict, {"frames": 20}, lossless=True)
    assert (refused.status_code, refused.json()["param"]) == (
        503,
        "lossless",
    ) and "beside the 0.0614 MB" in refused.text
    assert ask(strict, {"frames": 20}).status_code == 201
    for player in players:
        strict.delete(player)


def test_rollouts_are_for_those_who_know_the_secret(server, monkeypatch):
    monkeypatch.setattr(server.service, "config", dataclasses.replace(server.service.config, auth="secret"))
    assert ask(server, {"frames": 1}).status_code == 401
    with pytest.raises(ServerError, match="401"):
        roll_out(server.url, [{"frames": 1}])
    assert server.http.get(f"{server.url}/v1/rollouts/any").status_code == 401
    assert len(roll_out(server.url, [{"frames": 2}], auth="secret")[0]) == 2


def test_the_mouse_moves_in_its_frame_and_keys_stay_held(server):
    space = ControlSpace((KeyBinding("KeyW", "forward"), KeyBinding("KeyS", "back")), has_mouse=True)
    rollouts = Rollouts(ServeConfig(), space, (32, 32), server.service.studio)
    events = [
        {"frame": 1, "held": ["KeyW"], "mouse": [0.5, 0]},
        {"frame": 3, "mouse": [0, -0.25]},
        {"frame": 4, "raw": [0, 1]},
    ]
    rows = rollouts._rows(0, RolloutScript.model_validate({"frames": 6, "events": events}))
    assert [row.keys.tolist() for row in rows] == [[False] * 2, *[[True, False]] * 3, *[[False, True]] * 2]
    assert [row.mouse for row in rows] == [(0, 0), (0.5, 0), (0, 0), (0, -0.25), (0, 0), (0, 0)]
    with pytest.raises(Refusal) as refused:
        rollouts._rows(2, RolloutScript.model_validate({"frames": 6, "events": [{"frame": 0, "mouse": [1, 2, 3]}]}))
    assert refused.value.param == "scripts.2.events.0.mouse"
