"""A small client of wm.v1 for asyncio: opens a session, sends messages, receives frames as they come."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from wm_jax.client.recordings import record
from wm_jax.rest import ServerError, come_back, request, socket_url
from wm_jax.serving.codec import decode_image
from wm_jax.serving.protocol import AUTH_PREFIX, FramesHeader
from wm_jax.serving.video import H264Decoder
from wm_jax.serving.wire import JsonWire, MsgpackWire, Wire


@dataclasses.dataclass
class Client:
    """An open session. Messages that arrive while frames are awaited are kept in `messages`.

    Attributes:
      created: The first message, `session.created`.
      wire: How messages travel.
      url: The server's.
    """

    url: str
    socket: ClientConnection
    created: dict[str, Any]
    wire: Wire
    messages: list[dict[str, Any]] = dataclasses.field(default_factory=list[dict[str, Any]])
    _video: H264Decoder | None = None

    async def send(self, kind: str, **fields: Any) -> None:
        """One message: `send("action", held=["KeyW"], mouse=[0.1, 0.0])`."""
        await self.socket.send(self.wire.say({"type": kind, **fields}))

    async def receive(self) -> dict[str, Any] | tuple[FramesHeader, list[UInt8[np.ndarray, "h w 3"]]]:
        """The next message, or the next frames, decoded and acknowledged.

        Raises:
          ServerError: the server reports an error.
        """
        heard = self.wire.hear(await self.socket.recv())
        if isinstance(heard, dict):
            if heard["type"] == "error":
                raise ServerError(f"{heard['code']}: {heard['message']}")
            return heard
        header, payloads = heard
        await self.send("frame.ack", seq=header.seq)
        return header, [self._decode(header, payload) for payload in payloads]

    async def record(self, path: str | Path, video: bool = True) -> Path:
        """Writes the session's recording so far to a file; see `Session.record`.

        Raises:
          ServerError: no slot is free for the video, or the server records nothing.
        """
        session, token = self.created["session"]["id"], self.created["resume_token"]
        return await asyncio.to_thread(record, self.url, session, Path(path), token, video)

    async def resume(self, patience_s: float = 30.0) -> dict[str, Any]:
        """Comes back after the connection was lost, wherever the session is now; the new `session.created`.

        Raises:
          ServerError: the session is gone, or nobody took it up within that time.
        """
        await self.socket.close()
        known = self.created["session"]["id"], self.created["resume_token"]
        ticket = await asyncio.to_thread(come_back, self.url, *known, patience_s)
        self.socket, self.created = await _connected(self.url, ticket, self.wire)
        self._video = None  # a stream begins anew with its connection
        return self.created

    async def frames(self) -> AsyncIterator[tuple[FramesHeader, UInt8[np.ndarray, "h w 3"]]]:
        """Frames as they come."""
        while True:
            got = await self.receive()
            if isinstance(got, dict):
                self.messages.append(got)
                continue
            for index, frame in enumerate(got[1]):
                yield got[0].model_copy(update={"frame_id": got[0].frame_id + index}), frame

    def _decode(self, header: FramesHeader, payload: bytes) -> UInt8[np.ndarray, "h w 3"]:
        if header.codec != "h264":
            return decode(header, payload)
        self._video = self._video or H264Decoder()
        return self._video.decode(payload, header.h, header.w)


def decode(header: FramesHeader, payload: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """One payload as pixels.

    Raises:
      ValueError: it is part of a stream, or no picture.
    """
    if header.codec == "h264":
        raise ValueError("a frame of h264 says what changed since the last one: open_session decodes it, or choose png")
    if header.codec == "raw":
        return np.frombuffer(payload, np.uint8).reshape(header.h, header.w, 3)
    return simplejpeg.decode_jpeg(payload) if header.codec == "jpeg" else decode_image(payload, (header.h, header.w))


@contextlib.asynccontextmanager
async def open_session(
    url: str, auth: str | None = None, wire: Literal["json", "msgpack"] = "json", **body: Any
) -> AsyncIterator[Client]:
    """A session of the server at `url`, connected; ended when the block is left. `body` as `CreateSession`.

    Raises:
      ServerError: the server is full, does not know the model, or refuses the connection.
    """
    spoken = MsgpackWire() if wire == "msgpack" else JsonWire()

    ticket = await asyncio.to_thread(request, "POST", f"{url}/v1/sessions", body, auth)
    token = ticket["token"]
    try:
        client = Client(url, *await _connected(url, ticket, spoken), spoken)
        token = client.created[
            "resume_token"
        ]  # good as long as the session is, which the ticket's and `auth` may not be
        try:
            yield client
        finally:
            await client.socket.close()
    finally:
        # Only tidying up: a session or a server that is gone already must not hide why the block was left.
        with contextlib.suppress(ServerError, OSError):
            await asyncio.to_thread(request, "DELETE", f"{url}/v1/sessions/{ticket['session_id']}", None, token)


async def _connected(url: str, ticket: dict[str, Any], wire: Wire) -> tuple[ClientConnection, dict[str, Any]]:
    """The socket of a ticket, and the first message that came over it."""
    protocols = [Subprotocol(wire.subprotocol), Subprotocol(AUTH_PREFIX + ticket["token"])]
    socket = await connect(socket_url(url, ticket), subprotocols=protocols, max_size=None, compression=None)
    first = wire.hear(await socket.recv())
    assert isinstance(first, dict), "frames before session.created"
    if first["type"] != "session.created":
        await socket.close()
        raise ServerError(f"{first.get('code')}: {first.get('message')}")
    return socket, first
