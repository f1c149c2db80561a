"""What carries messages and frames between one client and its Connection: the small face of a WebSocket, or of WebRTC."""

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Protocol

from starlette.websockets import WebSocket, WebSocketDisconnect

from wm_jax.serving.codec import encode
from wm_jax.serving.outbox import Payload, Sending
from wm_jax.serving.protocol import ClientMessage, CloseCode, Error, ErrorCode, FramesHeader, Message
from wm_jax.serving.session import Session
from wm_jax.serving.video import H264Encoder, codec_string
from wm_jax.serving.wire import Wire

Said = Callable[[], ClientMessage | None]
"""What a client said, not yet read: reading it may raise a Refusal or an Eviction. None: it does not matter any more."""


class Gone(Exception):
    """The client is not there any more."""


class Eviction(Exception):
    """The connection must end: a close code and the error that says why."""

    def __init__(self, close: CloseCode, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.close = close
        self.error = Error(code=code, message=message, fatal=True)


class Transport(Protocol):
    """Used by the event loop alone.

    Attributes:
      credit_window: Frames that may be on their way; None: as many as the server is set to.
    """

    credit_window: int | None

    def begin(self, session: Session) -> bool:
        """Frames of this session will be sent. Whether its player wants them as pixels."""
        ...

    async def receive(self) -> Said:
        """The next thing that the client says.

        Raises:
          Gone: it will say nothing any more.
        """
        ...

    async def send(self, item: Message | Sending) -> None:
        """Sends a message or a frame.

        Raises:
          Gone: nobody is there to receive it.
        """
        ...

    async def close(self, code: CloseCode, reason: str) -> None:
        """Ends it; what was sent before still arrives.

        Raises:
          Gone: it has ended already.
        """
        ...


class WebSocketTransport:
    """A WebSocket that speaks one of the subprotocols. Frames that come as pixels are encoded here, off the event loop."""

    credit_window: int | None = None

    def __init__(self, websocket: WebSocket, wire: Wire) -> None:
        self._websocket = websocket
        self._wire = wire
        self._quality = 0
        self._stream: H264Encoder | None = None

    def begin(self, session: Session) -> bool:
        self._quality = session.quality
        # One a connection: whoever comes back, or takes over, begins with a key frame.
        self._stream = H264Encoder(session.fps, session.quality)
        return session.codec == "h264"

    async def receive(self) -> Said:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise Gone
        data = message.get("text")
        return functools.partial(self._wire.read, message["bytes"] if data is None else data)

    async def send(self, item: Message | Sending) -> None:
        data = self._wire.write(item) if isinstance(item, Message) else await self._frames(item)
        try:
            if isinstance(data, bytes):
                await self._websocket.send_bytes(data)
            else:
                await self._websocket.send_text(data)
        except (RuntimeError, WebSocketDisconnect):  # how uvicorn and starlette say that the socket is closed already
            raise Gone from None

    async def close(self, code: CloseCode, reason: str) -> None:
        try:
            await self._websocket.close(code, reason)
        except (RuntimeError, WebSocketDisconnect):
            raise Gone from None

    async def _frames(self, item: Sending) -> bytes:
        header, payload = item
        if not isinstance(payload, bytes):
            header, payload = await asyncio.to_thread(self._encode, header, payload)
        return self._wire.write_frames(header, [payload])

    def _encode(self, header: FramesHeader, pixels: Payload) -> tuple[FramesHeader, bytes]:
        assert not isinstance(pixels, bytes) and self._stream is not None
        began = time.perf_counter()
        if header.codec == "h264":
            payload, is_key = self._stream.encode(pixels)
        else:
            payload, is_key = encode(pixels, header.codec, self._quality), True
        times = header.t.model_copy(update={"encode": round(1e3 * (time.perf_counter() - began), 2)})
        config = codec_string(payload) if header.codec == "h264" and is_key else None
        told = {"lengths": [len(payload)], "key": is_key, "config": config, "t": times}
        return header.model_copy(update=told), payload
