"""What describes wm.v1 to programs is fresh, holds together, and is true of what a live session says."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from tests.serving.conftest import Server, Talk, closing_code
from wm_jax.serving import protocol, schemas

COMMAND = "python -m wm_jax.serving.schemas"


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    return {name: json.loads((schemas.FOLDER / name).read_text()) for name in schemas.FILES}


def check(schema: dict[str, Any], name: str, value: Any) -> None:
    """Passes where the value is one of these by wm.v1.schema.json."""
    Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": schema["$defs"]}).validate(value)


@pytest.mark.parametrize("name", ["asyncapi.json", "wm.v1.schema.json"])
def test_the_messages_as_described_are_those_of_the_code(name):
    fresh = schemas.text(schemas.FILES[name]())
    assert (schemas.FOLDER / name).read_text() == fresh, f"protocol.py or bodies.py changed: run {COMMAND}"


def test_the_http_half_as_described_is_what_a_server_tells(server: Server, written):
    told = server.http.get(f"{server.url}/openapi.json").json()
    assert written["openapi.json"] == told, f"a route changed: run {COMMAND}"
    paths = {"/v1/sessions", "/v1/tokens", "/v1/sessions/{session_id}/spectators"}
    assert paths <= set(told["paths"]) and "HTTPValidationError" not in json.dumps(told)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


@pytest.mark.parametrize("name", schemas.FILES)
def test_every_reference_leads_somewhere(written, name):
    found = list(references(written[name]))
    assert len(found) > 20
    for reference in found:
        here = written[name]
        for part in reference.removeprefix("#/").split("/"):
            here = here[part]
        assert isinstance(here, dict) and here, reference


def test_the_websocket_half_is_whole(written):
    """What AsyncAPI 3.0 asks of a document beyond its references."""
    told = written["asyncapi.json"]
    assert told["asyncapi"] == "3.0.0" and {"title", "version"} <= set(told["info"])
    assert all({"host", "protocol"} <= set(server) for server in told["servers"].values())
    (channel,) = told["channels"].values()
    assert set(channel["parameters"]) == {"session_id"} and "{session_id}" in channel["address"]
    used = set()
    for operation in told["operations"].values():
        assert operation["action"] in ("send", "receive") and operation["channel"] == {"$ref": "#/channels/session"}
        names = [message["$ref"].removeprefix("#/channels/session/messages/") for message in operation["messages"]]
        assert set(names) <= set(channel["messages"]), "an operation's messages are those of its channel"
        used.update(names)
    assert used == set(channel["messages"]) == set(told["components"]["messages"])
    for name, message in told["components"]["messages"].items():
        assert message["summary"], name
        assert {"payload", "name"} <= set(message)
    assert "FramesHeader" in str(told["components"]["messages"]["Frames"])
    assert all(str(code.value) in channel["description"] for code in protocol.CloseCode)


SAID = [
    {"type": "ping", "event_id": 1, "client_ts": 2.5},
    {"type": "action", "held": ["ArrowUp"], "event_id": "e2", "client_ts": 3.0},
    {"type": "action", "held": ["KeyQ"], "event_id": 3},
    {"type": "control", "op": "pause", "event_id": 4},
    {"type": "control", "op": "resume", "event_id": 5},
    {"type": "control", "op": "reset", "seed": 7, "event_id": 6},
    {"type": "step", "step_id": 7, "n": 1},
    {"type": "session.snapshot", "event_id": 8},
    {"type": "session.update", "source": "dream", "event_id": 9},
    {"type": "prompt.set", "event_id": 10},
]


def test_a_live_session_says_what_is_described(server: Server, written):
    schema = written["wm.v1.schema.json"]
    ticket = server.create(init={"seed": 1})
    watching = server.http.post(f"{server.url}/v1/sessions/{ticket['session_id']}/spectators").json()
    with server.connect(ticket) as socket, server.connect(watching) as watched:
        talk, spectator = Talk(socket), Talk(watched)
        for message in SAID:
            check(schema, "ClientMessage", message)
            socket.send(json.dumps(message))
        talk.wait_for("error", event_id=10)
        talk.wait_for_frames(3)
        spectator.wait_for_frames(1)
        state = server.http.get(f"{server.url}/v1/sessions/{ticket['session_id']}").json()
        server.delete(ticket)
        talk.messages += closing_code(socket)[1]
    heard = [*talk.messages, *spectator.messages]
    kinds = {"session.created", "status", "ack", "error", "pong", "session.ended"}
    assert {message["type"] for message in heard} == kinds
    for message in heard:
        check(schema, "ServerMessage", message)
    for header, _ in (*talk.frames, *spectator.frames):
        check(schema, "FramesHeader", header)
    models = server.http.get(f"{server.url}/v1/models").json()
    for name, body in (("SessionTicket", ticket), ("SpectatorTicket", watching), ("SessionState", state),
                       ("ModelList", models)):  # fmt: skip
        check(schema, name, body)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ClientMessage", {"held": ["KeyW"]}),
        ("ClientMessage", {"type": "dance"}),
        ("ClientMessage", {"type": "action", "held": "KeyW"}),
        ("ClientMessage", {"type": "frame.ack"}),
        ("ServerMessage", {"type": "error", "code": "made_up", "message": "x"}),
        ("ServerMessage", {"type": "ack", "applied_at_frame": 1}),
        ("FramesHeader", {"type": "frames", "seq": 1}),
    ],
)
def test_what_is_no_message_does_not_pass(written, name, value):
    with pytest.raises(ValidationError):
        check(written["wm.v1.schema.json"], name, value)
