"""Writes the page's half of the protocol from protocol.py: python -m wm_jax.serving.javascript."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from wm_jax.serving import bodies, protocol

TARGET = Path(__file__).parent / "page" / "protocol.js"

TYPES: tuple[type[BaseModel], ...] = (
    protocol.Action,
    protocol.Control,
    protocol.Step,
    protocol.SessionUpdate,
    protocol.FrameAck,
    protocol.Ping,
    protocol.Pong,
    protocol.SessionCreated,
    protocol.Status,
    protocol.Queue,
    protocol.Ack,
    protocol.Error,
    protocol.GoAway,
    protocol.SessionEnded,
    protocol.Snapshot,
    protocol.Snapshotted,
    protocol.FramesHeader,
    bodies.CreateSession,
    bodies.SessionTicket,
    bodies.ModelInfo,
)

HEAD = """/** Generated from protocol.py by `python -m wm_jax.serving.javascript`; do not edit. */
"""

READER = """
/**
 * Header and payloads of a binary message: u32 header length (little-endian), JSON header, payloads.
 * @param {ArrayBuffer} data
 * @returns {{header: FramesHeader, payloads: Uint8Array[]}}
 */
export function unpackFrames(data) {
  const size = new DataView(data).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, size)));
  let start = 4 + size;
  const payloads = header.lengths.map((/** @type {number} */ length) => {
    const bytes = new Uint8Array(data, start, length);
    start += length;
    return bytes;
  });
  return { header, payloads };
}
"""

PLAIN = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}


def generate() -> str:
    """The text of protocol.js."""
    constants = [
        f"export const MAJOR = {protocol.MAJOR};",
        f"export const MINOR = {protocol.MINOR};",
        f'export const SUBPROTOCOL = "{protocol.SUBPROTOCOL}";',
        f'export const AUTH_PREFIX = "{protocol.AUTH_PREFIX}";',
        f"export const MAX_MOUSE = {protocol.MAX_MOUSE:g};",
        _enum("CLOSE", {code.name: code.value for code in protocol.CloseCode}),
        _enum("ERROR", {code.name: code.value for code in protocol.ErrorCode}),
    ]
    schemas: dict[str, Any] = {}
    for kind in TYPES:
        schema = kind.model_json_schema(by_alias=False)
        schemas.update(schema.pop("$defs", {}))
        schemas[kind.__name__] = schema
    typedefs = [_typedef(name, schemas[name]) for name in sorted(schemas) if "properties" in schemas[name]]
    return HEAD + "\n" + "\n".join(constants) + "\n\n" + "\n".join(typedefs) + READER


def _enum(name: str, values: dict[str, Any]) -> str:
    rows = "".join(f"  {key}: {json.dumps(value)},\n" for key, value in values.items())
    return f"export const {name} = Object.freeze({{\n{rows}}});"


def _typedef(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    fields = [
        f" * @property {{{_type(field)}}} {key if key in required else f'[{key}]'}"
        for key, field in schema["properties"].items()
    ]
    return "\n".join(["/**", f" * @typedef {{Object}} {name}", *fields, " */"])


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return "string" if name in ("ErrorCode",) else name
    if "anyOf" in field:
        return "|".join(dict.fromkeys(_type(option) for option in field["anyOf"]))
    if "const" in field:
        return json.dumps(field["const"])
    if "enum" in field:
        return "|".join(json.dumps(value) for value in field["enum"])
    if field.get("type") == "array":
        inner = _type(field.get("items", {}))
        return f"({inner})[]" if "|" in inner else f"{inner}[]"
    if field.get("type") == "object":
        return "Object<string, any>"
    return PLAIN.get(field.get("type", ""), "any")


if __name__ == "__main__":
    TARGET.write_text(generate())
    print(f"wrote {TARGET}")
