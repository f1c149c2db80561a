"""The front door: python serve.py."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import av
import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

import serve
import wm_jax as wm
from wm_jax.checkpoint import save_world
from wm_jax.client import connect as connect_session


def run_main(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["serve.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        serve.main()
    return int(ended.value.code or 0)


def test_help_teaches(monkeypatch, capsys):
    assert run_main(monkeypatch, "--help") == 0
    said = capsys.readouterr().out
    assert "python serve.py worlds/coinrun" in said and "--rollout" in said and "--slots" in said


def test_a_folder_that_is_no_world_is_named(monkeypatch, capsys, tmp_path):
    assert run_main(monkeypatch, tmp_path / "nowhere") == 2
    assert "nowhere" in capsys.readouterr().out


def test_a_public_address_without_a_secret_is_refused(monkeypatch, capsys, tmp_path):
    assert run_main(monkeypatch, tmp_path, "--host", "0.0.0.0") == 2
    assert "--auth" in "".join(capsys.readouterr())


def test_a_rollout_of_the_wrong_width_names_both_sides(monkeypatch, capsys, world_folder, tmp_path):
    np.savez(tmp_path / "a.npz", keys=np.zeros((3, 9), bool))
    out = ("--rollout", tmp_path / "a.npz", "--cache-dir", tmp_path / "cache")
    monkeypatch.setattr("wm_jax.serving.engine.use_compile_cache", lambda folder: None)
    assert run_main(monkeypatch, world_folder, *out) == 2
    assert "[3, 9], this world wants [t, 4]" in capsys.readouterr().out


@pytest.mark.slow
def test_told_to_stop_the_server_says_goodbye_and_exits_cleanly_and_logs_no_secret(world_folder, root, tmp_path):
    secret, log = "open sesame 42", tmp_path / "serve.log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
    command = [sys.executable, "serve.py", world_folder, "--port", port, "--slots", 2, "--cache-dir", cache]
    command += ["--auth", secret, "--log", "json"]
    with log.open("w") as out:
        process = subprocess.Popen([str(word) for word in command], cwd=root, stderr=out)
    try:
        ticket = _ticket(f"http://127.0.0.1:{port}", process, Authorization=f"Bearer {secret}")
        with connect(
            ticket["ws_url"], subprotocols=[Subprotocol("wm.v1"), Subprotocol("wm.auth." + ticket["token"])]
        ) as player:
            secrets = [secret, ticket["token"]]
            while isinstance(data := player.recv(180), str):
                message = json.loads(data)
                assert message["type"] in ("session.created", "status")
                secrets += [message["resume_token"]] if "resume_token" in message else []
            process.send_signal(signal.SIGTERM)
            said = []
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    data = player.recv(60)
                    said += [json.loads(data)["type"]] if isinstance(data, str) else []
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
        assert "session.go_away" in said and said[-1] == "session.ended"
        assert process.wait(60) == 0
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        (ended,) = [line for line in lines if line["event"] == "session ends"]
        assert (ended["session_id"], ended["reason"]) == (ticket["session_id"], "draining") and ended["frames"] > 0
        assert len(secrets) == 3 and not [word for word in secrets if word in log.read_text()]
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_told_to_stop_while_it_compiles_the_server_lets_go_and_exits_at_once(root, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "serve.py", "worlds/coinrun", "--port", port, "--cache-dir", tmp_path / "empty"]
    log = tmp_path / "serve.log"
    with log.open("w") as out:
        process = subprocess.Popen([str(word) for word in command], cwd=root, stdout=out, stderr=out)
    try:
        ticket = _ticket(f"http://127.0.0.1:{port}", process)
        with connect(
            ticket["ws_url"], subprotocols=[Subprotocol("wm.v1"), Subprotocol("wm.auth." + ticket["token"])]
        ) as player:
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    player.recv(60)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
        assert process.wait(60) == 0 and "ready" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def _ticket(url: str, process: subprocess.Popen, **headers: str) -> dict:
    """A session, as soon as the server listens; it may still be compiling."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return httpx.post(f"{url}/v1/sessions", json={}, headers=headers, timeout=120).json()
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"the server did not come up (exit code {process.poll()})")


