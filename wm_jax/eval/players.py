"""Clients that play a served world at once, each in a session of its own, and what they see of it.

They speak wm.v1 from its text alone and show no frame: what is measured is the server, and their own cost is small.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import math
import random
import struct
import time
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from wm_jax.eval.progress import progress
from wm_jax.rest import fetch_text, request

QUIET_S = 30.0
"""A run shorter than this shows no progress."""

SAMPLES, SAMPLE_S = 100, 2.0
"""How often the server's process is looked at in a run, and the least seconds between: looking costs it a millisecond."""


@dataclasses.dataclass(frozen=True)
class Visit:
    """How many clients play, and how.

    Attributes:
      players: Clients at once.
      seconds: How long each counts what it sees.
      warmup: Seconds played before.
      auth: The server's secret, if it has one.
    """

    players: int
    seconds: float
    warmup: float
    auth: str | None = None


@dataclasses.dataclass
class Played:
    """What one client saw; times are seconds of `time.perf_counter()`.

    Attributes:
      first_frame_s: From the request for a session to its first frame.
      arrived_s: When each frame came, after the warm-up.
      due_s: When each was due on the session's media clock, from any one moment on.
      latency_s: From an action to the first frame that obeys it.
      step_ms: What the device took for each frame, as its header says.
      dropped: Frames the server dropped because this client did not keep up.
    """

    first_frame_s: float = 0.0
    arrived_s: list[float] = dataclasses.field(default_factory=list[float])
    due_s: list[float] = dataclasses.field(default_factory=list[float])
    latency_s: list[float] = dataclasses.field(default_factory=list[float])
    step_ms: list[float] = dataclasses.field(default_factory=list[float])
    dropped: int = 0


async def play(url: str, visit: Visit, seed: int, start: asyncio.Event) -> Played:
    """One player: comes when `start` is set, presses random keys, and leaves."""
    from websockets.asyncio.client import connect
    from websockets.typing import Subprotocol

    await start.wait()
    played, began = Played(), time.perf_counter()
    ticket = await asyncio.to_thread(request, "POST", f"{url}/v1/sessions", {"init": {"seed": seed}}, visit.auth)
    protocols = [Subprotocol("wm.v1"), Subprotocol(f"wm.auth.{ticket['token']}")]
    try:
        if ticket["status"] == "queued":
            raise RuntimeError(f"{url} has fewer free slots than there are players; start it with more --slots")
        async with connect(ticket["ws_url"], subprotocols=protocols, max_size=None, compression=None) as client:
            created = json.loads(await client.recv())
            codes = [key["code"] for key in created["session"]["keys"]]
            pressed: dict[int, float] = {}
            presser = asyncio.create_task(_press(client, codes, pressed, seed))
            try:
                await _watch(client, played, pressed, began, visit)
            finally:
                presser.cancel()
    finally:
        token = visit.auth or ticket["token"]
        with contextlib.suppress(OSError, RuntimeError):
            await asyncio.to_thread(request, "DELETE", f"{url}/v1/sessions/{ticket['session_id']}", None, token)
    return played


async def _press(client: Any, codes: list[str], pressed: dict[int, float], seed: int) -> None:
    """Holds a random key, another one every 0.1 to 0.3 s."""
    rng = random.Random(seed)
    for event in itertools.count(1):
        await asyncio.sleep(rng.uniform(0.1, 0.3))
        pressed[event] = time.perf_counter()
        await client.send(json.dumps({"type": "action", "event_id": event, "held": [rng.choice(codes)]}))


