"""One served tiny world for all tests of this room: a real uvicorn server on a free port, two slots."""

import dataclasses
import json
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect

import wm_jax as wm
from wm_jax.serving.app import Service, bind, make_app, make_server
from wm_jax.serving.config import ServeConfig


@dataclasses.dataclass
class Server:
    """A running server, and a client that knows only the text of wm.v1: nothing of ours but JSON, struct, websockets."""

    url: str
    world: wm.World
    params: Any
    prompts: wm.Prompt
    service: Service
    http: httpx.Client
    tickets: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def create(self, **body: Any) -> dict[str, Any]:
        answer = self.http.post(f"{self.url}/v1/sessions", json=body)
        assert answer.status_code == 201, answer.text
        self.tickets.append(answer.json())
        return answer.json()

    def connect(self, ticket: dict[str, Any], token: str | None = None, **options: Any) -> ClientConnection:
        protocols = ["wm.v1", "wm.auth." + (token or ticket["token"])]
        return connect(ticket["ws_url"], subprotocols=protocols, compression=None, **options)

    def talk(self, socket: ClientConnection, **options: Any) -> "Talk":
        return Talk(socket, **options)

    def delete(self, ticket: dict[str, Any]) -> None:
        self.http.delete(f"{self.url}/v1/sessions/{ticket['session_id']}")

    def free_slots(self) -> int:
        return self.http.get(f"{self.url}/v1/models").json()["models"][0]["limits"]["slots_free"]


@dataclasses.dataclass
class Talk:
    """A socket and all that came over it."""

    socket: ClientConnection
    messages: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    frames: list[tuple[dict[str, Any], bytes]] = dataclasses.field(default_factory=list)
    acknowledges: bool = True

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def receive(self, timeout: float = 20.0) -> None:
        data = self.socket.recv(timeout)
        if isinstance(data, str):
            self.messages.append(json.loads(data))
            return
        (size,) = struct.unpack_from("<I", data)
        header = json.loads(data[4 : 4 + size])
        self.frames.append((header, data[4 + size :]))
        if self.acknowledges:
            self.send("frame.ack", seq=header["seq"])

    def wait_for(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next message of this kind with these fields."""
        seen = len(self.messages)
        while True:
            for message in self.messages[seen:]:
                if message["type"] == kind and fields.items() <= message.items():
                    return message
            seen = len(self.messages)
            self.receive()

    def wait_for_frames(self, count: int) -> list[tuple[dict[str, Any], bytes]]:
        """The next frames, that many."""
        before = len(self.frames)
        while len(self.frames) < before + count:
            self.receive()
        return self.frames[before : before + count]


def tiny_prompts() -> wm.Prompt:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (3, 2, 32, 32, 3), dtype=np.uint8)
    return wm.Prompt(frames, wm.Controls(np.zeros((3, 2, 4), bool)))


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    world, params = wm.tiny_world(0)
    config = ServeConfig(port=0, slots=2, drain_s=0.2, max_step_frames=64)
    app = make_app(config, world, params, tiny_prompts())
    with bind(config) as sock:
        uvicorn = make_server(config, app)
        thread = threading.Thread(target=uvicorn.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            with httpx.Client() as http:
                wait_until_ready(url, http)
                yield Server(url, world, params, tiny_prompts(), app.state.service, http)
        finally:
            uvicorn.should_exit = True
            thread.join(30)


def wait_until_ready(url: str, http: httpx.Client, timeout_s: float = 240.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            answer = http.get(f"{url}/readyz").json()
            assert answer["status"] != "failed", answer
            if answer["ready"]:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise TimeoutError(f"{url} was not ready after {timeout_s} s")


@pytest.fixture(autouse=True)
def free_slots(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test seated is gone after it, also when it failed."""
    yield
    if "server" in request.fixturenames:
        server: Server = request.getfixturevalue("server")
        while server.tickets:
            server.delete(server.tickets.pop())


@pytest.fixture
def talk(server: Server, request: pytest.FixtureRequest) -> Iterator[Talk]:
    """A connected session; what it is created with comes from an indirect parameter."""
    ticket = server.create(**getattr(request, "param", {}))
    with server.connect(ticket) as socket:
        yield Talk(socket)