def test_a_published_world_wants_its_weights_and_a_folder_wants_none_of_that(monkeypatch, capsys, world_folder):
    monkeypatch.setattr("wm_jax.serving.engine.use_compile_cache", lambda folder: None)
    assert run_main(monkeypatch, "oasis-500m") == 2
    assert "oasis-500m needs its weights: --weights DIR" in capsys.readouterr().out
    assert run_main(monkeypatch, "oasis-500m", "--weights", world_folder) == 2
    assert "oasis500m.safetensors: there is no such file" in capsys.readouterr().out
    assert run_main(monkeypatch, world_folder, "--steps", 4) == 2
    assert "are for oasis-500m" in capsys.readouterr().out
    assert run_main(monkeypatch, world_folder, "--prompt", "a.png") == 2
    assert "world 'tiny' does not go on from a single image" in capsys.readouterr().out


def test_a_recording_is_replayed_without_a_server(monkeypatch, capsys, server, world_folder, tmp_path):
    """To the pixel that the player saw; what was played in another world is not."""
    monkeypatch.setattr("wm_jax.serving.engine.use_compile_cache", lambda folder: None)
    with connect_session(server.url, seed=3, codec="raw") as session:
        seen = [session.step(["ArrowUp"], frames=18)]
        session.seek(17)
        seen.append(session.step(["ArrowLeft"], frames=4))
        session.record(tmp_path / "a.zip")
    out = ("--replay", tmp_path / "a.zip", "--out", tmp_path / "again.mp4", "--lossless")
    monkeypatch.setattr(sys, "argv", ["serve.py", *map(str, (world_folder, *out))])
    serve.main()
    said = capsys.readouterr().out
    known = hashlib.sha256(np.concatenate(seen).tobytes()).hexdigest()
    assert "22 frames at 30 fps" in said and f"sha256 of all pixels {known}, as when it was recorded" in said
    assert "may differ" not in said
    np.testing.assert_array_equal(np.load(tmp_path / "again.npy"), np.concatenate(seen))
    with av.open(str(tmp_path / "again.mp4")) as container:
        assert len(list(container.decode(video=0))) == 22
    world, params = wm.tiny_world(1)
    save_world(tmp_path / "other", world.config, params)
    assert run_main(monkeypatch, tmp_path / "other", *out) == 2
    assert "replay it with the world it was played in" in capsys.readouterr().out
    assert run_main(monkeypatch, world_folder, "--replay", tmp_path / "again.npy") == 2
    assert "no readable recording" in capsys.readouterr().out


@pytest.mark.oasis
def test_a_published_world_dreams_a_video_from_an_image(monkeypatch, capsys, small_oasis, oasis_folder, tmp_path):
    monkeypatch.setattr("wm_jax.serving.engine.use_compile_cache", lambda folder: None)
    monkeypatch.setattr("wm_jax.ports.open_oasis.RELEASED", small_oasis[0].config)
    Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(tmp_path / "first.png")
    np.savez(tmp_path / "a.npz", keys=np.zeros((5, 23), bool), mouse=np.full((5, 2), 0.1))
    asked = ("--weights", oasis_folder, "--prompt", tmp_path / "first.png", "--steps", 2, "--solver", "dpmpp2m")
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "serve.py",
            "oasis-500m",
            *map(str, asked),
            "--rollout",
            str(tmp_path / "a.npz"),
            "--out",
            str(tmp_path / "d.mp4"),
        ],
    )
    serve.main()
    assert "5 frames at 20 fps" in capsys.readouterr().out
    with av.open(str(tmp_path / "d.mp4")) as container:
        assert len(list(container.decode(video=0))) == 5
