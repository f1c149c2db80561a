"""Writes what describes wm.v1 to programs, and the page's types with it: python -m wm_jax.serving.schemas.

The typed messages of protocol.py and bodies.py are the one source. From them, in docs/api: `openapi.json` (HTTP),
`asyncapi.json` (the WebSocket), `wm.v1.schema.json` (JSON Schema of every message).
"""

import json
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from wm_jax.serving import bodies, javascript, protocol
from wm_jax.serving.app import make_app
from wm_jax.serving.config import ServeConfig
from wm_jax.types import Prompt
from wm_jax.world import tiny_world

FOLDER = Path(__file__).parents[2] / "docs" / "api"
VERSION = f"{protocol.MAJOR}.{protocol.MINOR}"

LAYOUT = "u32 header length, little-endian | header, JSON in UTF-8: FramesHeader | payloads, `lengths` bytes each, in `codec`"

NOTES = {
    "Control": 'Its short form is taken as well: `{"type": "control", "reset": {"seed": 7}}`.',
    "Held": "A bare list is taken for `held` (of strings) or for `raw` (of numbers).",
}
"""What the server takes beside the form of a message that the schema shows."""


def messages(union: Any) -> tuple[type[BaseModel], ...]:
    """The messages that one side sends."""
    plain = typing.get_args(union)[0] if typing.get_origin(union) is typing.Annotated else union
    return typing.get_args(plain)


CLIENT = messages(protocol.ClientMessage)
SERVER = messages(protocol.ServerMessage)
BODIES = tuple(kind for kind in vars(bodies).values() if isinstance(kind, type) and kind.__module__ == bodies.__name__)


def definitions(prefix: str) -> dict[str, Any]:
    """JSON Schema of every message and body by name; they refer to each other by `prefix` and name."""
    kinds = dict.fromkeys((*CLIENT, *SERVER, protocol.FramesHeader, *BODIES))
    # As they are read, not as they are written: fields that are absent on the wire are absent here.
    _, schema = models_json_schema([(kind, "validation") for kind in kinds], ref_template=prefix + "{model}")
    found: dict[str, Any] = schema["$defs"]
    for name, known in found.items():
        if "const" in known.get("properties", {}).get("type", {}) or "enum" in known.get("properties", {}).get(
            "type", {}
        ):
            known["required"] = ["type", *(field for field in known.get("required", []) if field != "type")]
        if name in NOTES:
            known["description"] = f"{known.get('description', '')}\n\n{NOTES[name]}".strip()
    return found


def json_schema() -> dict[str, Any]:
    """One JSON Schema (2020-12) that every text message, frames header and body passes."""
    found = definitions("#/$defs/")
    sides = {
        "ClientMessage": {"description": "What a client may send.", "oneOf": _refs("#/$defs/", CLIENT)},
        "ServerMessage": {"description": "What a server sends as text.", "oneOf": _refs("#/$defs/", SERVER)},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{protocol.SUBPROTOCOL} {VERSION}",
        "description": f"A message on the WebSocket. Binary ones are frames: {LAYOUT}.",
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in (*sides, "FramesHeader")],
        "$defs": {**sides, **found},
    }


def openapi() -> dict[str, Any]:
    """The HTTP half, as the server itself tells it at `/openapi.json`; it is the same for every world."""
    return make_app(ServeConfig(), *tiny_world(0), Prompt()).openapi()


def asyncapi() -> dict[str, Any]:
    """The WebSocket half, as AsyncAPI 3.0: one channel, what the server receives on it and what it sends."""
    names = [kind.__name__ for kind in dict.fromkeys((*CLIENT, *SERVER))]
    texts = {name: _text_message(name) for name in names}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"wm_jax {protocol.SUBPROTOCOL}",
            "version": VERSION,
            "description": "A session of a served world. `POST /v1/sessions` (openapi.json) gives its address and its token.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"here": {"host": "127.0.0.1:8000", "protocol": "ws", "security": [_ref("securitySchemes", "token")]}},
        "channels": {
            "session": {
                "address": "/v1/sessions/{session_id}/ws",
                "description": f"Subprotocol {protocol.SUBPROTOCOL} (or {protocol.MSGPACK_SUBPROTOCOL}: the same messages in "
                f"MessagePack, frames too). The first message is session.created. {_close_codes()}",
                "parameters": {"session_id": {"description": "From `POST /v1/sessions`."}},
                "messages": {name: _ref("messages", name) for name in (*names, "Frames")},
            }
        },
        "operations": {
            "receive": _operation("receive", "What a client sends.", [kind.__name__ for kind in CLIENT]),
            "send": _operation(
                "send", "What the server sends.", [*(kind.__name__ for kind in SERVER), "Frames"]
            ),
        },
        "components": {
            "messages": {**texts, "Frames": _frames()},
            "schemas": definitions("#/components/schemas/"),
            "securitySchemes": {
                "token": {
                    "type": "httpApiKey",
                    "name": "Sec-WebSocket-Protocol",
                    "in": "header",
                    "description": f"Beside {protocol.SUBPROTOCOL} a second subprotocol is offered: {protocol.AUTH_PREFIX}<token>.",
                }
            },
        },
    }  # fmt: skip


def _text_message(name: str) -> dict[str, Any]:
    kind = getattr(protocol, name)
    told = typing.get_args(kind.model_fields["type"].annotation)
    return {
        "name": ", ".join(told),
        "title": name,
        "summary": (kind.__doc__ or "").split("\n\n")[0].replace("\n", " ").strip(),
        "payload": _ref("schemas", name),
    }


def _frames() -> dict[str, Any]:
    return {
        "name": "frames",
        "title": "Frames",
        "summary": f"A binary message: {LAYOUT}.",
        "contentType": "application/octet-stream",
        "headers": _ref("schemas", "FramesHeader"),
        "payload": {"type": "string", "format": "binary", "description": LAYOUT},
    }


def _operation(action: str, summary: str, names: list[str]) -> dict[str, Any]:
    channel = "#/channels/session"
    listed = [{"$ref": f"{channel}/messages/{name}"} for name in names]
    return {"action": action, "summary": summary, "channel": {"$ref": channel}, "messages": listed}


def _close_codes() -> str:
    words = ", ".join(f"{code.value} {code.name.lower().replace('_', ' ')}" for code in protocol.CloseCode)
    return f"It closes with one of: {words}."


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _refs(prefix: str, kinds: tuple[type[BaseModel], ...]) -> list[dict[str, str]]:
    return [{"$ref": prefix + kind.__name__} for kind in kinds]


FILES = {"openapi.json": openapi, "asyncapi.json": asyncapi, "wm.v1.schema.json": json_schema}


def text(schema: dict[str, Any]) -> str:
    """A schema as its file holds it."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, schema in FILES.items():
        (FOLDER / name).write_text(text(schema()))
    javascript.TARGET.write_text(javascript.generate())
    print(f"wrote {', '.join(str(FOLDER / name) for name in FILES)} and {javascript.TARGET}")


if __name__ == "__main__":
    main()
