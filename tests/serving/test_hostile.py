"""What a client may throw at a server: every answer is typed, every end has a code, and nobody else loses his place."""

import base64
import contextlib
import http.client
import io
import json
import os
import socket
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

import wm_jax as wm
from tests.serving.conftest import Server, Talk, closing_code, playing_on, serving, tiny_prompts, wait_until
from wm_jax.eval import hostile
from wm_jax.serving import server as server_module
from wm_jax.serving.codec import decode_image
from wm_jax.serving.protocol import CloseCode, ErrorCode
from wm_jax.serving.server import STALLED_S

KEYS = ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown")
KINDS = ("action", "control", "step", "session.update", "frame.ack", "ping", "pong", "session.snapshot", "prompt.set")
ANSWERS = {"session.created", "status", "ack", "error", "pong", "session.ended"}


@pytest.mark.parametrize("text", [b"\xff\xfe", b'{"type": "action", "held": ["\xc3\x28"]}', b"\xed\xa0\x80"])
def test_text_that_is_no_utf8_ends_the_connection_and_not_the_session(server, text):
    ticket = server.create()
    with server.connect(ticket) as socket:
        token = server.talk(socket).wait_for("session.created")["resume_token"]
        socket.send(text, text=True)
        assert closing_code(socket)[0] == 1007, "what RFC 6455 has for it"
    with server.connect(ticket, token) as socket:
        server.talk(socket).wait_for_frames(1)


def test_a_hundred_megabytes_are_cut_off_and_the_neighbour_plays_on(server):
    tickets = [server.create(), server.create()]
    with (
        server.connect(tickets[0]) as greedy,
        server.connect(tickets[1]) as lively,
        playing_on(server.talk(lively)),
    ):
        # The head alone claims them. Who wrote them all would find the connection reset, its last words perhaps lost.
        greedy.socket.sendall(hostile.message(b"", 100_000_000))
        assert closing_code(greedy)[0] == 1009


def test_a_long_message_in_many_small_pieces_is_cut_off_too(server):
    pieces = [Frame(Opcode.TEXT, b"x" * 1000, fin=False), *[Frame(Opcode.CONT, b"x" * 1000, fin=False)] * 65]
    with server.connect(server.create()) as socket:
        # At once, and of the last the head alone: who goes on writing would find the connection closed.
        socket.socket.sendall(b"".join(piece.serialize(mask=True) for piece in pieces)[:-1000])
        assert closing_code(socket)[0] == 1009


def sockets() -> dict[str, int]:
    """Every open socket of this process, the server's among them: its inode and a descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            found[os.readlink(f"/proc/self/fd/{name}")] = int(name)
    return {inode: number for inode, number in found.items() if inode.startswith("socket:")}


def server_end(client: socket.socket) -> tuple[str, socket.socket]:
    """The server's socket of this connection: its inode, and a copy to be closed."""
    for inode, number in sockets().items():
        with contextlib.suppress(OSError):  # closed meanwhile
            end = socket.socket(fileno=os.dup(number))
            with contextlib.suppress(OSError):  # it listens
                if end.getpeername() == client.getsockname():
                    return inode, end
            end.close()
    raise AssertionError("nobody is connected to this socket")


def enter(client: socket.socket, server: Server, ticket: dict[str, Any]) -> None:
    """Opens a session's WebSocket by hand: whoever uses a library answers pings, and reads."""
    client.settimeout(20)
    client.connect(("127.0.0.1", urlsplit(server.url).port))
    client.sendall(
        f"GET {urlsplit(ticket['ws_url']).path} HTTP/1.1\r\nHost: {urlsplit(server.url).netloc}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
        f"{base64.b64encode(bytes(16)).decode()}\r\nSec-WebSocket-Protocol: wm.v1, wm.auth.{ticket['token']}\r\n\r\n".encode()
    )
    assert client.recv(12) == b"HTTP/1.1 101"


def test_who_answers_no_ping_is_cut_off_and_the_session_waits(monkeypatch):
    monkeypatch.setattr(server_module, "PING_S", 0.2)
    monkeypatch.setattr(server_module, "STALLED_S", 0.4)
    with serving(*wm.tiny_world(0), tiny_prompts()) as pinging, socket.socket() as client:
        ticket = pinging.create()
        enter(client, pinging, ticket)
        said = b"".join(iter(lambda: client.recv(65_536), b""))
        assert said.endswith(b"\x03\xf3keepalive ping timeout"), "1011"
        place = pinging.service.lobby.find(ticket["session_id"])
        wait_until(lambda: place.connection is None)
        assert place.ended is None and pinging.free_slots() == 1


def test_who_stops_reading_is_cut_off_and_leaves_no_socket(server):
    ticket = server.create(mode="stepped", media={"codec": "raw"}, linger_s=0)
    place = server.service.lobby.find(ticket["session_id"])
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        enter(client, server, ticket)
        client.sendall(hostile.message(json.dumps({"type": "step", "step_id": 1, "n": 64}).encode()))
        wait_until(lambda: place.session.frames > 2)
        inode, end = server_end(client)
        assert inode in sockets() and place.connection is not None
        with end:
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1e3 * STALLED_S
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 200)
        wait_until(lambda: inode not in sockets())
        wait_until(lambda: place.ended == "connection lost" and server.free_slots() == 2)


