"""A WebSocket that only watches: the player's frames with credit of its own, and no word in the matter."""

from typing import NoReturn

from wm_jax.serving.lobby import Lobby, Place
from wm_jax.serving.outbox import Outbox
from wm_jax.serving.protocol import ClientMessage, ErrorCode, FrameAck, Ping, Pong, Refusal, SessionCreated
from wm_jax.serving.transport import Transport
from wm_jax.serving.websocket import Connection


class Spectator(Connection):
    """A spectator's WebSocket. It sees the bytes that were encoded for the player, and loses frames of its own if it is slow."""

    def __init__(self, lobby: Lobby, place: Place, transport: Transport, created: SessionCreated) -> None:
        super().__init__(lobby, place, transport, created, _cannot_save, Outbox(lobby.config.credit_window))

    async def _take_over(self) -> None:
        """Nobody is sent away for a spectator.

        Raises:
          Refusal: as many watch as may.
        """
        if len(self._place.spectators) >= self._lobby.config.spectators:
            text = f"{len(self._place.spectators)} watch this session, as many as may (--spectators); try again later"
            raise Refusal(ErrorCode.FULL, text, retry_after_ms=5_000)

    def _enter(self) -> None:
        self._transport.begin(self._session)
        self._outbox.put(self._created)
        self._place.spectators.append(self)
        self._session.viewers.append(self._outbox)

    def _leave(self) -> None:
        self._place.spectators.remove(self)
        self._session.viewers.remove(self._outbox)
        self.closed.set()

    def _hear(self) -> None:
        """What a spectator says keeps no session alive."""

    async def _handle(self, message: ClientMessage) -> None:
        if not isinstance(message, Ping | Pong | FrameAck):
            text = f"this is a spectator's connection, which may send ping, pong and frame.ack, not {message.type}"
            event_id = getattr(message, "event_id", None)
            raise Refusal(ErrorCode.READ_ONLY, text, event_id=event_id)
        await super()._handle(message)


async def _cannot_save() -> NoReturn:
    raise AssertionError("a spectator asked for a snapshot and was not refused")