async def _watch(client: Any, played: Played, pressed: dict[int, float], began: float, visit: Visit) -> None:
    counted_from, dropped_before = None, 0
    while True:
        data = await client.recv()
        now = time.perf_counter()
        if isinstance(data, str):
            message = json.loads(data)
            if message["type"] == "error":
                raise RuntimeError(f"the server says {message['code']}: {message['message']}")
            continue
        header = json.loads(data[4 : 4 + struct.unpack_from("<I", data)[0]])
        await client.send(json.dumps({"type": "frame.ack", "seq": header["seq"]}))
        if counted_from is None:
            played.first_frame_s = now - began
            counted_from = now + visit.warmup
        if now < counted_from:
            dropped_before = header["dropped"]
            pressed.clear()
            continue
        played.arrived_s.append(now)
        played.due_s.append(1e-3 * header["pts_ms"])
        played.step_ms.append(header["t"]["step"])
        played.dropped = header["dropped"] - dropped_before
        last = header.get("last_event_id") or 0
        obeyed = [event for event in pressed if event <= last]  # those too that a later one overtook
        played.latency_s += [now - pressed.pop(event) for event in obeyed]
        if now > counted_from + visit.seconds:
            return


@dataclasses.dataclass
class Server:
    """How a server's process stood while it was played, a sample every few seconds.

    Attributes:
      at_s: When each was taken, `time.perf_counter()`.
      memory_mb: Resident memory.
      files: Open files and sockets.
    """

    at_s: list[float] = dataclasses.field(default_factory=list[float])
    memory_mb: list[float] = dataclasses.field(default_factory=list[float])
    files: list[float] = dataclasses.field(default_factory=list[float])

    def sample(self, url: str, auth: str | None) -> None:
        """Takes what `GET /metrics` says of the process; nothing where it does not run on Linux, or does not answer."""
        with contextlib.suppress(OSError, RuntimeError):
            told = text_string_to_metric_families(fetch_text(f"{url}/metrics", auth))
            known = {one.name: one.value for metric in told for one in metric.samples}
            if "process_resident_memory_bytes" in known and "process_open_fds" in known:
                self.at_s.append(time.perf_counter())
                self.memory_mb.append(1e-6 * known["process_resident_memory_bytes"])
                self.files.append(known["process_open_fds"])


async def watch_over(url: str, visit: Visit, server: Server) -> None:
    """Looks at the process, and shows how far the run is, until it is cancelled."""
    began, until = time.perf_counter(), visit.warmup + visit.seconds
    with progress(quiet=until < QUIET_S) as bar:
        task = bar.add_task(f"{visit.players} players", total=until)
        while True:
            await asyncio.to_thread(server.sample, url, visit.auth)
            await asyncio.sleep(max(SAMPLE_S, until / SAMPLES))
            bar.update(task, completed=min(until, time.perf_counter() - began))


async def play_watched(url: str, visit: Visit) -> tuple[list[Played], Server]:
    """All players at once on one server, and how its process stands meanwhile."""
    server = Server()
    watcher = asyncio.create_task(watch_over(url, visit, server))
    try:
        played = await play_all([url], visit)
    finally:
        watcher.cancel()
    server.sample(url, visit.auth)
    return played, server


async def play_all(urls: list[str], visit: Visit) -> list[Played]:
    """All players at once, spread over these servers."""
    start = asyncio.Event()
    tasks = [asyncio.create_task(play(urls[n % len(urls)], visit, n, start)) for n in range(visit.players)]
    start.set()
    return await asyncio.gather(*tasks)


def repeats(one: Played, period_s: float) -> int:
    """How often a screen of this period shows a frame again, for want of the next one.

    It shows each one period after the most punctual one so far would have come, and its clock stands while it waits: a tick that
    the server skips is one repeat, and makes none of the frames that follow late.
    """
    count, clock = 0, one.arrived_s[0] - one.due_s[0]
    for arrived, due in zip(one.arrived_s, one.due_s, strict=True):
        behind = arrived - due
        waits = max(0, math.ceil((behind - clock) / period_s) - 1)
        count += waits
        clock = min(clock + waits * period_s, behind)
    return count


def rate(one: Played) -> float:
    """Frames a second."""
    return (len(one.arrived_s) - 1) / (one.arrived_s[-1] - one.arrived_s[0])
