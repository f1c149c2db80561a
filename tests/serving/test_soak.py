"""Every slot taken for a while, frames as fast as they come: nothing piles up. How even the frames are is a benchmark
(`python -m wm_jax.eval.load --seconds 3600`)."""

import asyncio
import os
import resource
import threading
import time
from pathlib import Path

import pytest

GROWTH_MB = 8.0
"""What allocators and logs may take between the middle and the end; the pictures of the frames in between are more."""


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def play(server, body: dict, until: float, made: list[int]) -> None:
    """One player who stays, and changes the world's course now and then."""
    ticket = server.create(**body)
    with server.connect(ticket) as socket:
        talk = server.talk(socket)
        while time.monotonic() < until:
            if body["mode"] == "stepped":
                talk.send("step", step_id=len(made), n=32, actions=[{"held": ["ArrowLeft"]}])
            else:
                talk.send("action", event_id=len(made), held=["ArrowRight"])
            talk.wait_for_frames(32 if body["mode"] == "stepped" else 4)
            made.append(talk.frames[-1][0]["frame_id"])
            if len(made) % 8 == 0:
                talk.send("control", op="seek", frame=made[-1])
            del talk.frames[:], talk.messages[:]
    server.delete(ticket)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [12, pytest.param(3600, marks=pytest.mark.full)])
def test_at_full_slots_memory_threads_and_tasks_stay_as_they_are(server, seconds):
    began = time.monotonic()
    bodies = [{"mode": "stepped", "media": {"codec": "raw"}}, {"mode": "realtime"}]
    made: list[list[int]] = [[], []]
    players = [
        threading.Thread(target=play, args=(server, body, began + seconds, frames))
        for body, frames in zip(bodies, made, strict=True)
    ]
    for player in players:
        player.start()
    time.sleep(seconds / 2)
    assert server.free_slots() == 0 and all(player.is_alive() for player in players)
    middle = resident_mb(), threading.active_count(), tasks(server), open_files()
    time.sleep(max(0.0, began + 0.95 * seconds - time.monotonic()))
    end = resident_mb(), threading.active_count(), tasks(server), open_files()
    for player in players:
        player.join(60)
    frames = [rows[-1] for rows in made]
    assert min(frames) > 3 * seconds, f"hardly anything was played: {frames} frames"
    assert end[0] - middle[0] < GROWTH_MB, f"memory in the middle {middle[0]:.1f} MB, at the end {end[0]:.1f}, {frames}"
    assert all(one <= other for one, other in zip(end[1:], middle[1:], strict=True)), (
        f"(memory, threads, tasks, open files): {middle}, then {end}"
    )
    assert server.service.batcher.engine.recompilations == 0
    server.http.get(f"{server.url}/healthz").raise_for_status()


def tasks(server) -> int:
    """Tasks of the server's event loop."""

    async def count() -> int:
        return len(asyncio.all_tasks())

    return asyncio.run_coroutine_threadsafe(count(), server.service.loop).result(10)
