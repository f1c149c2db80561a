"""One connection: receives messages into the session, sends what its outbox holds, and ends with a reason."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import assert_never

from wm_jax.serving.limits import TokenBucket
from wm_jax.serving.lobby import Lobby, Place
from wm_jax.serving.outbox import ClientStalled, Outbox
from wm_jax.serving.protocol import (
    Ack,
    Action,
    ClientMessage,
    CloseCode,
    Control,
    Error,
    ErrorCode,
    EventId,
    FrameAck,
    Message,
    NotOffered,
    Ping,
    Pong,
    Queue,
    Refusal,
    SessionCreated,
    SessionUpdate,
    Snapshot,
    Snapshotted,
    Source,
    Status,
    Step,
)
from wm_jax.serving.transport import Eviction, Gone, Transport

log = logging.getLogger(__name__)

MAX_BAD_IN_A_ROW = 50
STEPPED_RATE = 8.0
"""A stepped client asks for all it gets, so it may speak this much faster, and is slowed down rather than refused."""

RESTARTS_PER_S = 4.0

GOODBYE_S = 2.0

STATUS_S = 0.1

FAILED = Error(code=ErrorCode.SERVER_FAILED, message="this server failed at a message; its log says why", fatal=True)


class Connection:
    """A client on its session, over a WebSocket or WebRTC. Used by the event loop alone.

    Attributes:
      closed: Set when nothing will be sent any more.
    """

    def __init__(
        self,
        lobby: Lobby,
        place: Place,
        transport: Transport,
        created: SessionCreated,
        snapshot: Callable[[], Awaitable[Snapshotted]],
        outbox: Outbox | None = None,
    ) -> None:
        self.closed = asyncio.Event()
        self._outbox = place.session.outbox if outbox is None else outbox
        self._lobby = lobby
        self._place = place
        self._session = place.session
        self._transport = transport
        self._created = created
        self._snapshot = snapshot
        self._saving: asyncio.Task[None] | None = None
        self._finishing: asyncio.Future[tuple[Message, CloseCode]] = asyncio.get_running_loop().create_future()
        scale = STEPPED_RATE if self._session.mode == "stepped" else 1.0
        config = lobby.config
        self._bucket = TokenBucket(scale * config.messages_per_s, scale * config.burst)
        self._patience = TokenBucket(config.messages_per_s / 4, 4 * config.burst)
        self._restarts = TokenBucket(scale * RESTARTS_PER_S, 2 * scale * RESTARTS_PER_S)
        self._refused = 0
        self._bad_in_a_row = 0
        self._newest: ClientMessage | None = None

    async def run(self) -> None:
        """Serves the client until one side has had enough.

        Raises:
          Refusal: the session ended while this connection waited for an older one to leave.
        """
        await self._take_over()
        self._enter()
        tasks = [asyncio.ensure_future(part) for part in (self._receive(), self._send(), self._watch())]
        try:
            await asyncio.wait([*tasks, self._finishing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            try:
                for task in (*tasks, *([self._saving] if self._saving else [])):
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                await self._say_goodbye([result for result in results if isinstance(result, Exception)])
            finally:
                self._leave()  # whatever happened: the next connection waits for it, and so does a drain

    def finish(self, message: Message, code: CloseCode) -> None:
        """Ends the connection with a last message."""
        if not self._finishing.done():
            self._finishing.set_result((message, code))

    @property
    def named(self) -> dict[str, str]:
        """What the log lines of this connection begin with."""
        return self._place.named

    def tell(self, message: Message) -> None:
        """Sends a message after those that wait."""
        self._outbox.put(message)

    # ---- coming and going

    async def _take_over(self) -> None:
        """Sends an older connection of this session away, and waits until it has stopped using the outbox.

        Raises:
          Refusal: the session has ended meanwhile, also where it was taken up again since.
        """
        while (older := self._place.connection) is not None:
            taken = Error(code=ErrorCode.TAKEN_OVER, message="another connection took this session over", fatal=True)
            older.finish(taken, CloseCode.TAKEN_OVER)
            await older.closed.wait()
        if self._lobby.find(self._session.id) is not self._place:  # whoever ended it knew nothing of this connection
            text = "this session ended and was taken up again since; connect again with its resume_token"
            raise Refusal(ErrorCode.UNKNOWN_SESSION, text, param="session_id")

    def _enter(self) -> None:
        place, session = self._place, self._session
        if place.was_connected:
            log.info("session resumes", extra={**place.named, "frame_id": session.frames, "from": "dropped socket"})
        place.connection = self
        place.was_connected = True
        place.awaited_until = 0.0
        place.heard_at = time.monotonic()
        session.wants_pixels = self._transport.begin(session)
        self._outbox.clear(self._transport.credit_window or self._lobby.config.credit_window)
        self._outbox.put(self._created)
        session.is_connected = True
        self._lobby.batcher.wake()

    def _hear(self) -> None:
        self._place.heard_at = time.monotonic()

    def _leave(self) -> None:
        if self._place.connection is self:
            self._place.connection = None
            self._place.left_at = time.monotonic()
            self._session.is_connected = False
            self._session.release_keys()
        self.closed.set()

    async def _say_goodbye(self, failures: list[Exception]) -> None:
        last: tuple[Message, CloseCode] | None = self._finishing.result() if self._finishing.done() else None
        for failure in failures:
            if isinstance(failure, Eviction):
                last = (failure.error, failure.close)
            elif not isinstance(failure, Gone | ClientStalled):
                known = {"event_id": getattr(self._newest, "event_id", None), "frame_id": self._session.next_frame}
                log.error("a connection failed", exc_info=failure, extra=known)
                last = last or (FAILED, CloseCode.SERVER_FAILED)
        if last is None and not any(isinstance(failure, ClientStalled) for failure in failures):
            return
        with contextlib.suppress(Gone, ClientStalled, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                code = CloseCode.POLICY if last is None else last[1]
                for message in (*self._outbox.last_words(), last[0]) if last is not None else ():
                    await self._transport.send(message)
                await self._transport.close(code, ErrorCode.CLIENT_STALLED if last is None else "")

    # ---- the three loops

    async def _send(self) -> None:
        while True:
            await self._transport.send(await self._outbox.next())

    async def _watch(self) -> None:
        """Tells the client every change of the session's state, and how far the start is."""
        told = None
        place: Queue | None = None
        while True:
            if place != (place := self._lobby.queue(self._place)) and place is not None:
                self._outbox.put(place)
            stage = self._lobby.batcher.stage
            status = Status(
                status=self._lobby.status(self._place), stage=stage.name, progress=stage.progress,
                fps=self._lobby.batcher.pace.fps, code=self._session.failure,
            )  # fmt: skip
            if status != told:
                told = status
                self._outbox.put(status)
            await asyncio.sleep(STATUS_S)

    async def _receive(self) -> None:
        while True:
            said = await self._transport.receive()
            self._hear()
            try:
                too_soon = await self._check_rate()
                self._newest = said()
                if too_soon is not None and not isinstance(self._newest, FrameAck | None):
                    raise too_soon
                if self._newest is not None:
                    await self._handle(self._newest)
                self._bad_in_a_row = 0
            except Refusal as refusal:
                self._refuse(refusal)
                await asyncio.sleep(0)

    # ---- one message

    async def _check_rate(self) -> Refusal | None:
        """What a message that came too soon is answered; None: it came in time.

        An acknowledgement is taken all the same: the frames on their way are acknowledged once, so with a lost one their
        credit would be gone for good. A flood of them ends the connection like any other.
        """
        wait = self._bucket.take()
        while wait and self._session.mode == "stepped":
            await asyncio.sleep(wait)
            wait = self._bucket.take()
        if wait == 0.0:
            return None
        if self._patience.take() > 0.0:
            rate = self._bucket.rate
            raise Eviction(
                CloseCode.RATE_LIMITED, ErrorCode.RATE_LIMITED,
                f"this server takes {rate:g} messages a second from one client, and refusing did not help",
            )  # fmt: skip
        await asyncio.sleep(0)  # others have their turn between the messages of a flood
        return Refusal(
            ErrorCode.RATE_LIMITED,
            f"this server takes {self._bucket.rate:g} messages a second from one client; this one was ignored",
            retry_after_ms=max(1, round(1e3 * wait)),
        )

    def _refuse(self, refusal: Refusal) -> None:
        """Answers a refusal; of a flood only every hundredth, so that answers do not flood back."""
        if refusal.code == ErrorCode.RATE_LIMITED and refusal.event_id is None:
            self._refused += 1
            if self._refused % 100 != 1:
                return
        else:
            self._bad_in_a_row += 1
            if self._bad_in_a_row > MAX_BAD_IN_A_ROW:
                raise Eviction(
                    CloseCode.POLICY, ErrorCode.BAD_MESSAGE, f"{self._bad_in_a_row} refused messages in a row"
                )
        self._outbox.put(error_message(refusal))

    async def _handle(self, message: ClientMessage) -> None:
        session = self._session
        match message:
            case Action():
                self._ack(message.event_id, session.press(message))
            case FrameAck():
                if not self._outbox.acknowledge(message.seq):
                    raise Refusal(ErrorCode.BAD_ACK, f"frame message {message.seq} was never sent", param="seq")
            case Step():
                self._ack(message.step_id, session.ask(message))
                self._lobby.batcher.wake()
            case Control(op="seek"):
                self._ack(message.event_id, *await self._seek(message))
                self._lobby.batcher.wake()
            case Control():
                self._ack(message.event_id, self._control(message))
                self._lobby.batcher.wake()
            case SessionUpdate():
                self._ack(message.event_id, self._update(message))
                self._lobby.batcher.wake()
            case Snapshot():
                self._begin_snapshot(message.event_id)
            case Ping():
                now_ms = round(1e3 * time.time(), 3)
                pong = Pong(type="pong", event_id=message.event_id, client_ts=message.client_ts, server_ts=now_ms)
                self._outbox.put(pong)
            case Pong():
                pass
            case NotOffered():
                raise Refusal(
                    ErrorCode.UNSUPPORTED, f"this server does not offer {message.type}; see capabilities",
                    event_id=message.event_id,
                )  # fmt: skip
            case _:
                assert_never(message)

    def _ack(self, event_id: EventId | None, frame: int, restored: int | None = None) -> None:
        if event_id is not None:
            self._outbox.put(Ack(event_id=event_id, applied_at_frame=frame, restored_frame=restored))

    async def _seek(self, message: Control) -> tuple[int, int]:
        if message.frame is None:
            raise Refusal(
                ErrorCode.BAD_MESSAGE, "seek needs the frame to go back to", param="frame", event_id=message.event_id
            )
        self._check_restarts(message.event_id)
        try:
            recalled = await self._lobby.recall(self._place, message.frame)
        except Refusal as refusal:
            refusal.event_id = message.event_id
            raise
        return self._session.seek(message.frame, message.event_id, recalled)

    def _begin_snapshot(self, event_id: EventId | None) -> None:
        if self._saving is not None and not self._saving.done():
            raise Refusal(ErrorCode.BUSY, "a snapshot of this session is being written", event_id=event_id)
        self._saving = asyncio.ensure_future(self._save(event_id))

    async def _save(self, event_id: EventId | None) -> None:
        try:
            done = await self._snapshot()
            self._outbox.put(done.model_copy(update={"event_id": event_id}))
        except Refusal as refusal:
            refusal.event_id = event_id
            self._outbox.put(error_message(refusal))

    def _control(self, message: Control) -> int:
        session = self._session
        if message.op == "reset":
            return self._restart(message.event_id, seed=message.seed)
        if session.mode == "stepped":
            text = f"a stepped session waits for steps anyway; {message.op} is for realtime ones"
            raise Refusal(ErrorCode.WRONG_MODE, text, param="op", event_id=message.event_id)
        session.pause(message.op == "pause")
        return session.next_frame

    def _update(self, message: SessionUpdate) -> int:
        if message.source is None or message.source == self._session.source:
            return self._session.next_frame
        if message.source not in self._created.capabilities.sources:
            raise Refusal(
                ErrorCode.UNSUPPORTED, "the real game of this world is not installed where this server runs",
                param="source", event_id=message.event_id,
            )  # fmt: skip
        return self._restart(message.event_id, source=message.source)

    def _restart(self, event_id: EventId | None, *, seed: int | None = None, source: Source | None = None) -> int:
        self._check_restarts(event_id)
        return self._session.restart(seed, source)

    def _check_restarts(self, event_id: EventId | None) -> None:
        wait = self._restarts.take()
        if wait > 0.0:
            raise Refusal(
                ErrorCode.RATE_LIMITED, f"a session restarts at most {self._restarts.rate:g} times a second",
                event_id=event_id, retry_after_ms=max(1, round(1e3 * wait)),
            )  # fmt: skip


def error_message(refusal: Refusal, *, fatal: bool = False) -> Error:
    """The refusal as it travels."""
    return Error(
        code=refusal.code,
        message=refusal.message,
        event_id=refusal.event_id,
        param=refusal.param,
        fatal=fatal,
        retry_after_ms=refusal.retry_after_ms,
    )
