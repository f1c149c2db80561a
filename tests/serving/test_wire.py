"""wm.v1.msgpack: the same messages, all of them binary, and nothing that JSON does not know."""

import asyncio
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from wm_jax.client import open_session
from wm_jax.serving.protocol import Ack, ErrorCode, FramesHeader, Refusal
from wm_jax.serving.wire import JsonWire, MsgpackWire, choose

HEADER = FramesHeader(seq=3, frame_id=9, n=2, codec="raw", w=4, h=2, lengths=[3, 5], pts_ms=300.0)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["type", "event_id", "held", "raw", "mouse", "op", "seq", "step_id", "n", "actions", "seed", "frame", "at"]
TYPES = ["action", "control", "step", "frame.ack", "ping", "session.update", "prompt.set", "frames"]


def read(wire, data):
    """The message, or the code and the words of its refusal."""
    try:
        return wire.read(data)
    except Refusal as refusal:
        return refusal.code, refusal.message, refusal.event_id


@given(st.binary(max_size=200))
def test_random_bytes_get_a_typed_refusal(data):
    found = read(MsgpackWire(), data)
    assert not isinstance(found, tuple) or found[0] in (ErrorCode.BAD_MESSAGE, ErrorCode.UNKNOWN_TYPE)


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES), st.sampled_from(TYPES) | JSON_VALUES)
def test_both_wires_read_the_same(fields, kind):
    message = {**fields, "type": kind}
    assert repr(read(MsgpackWire(), msgspec.msgpack.encode(message))) == repr(read(JsonWire(), json.dumps(message)))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x91" * 60_000, id="lists in lists"),
        pytest.param(b"\x81\xa1a" * 20_000, id="maps in maps"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="a map of four thousand million"),
        pytest.param(msgspec.msgpack.encode([{"type": "ping"}]), id="a list"),
        pytest.param(msgspec.msgpack.encode({"type": "action", "held": [b"KeyW"]}), id="bytes"),
        pytest.param(
            msgspec.msgpack.encode({"type": "ping", "client_ts": msgspec.msgpack.Ext(5, b"x")}), id="extension"
        ),
        pytest.param(msgspec.msgpack.encode({1: "ping"}), id="a number for a key"),
        pytest.param(b"\x81\xa4type\xa4ping" * 2, id="two messages in one"),
        pytest.param('{"type": "ping"}', id="text"),
    ],
)
def test_what_is_no_message_is_refused(data):
    found = read(MsgpackWire(), data)
    assert isinstance(found, tuple) and found[0] == ErrorCode.BAD_MESSAGE and len(found[1]) <= 400


@pytest.mark.parametrize("wire", [JsonWire(), MsgpackWire()])
def test_what_is_written_is_heard(wire):
    assert wire.hear(wire.write(Ack(event_id="é", applied_at_frame=2))) == {
        "type": "ack", "event_id": "é", "applied_at_frame": 2,
    }  # fmt: skip
    frames = wire.write_frames(HEADER, [b"abc", b"defgh"])
    assert wire.hear(frames) == (HEADER, [b"abc", b"defgh"])
    for broken in (frames[:-1], wire.write_frames(HEADER, [b"abc"])):
        with pytest.raises(ValueError):
            wire.hear(broken)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["wm.v1"], "wm.v1"),
        (["wm.auth.x", "wm.v1.msgpack", "wm.v1"], "wm.v1.msgpack"),
        (["wm.v1", "wm.v1.msgpack"], "wm.v1"),
        (["wm.v2", "wm.auth.x"], None),
    ],
)
def test_the_client_names_the_wire_it_wants_first(offered, chosen):
    wire = choose(offered)
    assert (None if wire is None else wire.subprotocol) == chosen


def test_a_session_plays_in_messagepack(server):
    async def play() -> None:
        async with open_session(
            server.url, wire="msgpack", mode="stepped", media={"codec": "raw"}, init={"seed": 2}
        ) as client:
            assert client.socket.subprotocol == "wm.v1.msgpack"
            await client.send("step", step_id=0, n=3, actions=[["ArrowUp"]])
            frames = client.frames()
            shown = [await anext(frames) for _ in range(3)]
            assert [(head.frame_id, head.step_id, frame.shape) for head, frame in shown] == [
                (index, 0, (32, 32, 3)) for index in range(3)
            ]
            assert {"type": "ack", "event_id": 0, "applied_at_frame": 0} in client.messages

    asyncio.run(play())


def test_a_wrong_token_and_text_are_refused_in_messagepack(server):
    ticket = server.create()
    for token, said in (("nonsense", None), (ticket["token"], '{"type": "ping"}')):
        protocols = [Subprotocol("wm.v1.msgpack"), Subprotocol(f"wm.auth.{token}")]
        with connect(ticket["ws_url"], subprotocols=protocols, compression=None) as socket:
            if said is not None:
                socket.send(said)
            messages = iter(lambda: MsgpackWire().hear(socket.recv(20)), None)
            error = next(heard for heard in messages if isinstance(heard, dict) and heard["type"] == "error")
        assert error["code"] == ("unauthorized" if said is None else "bad_message")
