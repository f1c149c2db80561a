"""Served tiny worlds for all tests of this room: real uvicorn servers on free ports, two slots each."""

import contextlib
import dataclasses
import functools
import json
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import jax
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

import wm_jax as wm
from wm_jax.checkpoint import save_world
from wm_jax.ports.open_oasis import OasisWorld
from wm_jax.serving.app import make_app
from wm_jax.serving.config import ServeConfig
from wm_jax.serving.replay import Film
from wm_jax.serving.server import bind, make_server
from wm_jax.serving.service import Service
from wm_jax.types import ControlSpace, KeyBinding, Params
from wm_jax.world import Playable

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclasses.dataclass
class Server:
    """A running server, and a client that knows only the text of wm.v1: nothing of ours but JSON, struct, websockets."""

    url: str
    world: Playable[Any]
    params: Any
    prompts: wm.Prompt
    service: Service
    http: httpx.Client
    stop: Callable[[], None]
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
        seen, deadline = len(self.messages), time.monotonic() + 60
        while time.monotonic() < deadline:
            for message in self.messages[seen:]:
                if message["type"] == kind and fields.items() <= message.items():
                    return message
            seen = len(self.messages)
            self.receive()
        raise TimeoutError(f"no {kind} with {fields} in 60 s, but {[message['type'] for message in self.messages]}")

    def wait_for_frames(self, count: int) -> list[tuple[dict[str, Any], bytes]]:
        """The next frames, that many."""
        before = len(self.frames)
        while len(self.frames) < before + count:
            self.receive()
        return self.frames[before : before + count]


@contextlib.contextmanager
def playing_on(talk: Talk) -> Iterator[None]:
    """Somebody who plays meanwhile, ten frames at least, and never waits long for one."""
    talk.wait_for_frames(1)
    came, is_over = [time.monotonic()], threading.Event()

    def play() -> None:
        while len(came) <= 10 or not is_over.is_set():
            talk.wait_for_frames(1)
            came.append(time.monotonic())

    player = threading.Thread(target=play)
    player.start()
    try:
        yield
    finally:
        is_over.set()
        player.join(60)
    assert len(came) > 10 and not player.is_alive(), "its connection is gone"
    # Some thirty frames: a machine that is busy with other tests misses a few, a server that is held up misses all.
    assert max(np.diff(came)) < 3.0, f"seconds from frame to frame: {np.diff(came).tolist()}"


def closing_code(socket, timeout: float = 20.0) -> tuple[int, list[dict]]:
    """How the server ended the connection, and its last messages."""
    messages = []
    try:
        while True:
            data = socket.recv(timeout)
            messages += [json.loads(data)] if isinstance(data, str) else []
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        return closed.rcvd.code, messages


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny world inside a run's folder, with prompts like the served one's, so that it is compiled already."""
    run = tmp_path_factory.mktemp("run")
    world, params = wm.tiny_world(0)
    prompts = tiny_prompts()
    assert prompts.controls is not None
    given = {"frames": np.asarray(prompts.frames), "keys": np.asarray(prompts.controls.keys)}
    save_world(run / "world", world.config, params, given)
    return run


@pytest.fixture
def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def tiny_prompts(keys: int = 4) -> wm.Prompt:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (3, 2, 32, 32, 3), dtype=np.uint8)
    return wm.Prompt(frames, wm.Controls(np.zeros((3, 2, keys), bool)))


@contextlib.contextmanager
def serving(world: Playable[Any], params: Any, prompts: wm.Prompt, **settings: Any) -> Iterator[Server]:
    """A server of this world, ready to play; stopped as by a signal, its players told."""
    config = ServeConfig(
        **{
            "port": 0,
            "slots": 2,
            "ladder": False,
            "drain_s": 0.2,
            "max_step_frames": 64,
            "history": 16,
            "queue": 0,
            **settings,
        }
    )
    app = make_app(config, world, params, prompts)
    with bind(config) as sock:
        uvicorn = make_server(config, app)
        thread = threading.Thread(target=uvicorn.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            # The server lets go of a silent connection after 5 s: one that waits as long may be closed while it is used.
            with httpx.Client(timeout=30, limits=httpx.Limits(keepalive_expiry=2)) as http:
                wait_until_ready(url, http)
                service: Service = app.state.service
                assert service.loop is not None
                yield Server(url, world, params, prompts, service, http, functools.partial(uvicorn.drain, service.loop))
        finally:
            uvicorn.should_exit = True
            thread.join(30)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with serving(*wm.tiny_world(0), tiny_prompts()) as served:
        yield served


# The keys of Minecraft, as they were recorded for the worlds that dream it.
MINECRAFT = (
    *(("KeyW", "forward"), ("KeyS", "back"), ("KeyA", "left"), ("KeyD", "right")),
    *(("Space", "jump"), ("ShiftLeft", "sneak"), ("ControlLeft", "sprint")),
    # R is a shortcut of the page where the world has no such key.
    *(("Mouse0", "attack"), ("Mouse2", "use"), ("Mouse1", "pick item"), ("KeyQ", "drop"), ("KeyR", "swap hands")),
    *(("KeyE", "inventory"), ("Escape", "menu")),
    *((f"Digit{slot}", f"hotbar {slot}") for slot in range(1, 10)),
)


@pytest.fixture(scope="session")
def mouse_server() -> Iterator[Server]:
    """A world with a mouse and 23 keys; it does not listen to the mouse, but is told of it."""
    config = wm.tiny_world(0)[0].config
    keys = tuple(KeyBinding(code, label) for code, label in MINECRAFT)
    world = wm.World(dataclasses.replace(config, name="tiny_craft", controls=ControlSpace(keys, has_mouse=True)))
    with serving(world, world.init(jax.random.key(0)), tiny_prompts(len(keys))) as served:
        yield served


@pytest.fixture(scope="session")
def oasis_server(small_oasis: tuple[OasisWorld, Params]) -> Iterator[Server]:
    """A published world, small: it begins with noise, or with the image that a player gives."""
    with serving(*small_oasis, wm.Prompt()) as served:
        yield served


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline, "waited for 20 s"
        time.sleep(0.01)


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
    """Whatever a test seated is gone after it, also when it failed; a page that was closed may have left sessions too."""
    yield
    for name in {"server", "mouse_server", "oasis_server"}.intersection(request.fixturenames):
        server: Server = request.getfixturevalue(name)
        server.tickets.clear()
        for session_id in list(server.service.lobby._places):
            server.http.delete(f"{server.url}/v1/sessions/{session_id}")


@pytest.fixture
def films_go_on(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until this is set no film has more than four frames: whoever makes one is still at it when players come."""
    going_on, write = threading.Event(), Film.write

    def waiting(self: Film, frame: np.ndarray) -> None:
        if self.frames >= 4:
            going_on.wait(20)
        write(self, frame)

    monkeypatch.setattr(Film, "write", waiting)
    return going_on


