"""Clients that die without a word, at any moment: their session waits for them, and nothing of them is left behind."""

import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.serving.conftest import wait_until
from tests.serving.test_soak import resident_mb

CLIENT = """
import json, struct, sys
from websockets.sync.client import connect

url, token = sys.argv[1:]
with connect(url, subprotocols=["wm.v1", "wm.auth." + token], compression=None) as socket:
    while True:
        data = socket.recv()
        if isinstance(data, str):
            message = json.loads(data)
            if message["type"] == "session.created":
                print("created", message["resume_token"], flush=True)
            continue
        (size,) = struct.unpack_from("<I", data)
        header = json.loads(data[4 : 4 + size])
        socket.send(json.dumps({"type": "frame.ack", "seq": header["seq"]}))
        socket.send(json.dumps({"type": "action", "held": ["ArrowLeft"]}))
        print("frame", header["frame_id"], flush=True)
"""


def play_and_die(url: str, token: str, after_s: float) -> tuple[str, list[int]]:
    """A client in a process of its own, killed so long after its first frame: its resume token, the frames it saw."""
    with subprocess.Popen([sys.executable, "-c", CLIENT, url, token], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        lines = [client.stdout.readline().split(), client.stdout.readline().split()]
        time.sleep(after_s)
        client.send_signal(signal.SIGKILL)
        lines += [line.split() for line in client.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    (kind, resume_token), *frames = lines
    assert kind == "created" and client.returncode == -signal.SIGKILL
    return resume_token, [int(frame) for _, frame in frames]


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.full)])
def test_a_client_that_is_killed_finds_its_session_again_and_leaves_nothing_behind(server, kills):
    rng = np.random.default_rng(kills)
    ticket, held = server.create(linger_s=60), server.free_slots()
    token, seen, threads, memory = ticket["token"], [], 0, []
    for life in range(kills):
        token, frames = play_and_die(ticket["ws_url"], token, rng.uniform(0.0, 0.4))
        assert frames and frames == sorted(set(frames)) and (not seen or frames[0] > seen[-1]), "an index went back"
        seen += frames
        place = server.service.lobby.find(ticket["session_id"])
        wait_until(lambda place=place: place.connection is None)
        assert server.free_slots() == held, "it still has its slot, and no other"
        threads = threading.active_count() if life == 0 else threads
        memory.append(resident_mb())
    assert threading.active_count() <= threads, "a thread a client is left"
    assert memory[-1] - memory[len(memory) // 2] < 16.0, f"memory grew, MB after each: {memory}"
    protocols = [Subprotocol("wm.v1"), Subprotocol(f"wm.auth.{token}")]
    with connect(ticket["ws_url"], subprotocols=protocols, compression=None) as socket:
        assert json.loads(socket.recv())["session"]["frames"] > seen[-1]
    server.delete(ticket)
