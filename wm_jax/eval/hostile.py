"""Clients that break every rule at once, and what a server answers them: python -m wm_jax.eval.hostile http://127.0.0.1:8000

`python -m wm_jax.eval.load ... --hostile` plays beside them and says what that costs the players. Each kind goes on until it
is told to stop; what it hears (close codes, statuses) is counted. They cost little themselves: what they send is made once.
"""

import asyncio
import base64
import contextlib
import dataclasses
import json
import signal
import struct
import urllib.error
import urllib.request
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import tyro

from wm_jax.rest import ServerError, request

FLOOD_PER_S = 10_000
HUGE = 100_000_000
GARBAGE = 51
"""Messages that are none, one after the other: of so many the server has had enough."""

SIDE = 12_000
"""Of the picture that would fill 400 MB and travels as a few kilobytes."""


@dataclasses.dataclass(frozen=True)
class HostileConfig:
    """Attack a running server."""

    url: Annotated[str, tyro.conf.Positional]
    """Of the server."""
    seconds: float = 20.0
    """How long; SIGTERM ends it earlier."""
    auth: str | None = None
    """The server's secret, if it has one: these clients are guests who misbehave."""


@dataclasses.dataclass
class Attack:
    """One server under attack.

    Attributes:
      heard: How often each kind of client heard what.
    """

    url: str
    auth: str | None
    heard: Counter[str] = dataclasses.field(default_factory=Counter[str])
    _seats: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict[str, dict[str, Any]])

    def count(self, kind: str, answer: object) -> None:
        self.heard[f"{kind}: {answer}"] += 1

    async def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        return await asyncio.to_thread(request, method, self.url + path, body, self.auth)

    @contextlib.asynccontextmanager
    async def session(
        self, kind: str, mode: str = "realtime", token: str | None = None, **options: Any
    ) -> AsyncIterator[Any]:
        """A connection of a new session that ends with it; how the server closed it, if it did, is counted."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed
        from websockets.typing import Subprotocol

        ticket = await asyncio.to_thread(self._open, mode)
        protocols = [Subprotocol("wm.v1"), Subprotocol("wm.auth." + (token or ticket["token"]))]
        client = None
        try:
            settings = {"compression": None, "close_timeout": 1.0, **options}
            async with connect(ticket["ws_url"], subprotocols=protocols, **settings) as client:
                yield client
        except* (ConnectionClosed, ConnectionError):
            # While we still write, the last words of the server may be lost on their way: TCP promises no more.
            if client is not None and client.protocol.close_rcvd is None:
                self.count(kind, "cut off")
        finally:
            told = None if client is None else client.protocol
            if told is not None and told.close_rcvd is not None and told.close_rcvd_then_sent:  # the server's doing
                self.count(kind, f"closed {told.close_rcvd.code}")
            await asyncio.to_thread(self._leave, ticket)

    def leave_all(self) -> None:
        """Gives back every seat, also those of requests that were under way when their client was told to stop."""
        for ticket in list(self._seats.values()):
            self._leave(ticket)

    def _open(self, mode: str) -> dict[str, Any]:
        ticket = request("POST", f"{self.url}/v1/sessions", {"mode": mode}, self.auth)
        self._seats[ticket["session_id"]] = ticket
        return ticket

    def _leave(self, ticket: dict[str, Any]) -> None:
        with contextlib.suppress(ServerError, OSError):  # the server has ended it already
            address = f"{self.url}/v1/sessions/{ticket['session_id']}"
            request("DELETE", address, None, self.auth or ticket["token"])
        self._seats.pop(ticket["session_id"], None)


def message(payload: bytes, length: int | None = None) -> bytes:
    """A text message as RFC 6455 has it on the wire, masked with zeros; it may claim another length than it has."""
    size = len(payload) if length is None else length
    form = (
        bytes([0x80 | size])
        if size < 126
        else struct.pack(">BH", 0xFE, size)
        if size < 65_536
        else struct.pack(">BQ", 0xFF, size)
    )
    return b"\x81" + form + bytes(4) + payload


def _is_open(client: Any) -> bool:
    """Whether anything can still be written: nothing can once the server has begun to close."""
    from websockets.protocol import State

    return client.state is State.OPEN


async def _read_all(client: Any) -> None:
    """Reads until the server ends the connection: an answer that nobody reads would hide how it ends."""
    async for _ in client:
        pass


async def flood(attack: Attack) -> None:
    """10,000 actions a second."""
    batch = message(json.dumps({"type": "action", "held": []}).encode()) * (FLOOD_PER_S // 100)
    async with attack.session("flood") as client, asyncio.TaskGroup() as group:
        reading = group.create_task(_read_all(client))
        while not reading.done() and _is_open(client):
            client.transport.write(batch)
            await asyncio.sleep(0.01)


async def slow(attack: Attack) -> None:
    """Acknowledges each frame half a second late."""
    async with attack.session("slow") as client:
        while True:
            data = await client.recv()
            if isinstance(data, bytes):
                seq = json.loads(data[4 : 4 + struct.unpack_from("<I", data)[0]])["seq"]
                await asyncio.sleep(0.5)
                await client.send(json.dumps({"type": "frame.ack", "seq": seq}))


async def stalled(attack: Attack) -> None:
    """Asks for more raw frames than fit anywhere, and reads none."""
    step = json.dumps({"type": "step", "step_id": 1, "n": 64})
    async with attack.session("stalled", "stepped") as client:
        client.transport.pause_reading()
        for number in range(8):
            client.transport.write(message(step.replace("1", str(number), 1).encode()))
        await asyncio.sleep(5.0)
        attack.count("stalled", "left after 5 s")
        client.transport.abort()


async def huge(attack: Attack) -> None:
    """100 MB in one message."""
    chunk = bytes(2**20)
    async with attack.session("huge") as client:
        client.transport.write(message(b"", HUGE))
        for _ in range(HUGE // len(chunk)):
            if not _is_open(client):
                break
            client.transport.write(chunk)
            await asyncio.sleep(0.001)
        await _read_all(client)
    await asyncio.sleep(0.2)


async def garbage(attack: Attack) -> None:
    """A wrong token, a foreign page, bytes that are no text, and text that is no message."""
    async with attack.session("wrong token", token="x" * 32) as client:
        await _read_all(client)
    async with attack.session("wrong origin", origin="https://evil.example") as client:
        await _read_all(client)
    async with attack.session("bad UTF-8") as client:
        client.transport.write(message(b"\xff\xfe"))
        await _read_all(client)
    async with attack.session("garbage") as client:
        client.transport.write(message(b"[" * 30_000) * GARBAGE)
        await _read_all(client)
    await asyncio.sleep(0.1)


async def bomb(attack: Attack) -> None:
    """A picture that would burst, and a body that is too long."""
    image = base64.b64encode(_png(SIDE)).decode()
    for kind, body in (("bomb", {"init": {"image": image}}), ("long body", {"model": "x" * 2_000_000})):
        try:
            await attack.ask("POST", "/v1/sessions", body)
            attack.count(kind, "taken")
        except ServerError as error:
            attack.count(kind, str(error).split(": ", 1)[1][:3])
        except OSError as error:  # refused before all of it was sent
            attack.count(kind, type(error).__name__)
    await asyncio.sleep(0.1)


async def burglar(attack: Attack) -> None:
    """Paths that lead out of the page's folder."""
    for path in ("/page/..%2fprotocol.py", "/page/%2e%2e/protocol.py", "/v1/sessions/..%2f..%2fetc%2fpasswd"):
        attack.count("path traversal", await asyncio.to_thread(_status, attack.url + path))
    await asyncio.sleep(0.1)


KINDS: tuple[Callable[[Attack], Awaitable[None]], ...] = (flood, slow, stalled, huge, garbage, bomb, burglar)
SEATS = 5
"""How many of them hold a slot at once: the first ones."""


def _png(side: int) -> bytes:
    """A sound PNG, black, one bit a pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


async def attack_for(attack: Attack, seconds: float) -> None:
    """All kinds at once, until the time is up or SIGTERM comes."""
    tasks = [asyncio.create_task(_again_and_again(kind, attack)) for kind in KINDS]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    told = asyncio.create_task(stop.wait())
    await asyncio.wait([told, *tasks], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in (told, *tasks):
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


async def _again_and_again(kind: Callable[[Attack], Awaitable[None]], attack: Attack) -> None:
    while True:
        await kind(attack)


def main() -> None:
    config = tyro.cli(HostileConfig, description=__doc__)
    attack = Attack(config.url.rstrip("/"), config.auth)
    print("begins", flush=True)
    try:
        asyncio.run(attack_for(attack, config.seconds))
    finally:
        attack.leave_all()
    print(json.dumps(dict(sorted(attack.heard.items()))), flush=True)


if __name__ == "__main__":
    main()