@pytest.fixture
def even_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The media clock keeps its rate however many ticks a busy machine misses; ask for it before the first player."""
    monkeypatch.setattr("wm_jax.serving.pace.MISSED", 1.0)


@pytest.fixture
def talk(server: Server, request: pytest.FixtureRequest) -> Iterator[Talk]:
    """A connected session; what it is created with comes from an indirect parameter."""
    ticket = server.create(**getattr(request, "param", {}))
    with server.connect(ticket) as socket:
        yield Talk(socket)


@pytest.fixture
def told(mouse_server: Server, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[float]]]:
    """What the engine is told of the only player, frame by frame: codes of held keys, and the mouse."""
    rows: list[tuple[list[str], list[float]]] = []
    engine, codes = mouse_server.service.batcher.engine, mouse_server.world.config.controls.codes
    step = engine.step

    def listen(controls: wm.Controls, active: np.ndarray, chosen: Sequence[int] | None = None) -> Any:
        assert controls.mouse is not None and controls.mouse.dtype == np.float32
        for row in np.flatnonzero(active):
            held = [code for code, is_held in zip(codes, controls.keys[row], strict=True) if is_held]
            rows.append((held, controls.mouse[row].tolist()))
        return step(controls, active, chosen)

    monkeypatch.setattr(engine, "step", listen)
    return rows


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = CHROMIUM or playwright.chromium.executable_path
        assert Path(path).exists(), (
            "no Chromium: not on PATH, and playwright has none; `make chromium` (or `.venv/bin/playwright install "
            "--no-shell chromium`) brings one, -m 'not browser' leaves these tests out"
        )
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page of a server and waits until it plays; afterwards no page may have complained.

    `script` runs in the page before its own, `address` is what follows the server's.
    """
    pages: list[Any] = []

    def open_one(server: Server, script: str = "", address: str = "", **options: Any) -> Any:
        opened = browser.new_page(**{"viewport": {"width": 1280, "height": 800}, **options})
        opened.set_default_timeout(60_000)
        opened.complaints = []
        opened.on("console", lambda said: opened.complaints.append(said.text) if said.type == "error" else None)
        opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
        pages.append(opened)
        opened.add_init_script(script)
        opened.goto(server.url + address)
        opened.wait_for_function("window.__wm?.frames > 10")
        return opened

    yield open_one
    for opened in pages:
        opened.close()
    assert [opened.complaints for opened in pages] == [[]] * len(pages)
