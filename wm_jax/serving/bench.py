"""How fast a served world reaches a player: python -m wm_jax.serving.bench worlds/coinrun (or http://host:port).

Plays as a client over the WebSocket, pressing keys at random moments, and prints frames a second, the gaps between
frames, and key-to-pixel latency on the client's own clock. Given a folder it starts a server of its own and measures
the way from its start to the first frame too.
"""

import asyncio
import contextlib
import dataclasses
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from wm_jax.serving.client import Client, ServerError, open_session, request

SERVE = Path(__file__).parents[2] / "serve.py"
BARS = {"fps": ">= 30", "gap_p99_ms": "< 75", "key_to_pixel_p50_ms": "< 60", "host_us": "< 200"}


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What is measured.

    Attributes:
      target: A world or run folder, or the URL of a running server.
      seconds: How long to play.
      warmup: Seconds played before counting.
      slots: Slots of the server that is started for a folder.
      players: Clients at once, each in its own session.
      auth: The server's secret, if it has one.
      json: Print one JSON object instead of a table.
    """

    target: Annotated[str, tyro.conf.Positional]
    seconds: float = 20.0
    warmup: float = 3.0
    slots: int = 1
    players: int = 1
    auth: str | None = None
    json: bool = False


@dataclasses.dataclass
class Tally:
    """What one client saw."""

    arrived_s: list[float] = dataclasses.field(default_factory=list[float])
    latency_s: list[float] = dataclasses.field(default_factory=list[float])
    dropped: int = 0


async def play(client: Client, seconds: float, warmup: float, seed: int) -> Tally:
    """Plays for a while; only what comes after the warm-up is counted."""
    tally, pressed = Tally(), dict[int, float]()
    began = time.perf_counter()
    presser = asyncio.create_task(_press(client, pressed, seed))
    dropped_before = 0
    try:
        async for header, _ in client.frames():
            now = time.perf_counter()
            if now - began < warmup:
                dropped_before = header.dropped
                pressed.clear()
                continue
            tally.arrived_s.append(now)
            tally.dropped = header.dropped - dropped_before
            if isinstance(header.last_event_id, int) and header.last_event_id in pressed:
                tally.latency_s.append(now - pressed.pop(header.last_event_id))
            if now - began > warmup + seconds:
                return tally
    finally:
        presser.cancel()
    return tally


async def _press(client: Client, pressed: dict[int, float], seed: int) -> None:
    """Holds a random key, another one every 0.1 to 0.3 s."""
    rng, codes = random.Random(seed), [key["code"] for key in client.created["session"]["keys"]]
    event = 0
    while True:
        await asyncio.sleep(rng.uniform(0.1, 0.3))
        event += 1
        pressed[event] = time.perf_counter()
        await client.send("action", event_id=event, held=[rng.choice(codes)], client_ts=1e3 * pressed[event])


async def measure(url: str, config: BenchConfig) -> dict[str, float]:
    """Plays with all clients at once; the numbers of all together, the slowest client's frames a second."""

    async def one(seed: int) -> Tally:
        async with open_session(url, config.auth, init={"seed": seed}) as client:
            return await play(client, config.seconds, config.warmup, seed)

    tallies = await asyncio.gather(*(one(seed) for seed in range(config.players)))
    gaps = 1e3 * np.concatenate([np.diff(tally.arrived_s) for tally in tallies])
    latency = 1e3 * np.concatenate([np.asarray(tally.latency_s) for tally in tallies])
    health = await asyncio.to_thread(request, "GET", f"{url}/healthz", None, config.auth)
    return {
        "fps": min((len(tally.arrived_s) - 1) / (tally.arrived_s[-1] - tally.arrived_s[0]) for tally in tallies),
        "gap_p50_ms": float(np.percentile(gaps, 50)),
        "gap_p99_ms": float(np.percentile(gaps, 99)),
        "gap_max_ms": float(gaps.max()),
        "key_to_pixel_p50_ms": float(np.percentile(latency, 50)),
        "key_to_pixel_p95_ms": float(np.percentile(latency, 95)),
        "dropped": float(sum(tally.dropped for tally in tallies)),
        **{name: health[name] for name in ("step_ms", "launch_ms", "encode_ms", "host_us", "missed_ticks")},
    }


@contextlib.contextmanager
def serving(folder: str, slots: int) -> Iterator[str]:
    """`serve.py` of this world, up and answering; its URL. What it prints goes to our standard error."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(SERVE), folder, "--port", str(port), "--slots", str(slots)]
    process = subprocess.Popen(command, stdout=sys.stderr)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    """Returns as soon as the server accepts sessions; it may still be compiling."""
    while process.poll() is None:
        try:
            request("GET", f"{url}/healthz")
            return
        except (OSError, ServerError):
            time.sleep(0.02)
    raise ServerError(f"{SERVE.name} ended with exit status {process.returncode}; its last lines say why")


async def first_frame(url: str) -> None:
    """Returns when a new session has shown its first frame."""
    async with open_session(url) as client:
        async for _ in client.frames():
            return


def run(config: BenchConfig) -> dict[str, float]:
    """All the numbers."""
    if config.target.startswith(("http://", "https://")):
        return asyncio.run(measure(config.target.rstrip("/"), config))
    began = time.perf_counter()
    with serving(config.target, max(config.slots, config.players)) as url:
        asyncio.run(first_frame(url))
        start_s = time.perf_counter() - began
        return {"start_to_first_frame_s": start_s, **asyncio.run(measure(url, config))}


def show(numbers: dict[str, float]) -> str:
    """The numbers as a table, each beside the bar it has to meet."""
    return "\n".join(f"{name:24} {value:10.2f}   {BARS.get(name, '')}".rstrip() for name, value in numbers.items())


def main() -> None:
    config = tyro.cli(BenchConfig, description=__doc__)
    try:
        numbers: dict[str, Any] = run(config)
    except (OSError, ServerError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(numbers) if config.json else show(numbers))


if __name__ == "__main__":
    main()
