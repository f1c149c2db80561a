"""How messages become bytes: JSON in text and frames in binary (wm.v1), or MessagePack in binary for both (wm.v1.msgpack)."""

import json
from typing import Any

import msgspec

from wm_jax.serving.protocol import (
    MSGPACK_SUBPROTOCOL,
    SUBPROTOCOL,
    ClientMessage,
    ErrorCode,
    FramesHeader,
    Message,
    Refusal,
    dump,
    pack_frames,
    parse_client_message,
    unpack_frames,
)

Heard = dict[str, Any] | tuple[FramesHeader, list[bytes]]
"""What a client hears: a message, or frames."""


class JsonWire:
    """Text is a message, binary is frames."""

    subprotocol = SUBPROTOCOL

    def write(self, message: Message) -> str | bytes:
        return dump(message)

    def write_frames(self, header: FramesHeader, payloads: list[bytes]) -> bytes:
        return pack_frames(header, payloads)

    def read(self, data: str | bytes) -> ClientMessage:
        """What a client said.

        Raises:
          Refusal: it is no message.
        """
        if isinstance(data, bytes):
            text = "messages are JSON text; binary ones come from the server only"
            raise Refusal(ErrorCode.BAD_MESSAGE, f"{text}, or both ways in {MSGPACK_SUBPROTOCOL}")
        return parse_client_message(data)

    def say(self, message: dict[str, Any]) -> str | bytes:
        """A client's message."""
        return json.dumps(message)

    def hear(self, data: str | bytes) -> Heard:
        """What the server said.

        Raises:
          ValueError: it is no message and no frames.
        """
        return json.loads(data) if isinstance(data, str) else unpack_frames(data)


class MsgpackWire:
    """Everything is a binary message, and each is one map with a `type`; frames have their payloads in it, as `payloads`."""

    subprotocol = MSGPACK_SUBPROTOCOL

    def __init__(self) -> None:
        self._map = msgspec.msgpack.Decoder(dict[str, Any])

    def write(self, message: Message) -> str | bytes:
        return msgspec.msgpack.encode(message.model_dump(mode="json", exclude_none=True))

    def write_frames(self, header: FramesHeader, payloads: list[bytes]) -> bytes:
        return msgspec.msgpack.encode({**header.model_dump(mode="json", exclude_none=True), "payloads": payloads})

    def read(self, data: str | bytes) -> ClientMessage:
        """What a client said; what wm.v1 knows as JSON, and nothing that MessagePack has beyond that.

        Raises:
          Refusal: it is no message.
        """
        if isinstance(data, str):
            raise Refusal(ErrorCode.BAD_MESSAGE, f"in {self.subprotocol} messages are binary, this one is text")
        try:
            text = json.dumps(self._map.decode(data))
        except (ValueError, TypeError, RecursionError) as error:  # TypeError: bytes, times and extensions are no JSON
            said = f"no message in MessagePack: {error}"
            raise Refusal(ErrorCode.BAD_MESSAGE, said[:400]) from None
        return parse_client_message(text)

    def say(self, message: dict[str, Any]) -> str | bytes:
        """A client's message."""
        return msgspec.msgpack.encode(message)

    def hear(self, data: str | bytes) -> Heard:
        """What the server said.

        Raises:
          ValueError: it is no message and no frames.
        """
        message = self._map.decode(data.encode() if isinstance(data, str) else data)
        if message.get("type") != "frames":
            return message
        header, payloads = FramesHeader.model_validate(message), message.get("payloads", [])
        if header.lengths != list(map(len, payloads)):
            raise ValueError(f"the header speaks of payloads of {header.lengths} bytes, there are {len(payloads)}")
        return header, payloads


Wire = JsonWire | MsgpackWire

WIRES: dict[str, Wire] = {wire.subprotocol: wire for wire in (JsonWire(), MsgpackWire())}
"""By subprotocol."""


def choose(offered: list[str]) -> Wire | None:
    """The first wire of those that a client offers; None: it offers none."""
    return next((WIRES[name] for name in offered if name in WIRES), None)
