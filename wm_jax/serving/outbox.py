"""What waits to be sent to one client: messages in order, frames by credit, and never more than a bounded few."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import UInt8

from wm_jax.serving.protocol import (
    Codec,
    EventId,
    FramesHeader,
    FrameTimes,
    Message,
)

MAX_MESSAGES = 512
"""A client that reads nothing while it asks for this many answers is cut off."""

MAX_STEPPED_FRAMES = 64
"""Stepped frames made ahead of a client that reads slowly; beyond this its session waits."""


class ClientStalled(Exception):
    """The client does not read its answers."""


class Spent(NamedTuple):
    """Where the time of a frame went, in seconds; see `FrameTimes`."""

    queue_s: float = 0.0
    step_s: float = 0.0
    encode_s: float = 0.0
    host_s: float = 0.0


Payload = bytes | UInt8[Any, "h w 3"]
"""A frame as it travels, or its pixels, where the connection encodes what it sends."""


class EncodedFrame(NamedTuple):
    """One frame, ready to be sent."""

    payload: Payload
    codec: Codec
    width: int
    height: int
    frame_id: int
    pts_ms: float
    event_id: EventId | None
    client_ts: float | None
    step_id: EventId | None
    spent: Spent


class Sending(NamedTuple):
    """A frame that is sent now; of pixels the header does not know yet how they will travel."""

    header: FramesHeader
    payload: Payload


class Outbox:
    """Used by the event loop alone.

    With a credit window, at most that many frames are on their way and at most one waits: a newer frame replaces the
    waiting one, which counts as dropped. Without a window (stepped mode) every frame waits its turn, and `on_room` is
    called whenever stepped frames may be made again after they might not.
    """

    def __init__(self, credit_window: int | None, on_room: Callable[[], None] = lambda: None) -> None:
        self.credit_window = credit_window
        self._on_room = on_room
        self.dropped = 0
        self._messages: deque[Message] = deque()
        self._frames: deque[EncodedFrame] = deque()
        self._sent = -1
        self._acked = -1
        self._wake = asyncio.Event()
        self._is_stalled = False

    @property
    def is_full(self) -> bool:
        """Whether stepped frames should not be made yet. Read from the device thread too."""
        return len(self._frames) >= MAX_STEPPED_FRAMES

    def clear(self, credit_window: int | None = None) -> None:
        """Forget what waits and what is owed: a new connection begins, perhaps with another window than the last."""
        if self.credit_window is not None:
            self.credit_window = credit_window or self.credit_window
        self._messages.clear()
        self._frames.clear()
        self._acked = self._sent
        self._is_stalled = False
        self._wake.set()

    def put(self, message: Message) -> None:
        if len(self._messages) >= MAX_MESSAGES:
            self._is_stalled = True
        else:
            self._messages.append(message)
        self._wake.set()

    def put_frame(self, frame: EncodedFrame) -> None:
        if self.credit_window is not None and self._frames:
            self.dropped += len(self._frames)
            self._frames.clear()
        self._frames.append(frame)
        self._wake.set()

    def acknowledge(self, seq: int) -> bool:
        """Takes back the credit of every frame message up to `seq`; False if that one was never sent."""
        if seq > self._sent:
            return False
        self._acked = max(self._acked, seq)
        self._wake.set()
        return True

    async def next(self) -> Message | Sending:
        """The next thing to send.

        Raises:
          ClientStalled: too many answers wait.
        """
        while True:
            if self._is_stalled:
                raise ClientStalled
            if self._messages:
                return self._messages.popleft()
            if self._frames and self._has_credit():
                return self._pack(self._take_frame())
            self._wake.clear()
            await self._wake.wait()

    def last_words(self) -> list[Message]:
        """The messages that still wait, taken out."""
        words = list(self._messages)
        self._messages.clear()
        return words

    def _take_frame(self) -> EncodedFrame:
        was_full = self.is_full
        frame = self._frames.popleft()
        if was_full and not self.is_full:
            self._on_room()
        return frame

    def _has_credit(self) -> bool:
        return self.credit_window is None or self._sent - self._acked < self.credit_window

    def _pack(self, frame: EncodedFrame) -> Sending:
        self._sent += 1
        spent = frame.spent
        times = FrameTimes(
            queue=round(1e3 * spent.queue_s, 2),
            step=round(1e3 * spent.step_s, 2),
            encode=round(1e3 * spent.encode_s, 2),
            host=round(1e3 * spent.host_s, 3),
        )
        header = FramesHeader(
            seq=self._sent,
            frame_id=frame.frame_id,
            n=1,
            codec=frame.codec,
            w=frame.width,
            h=frame.height,
            lengths=[len(frame.payload)] if isinstance(frame.payload, bytes) else [],
            pts_ms=round(frame.pts_ms, 3),
            last_event_id=frame.event_id,
            last_client_ts=frame.client_ts,
            dropped=self.dropped,
            t=times,
            step_id=frame.step_id,
        )
        return Sending(header, frame.payload)