@pytest.mark.parametrize(
    "path",
    ["/page/../protocol.py", "/page/%2e%2e/protocol.py", "/page/..%2fprotocol.py", "/page//etc/passwd", "/../serve.py",
     "/page/%00", "/page/..\\protocol.py", "/v1/sessions/..%2f..%2fprotocol.py", "/v1/models/..%2f..%2fetc%2fpasswd"],
)  # fmt: skip
def test_no_path_leads_out_of_the_page(server, path):
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    try:
        connection.request("GET", path)  # as it stands: other clients tidy a path up before they send it
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    assert answer.status in (400, 404)
    assert json.loads(body)["type"] == "error" and json.loads(body)["code"] in set(ErrorCode)


def bomb(side: int, text_mb: int = 0) -> bytes:
    """A sound PNG of a few kilobytes that is a large picture, or carries a long comment."""
    note, buffer = PngInfo(), io.BytesIO()
    if text_mb:
        note.add_itxt("comment", "x" * (text_mb * 2**20), zip=True)
    Image.new("1", (side, side)).save(buffer, "png", pnginfo=note)
    return buffer.getvalue()


@pytest.mark.parametrize(("side", "text_mb", "says"), [(12_000, 0, "12000x12000"), (32, 64, "too large")])
def test_a_picture_that_would_burst_is_not_decoded(server, monkeypatch, side, text_mb, says):
    def decode(*_) -> None:
        raise AssertionError("its pixels are decoded")

    monkeypatch.setattr(PngImageFile, "load", decode)
    data = bomb(side, text_mb)
    assert len(data) < 80_000
    image = base64.b64encode(data).decode()
    answer = server.http.post(f"{server.url}/v1/sessions", json={"init": {"image": image}})
    assert (answer.status_code, answer.json()["code"]) == (422, "wrong_image")
    assert says in answer.json()["message"]


def sound_images() -> list[bytes]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8))
    buffers = [io.BytesIO(), io.BytesIO()]
    picture.save(buffers[0], "png")
    picture.save(buffers[1], "jpeg")
    return [buffer.getvalue() for buffer in buffers]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_broken_picture_is_a_picture_or_no_picture_and_never_a_crash(data):
    image = bytearray(data.draw(st.sampled_from(sound_images())))
    for _ in range(data.draw(st.integers(0, 4))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    kept = bytes(image[: data.draw(st.integers(0, len(image)))])
    try:
        assert decode_image(kept, (8, 8)).shape == (8, 8, 3)
    except ValueError as error:
        assert str(error)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
fields = {
    "held": st.lists(st.sampled_from(KEYS), max_size=4),
    "raw": st.lists(st.floats(0, 1), min_size=4, max_size=4),
    "mouse": st.lists(st.floats(), max_size=3),
    "op": st.sampled_from(["pause", "resume", "reset", "seek"]),
    "frame": st.integers(-1, 5),
    "seed": st.integers(0, 3),
    "seq": st.integers(-1, 5),
    "at": st.just("next") | st.integers(0, 50),
    "n": st.integers(0, 3) | st.integers(65),
    "step_id": st.integers(0, 2) | st.text(max_size=3),
    "actions": st.lists(st.lists(st.sampled_from(KEYS)), max_size=3),
    "source": st.sampled_from(["dream", "real"]),
    "client_ts": st.floats(),
    "event_id": st.integers(0, 9) | st.text(max_size=70),
}
nearly = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS)}, optional={name: known | anything for name, known in fields.items()}
)
thrown = st.one_of(st.binary(max_size=200), st.text(max_size=50), anything.map(json.dumps), nearly.map(json.dumps))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mode=st.sampled_from(["realtime", "stepped"]), messages=st.lists(thrown | nearly.map(json.dumps), max_size=12))
def test_whatever_is_sent_the_answer_is_typed(server: Server, mode, messages):
    ticket = server.create(mode=mode, media={"codec": "raw"})
    with server.connect(ticket) as socket:
        talk = Talk(socket)
        try:
            for message in messages:
                socket.send(message)
            talk.send("ping", event_id="the last one")
            talk.wait_for("pong", event_id="the last one")
        except ConnectionClosed as closed:
            assert closed.rcvd is not None and closed.rcvd.code in set(CloseCode) - {CloseCode.SERVER_FAILED}
    assert {message["type"] for message in talk.messages} <= ANSWERS
    codes = {message["code"] for message in talk.messages if message["type"] == "error"}
    assert codes <= set(ErrorCode) - {ErrorCode.SERVER_FAILED, ErrorCode.ENGINE_FAILED}
    server.delete(ticket)


def test_and_after_all_of_that_the_server_plays(server):
    assert server.service.batcher.stage.is_ready and server.free_slots() == 2
    ticket = server.create()
    with server.connect(ticket) as socket:
        server.talk(socket).wait_for_frames(2)
