"""Who may come in: sessions, their tokens and deadlines, and the end of each."""

import asyncio
import dataclasses
import hmac
import logging
import secrets
import time
from typing import TYPE_CHECKING

from structlog.contextvars import get_contextvars

from wm_jax.serving import models
from wm_jax.serving.batcher import Batcher
from wm_jax.serving.bodies import CreateSession, Media, SessionState
from wm_jax.serving.config import ServeConfig
from wm_jax.serving.events import EventLog
from wm_jax.serving.history import Filed, History, Kept, Trail, host_memory_mb, room_for
from wm_jax.serving.keeper import Keeper, Terms
from wm_jax.serving.outbox import Outbox
from wm_jax.serving.protocol import CloseCode, Error, ErrorCode, GoAway, Mode, Queue, Refusal, SessionEnded
from wm_jax.serving.session import Moment, Opening, Session
from wm_jax.serving.snapshots import Record, Superseded
from wm_jax.serving.tokens import Permit
from wm_jax.types import ControlSpace

if TYPE_CHECKING:
    from wm_jax.serving.spectator import Spectator
    from wm_jax.serving.websocket import Connection

log = logging.getLogger(__name__)

SWEEP_S = 0.5

HOST_SHARE = 0.5
"""Of this machine's memory what the kept states of all sessions may occupy at most."""

CLOSING_S = 10.0
"""What the goodbyes of all connections may take when the server stops; each has a much shorter bound of its own."""

DRAINING = "draining"
MOVED = "moved to another server"
"""Reasons after which a session goes on elsewhere: what is written of it stays."""
TIME_IS_UP = "time is up"

FAILURES = {
    ErrorCode.GAME_FAILED: "the real game of this session failed; the server's log says why",
    ErrorCode.ENGINE_FAILED: "the world of this server failed; the server's log says why",
    ErrorCode.SERVER_FAILED: "a frame of this session could not be made; the server's log says why",
}


@dataclasses.dataclass
class Place:
    """A session with all that decides how long it may stay.

    Attributes:
      token: For the first connection; good until `expires_at` (seconds since the epoch).
      resume_token: For later ones; good as long as the session.
      left_at: Monotonic time at which its connection dropped, or at which it was created.
      awaited_until: Monotonic time until which its next connection may come, where one was promised that it may.
      heard_at: Monotonic time of the client's last message.
      kept_at: The next frame of what was last written to the disk.
      is_kept: Whether its client may come back to it in another process.
      permit: Of the ephemeral token that opened it, if one did.
      ends_at: When that token's sessions have lasted long enough (seconds since the epoch); it is set with a slot.
      spectators: Sockets that watch it; they do not keep it alive.
      request_id: Of the request that opened it, in its log lines.
      epoch: How often it was taken up from the disk; of two servers that have it the higher one owns it.
    """

    session: Session
    token: str
    expires_at: float
    resume_token: str
    linger_s: float
    left_at: float
    heard_at: float
    awaited_until: float = 0.0
    connection: "Connection | None" = None
    was_connected: bool = False
    ended: str | None = None
    kept_at: int = -1
    is_kept: bool = False
    epoch: int = 0
    permit: Permit | None = None
    ends_at: float | None = None
    spectators: "list[Spectator]" = dataclasses.field(default_factory=list)
    request_id: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """What its log lines begin with."""
        names = {"session_id": self.session.id}
        return names if self.request_id is None else {**names, "request_id": self.request_id}

    @property
    def is_written(self) -> bool:
        """Whether something of it is on the disk, from which another process can go on."""
        return self.kept_at >= 0 or self.session.resumed_at is not None

    def sit_down(self) -> None:
        """It has its slot: from now on its time runs, where it has little."""
        if self.permit is not None and self.permit.max_session_s is not None and self.ends_at is None:
            self.ends_at = time.time() + self.permit.max_session_s


class Lobby:
    """All sessions of one server. Used by the event loop alone."""

    def __init__(
        self,
        config: ServeConfig,
        controls: ControlSpace,
        fps: float,
        batcher: Batcher,
        memory_bytes: int,
        keeper: Keeper | None = None,
    ) -> None:
        self.config = config
        self.keeper = keeper
        self.batcher = batcher
        self.is_draining = False
        host_mb = min(config.history_host_mb, HOST_SHARE * host_memory_mb() / config.slots)
        self.room = room_for(memory_bytes, config.history, config.history_mb, host_mb)
        log.info(
            "%d states of a session are kept, one every %d frames, %d of them on the device",
            *(self.room.depth, config.history_every, self.room.on_device),
        )
        self._controls = controls
        self._fps = fps
        self._places: dict[str, Place] = {}
        self._waiting: list[Place] = []
        self._dropped = 0
        self._stays = 0.0  # mean length of the sessions that ended, in seconds; 0: none has

    def create(self, body: CreateSession, opening: Opening, permit: Permit | None = None) -> Place:
        """Seats a new session, for the bearer of an ephemeral token if `permit` is given.

        Raises:
          Refusal: every slot is taken, the token has as many sessions as it may, or the server is about to stop.
        """
        if permit is not None:
            self._check_count(permit)
        place = self._seat(self._session(body, opening), body.linger_s, permit=permit)
        known = {"mode": body.mode, "source": body.source, "codec": body.media.codec, "status": self.status(place)}
        log.info("session begins", extra={**place.named, **known})
        return place

    def resume(self, record: Record, moment: Moment, resume_token: str, epoch: int) -> Place:
        """Seats a session of an earlier process, or of another server.

        Raises:
          Refusal: every slot is taken, or the server is about to stop.
        """
        body = CreateSession(mode=record.mode, media=Media(codec=record.codec, quality=record.quality))
        session = self._session(body, dataclasses.replace(moment.opening, memory=None))
        session.stride = record.stride
        session.go_on(record.session_id, moment, record.is_fork)
        newest = None if moment.opening.memory is None else Filed(epoch, moment.frame_id)
        session.trail = Trail(self.config.history_disk, [Filed(*one) for one in record.past], newest)
        place = self._seat(session, record.linger_s, resume_token, record.permit, record.ends_at)
        place.epoch = epoch
        place.was_connected = True
        self.await_client(place, self.config.token_s)  # ended at once it would be forgotten, and `linger_s` may be 0
        log.info("session resumes", extra={**place.named, "frame_id": moment.frame_id, "from": "disk"})
        return place

    def admit(self, place: Place) -> None:
        """Gives a session a new token for its next connection, where the one it has may be spent."""
        place.token = secrets.token_urlsafe(24)
        place.expires_at = time.time() + self.config.token_s
        self.await_client(place, self.config.token_s)

    def await_client(self, place: Place, seconds: float) -> None:
        """A session whose client was let in, and is not connected yet, stays so long, whatever its `linger_s`."""
        place.awaited_until = max(place.awaited_until, time.monotonic() + seconds)

    def check_room(self, mode: Mode, comes_back: bool = False) -> None:
        """Passes where one session more would be seated, or could wait.

        Args:
          comes_back: It was seated before, in another process.

        Raises:
          Refusal: the server is full or its device too slow, it is about to stop, or its world has failed.
        """
        self.check_open()
        if not self._has_seat(mode, comes_back):
            self._check_queue(mode)

    def _check_queue(self, mode: Mode) -> None:
        if len(self._waiting) < self.config.queue:
            return
        line = f" and {self.config.queue} wait for one" if self.config.queue else ""
        text = f"all {self.config.slots} slots are taken{line}; try again later, or start the server with more --slots"
        if self.batcher.free_slots and self._costs_too_much(mode):
            text = (
                f"the device makes {self.batcher.pace.fps:g} of {self.batcher.pace.wanted:g} frames a second and takes nobody "
                f"more on, though slots are free{line}; try again later, or start the server with fewer --slots or a lower --fps"
            )
        raise Refusal(ErrorCode.FULL, text, retry_after_ms=5_000)

    def _costs_too_much(self, mode: Mode) -> bool:
        """Whether the clock runs as slowly as it may, and one player more would make every frame take longer still."""
        playing, engine = sum(place.session.is_playing for place in self._places.values()), self.batcher.engine
        is_late = mode == "realtime" and self.batcher.pace.is_exhausted and 0 < playing < engine.slots
        return is_late and engine.size_for(playing + 1) > engine.size_for(playing)

    def _has_seat(self, mode: Mode, comes_back: bool) -> bool:
        """Whether there is a slot for one session more, and nothing that it must wait for; who comes back waits for a slot alone."""
        must_wait = not comes_back and (bool(self._waiting) or self._costs_too_much(mode))
        return self.batcher.free_slots > 0 and not must_wait

    def _check_count(self, permit: Permit) -> None:
        mine = sum(place.permit is not None and place.permit.jti == permit.jti for place in self._places.values())
        if mine >= permit.max_sessions:
            text = f"this token has {mine} sessions here, as many as it may have at once; end one, or ask for another token"
            raise Refusal(ErrorCode.TOO_MANY_SESSIONS, text, retry_after_ms=5_000)

    def check_open(self) -> None:
        """Passes where anything may begin.

        Raises:
          Refusal: the server is about to stop, or its world has failed.
        """
        if self.batcher.stage.failure is not None:
            raise Refusal(ErrorCode.ENGINE_FAILED, "the world of this server failed; its log says why")
        if self.is_draining:
            raise Refusal(ErrorCode.DRAINING, "this server is about to stop", retry_after_ms=10_000)

    def new_history(self) -> History:
        """For the states of one session."""
        return History(self.room.depth, self.config.history_every, self.room.on_device)

    def _session(self, body: CreateSession, opening: Opening) -> Session:
        models.check_codec(body.media.codec, body.mode)
        session = Session(
            self._controls,
            self._fps,
            Outbox(None if body.mode == "stepped" else self.config.credit_window, self.batcher.wake),
            opening,
            mode=body.mode,
            source=body.source,
            codec=body.media.codec,
            quality=body.media.quality or self.config.quality,
            max_fps=body.media.max_fps,
            max_step_frames=self.config.max_step_frames,
            history=self.new_history(),
            events=EventLog(self.config.record_frames),
        )
        session.trail = Trail(self.config.history_disk if self.keeper is not None else 0)
        return session

    def _seat(
        self,
        session: Session,
        linger_s: float | None,
        resume_token: str | None = None,
        permit: Permit | None = None,
        ends_at: float | None = None,
    ) -> Place:
        self.check_open()
        is_seated = self._has_seat(session.mode, _comes_back(session)) and self.batcher.seat(session)
        if not is_seated:
            self._check_queue(session.mode)
        now = time.monotonic()
        place = Place(
            session=session,
            token=secrets.token_urlsafe(24),
            expires_at=time.time() + self.config.token_s,
            resume_token=resume_token or secrets.token_urlsafe(24),
            linger_s=self.config.linger_s if linger_s is None else linger_s,
            left_at=now,
            heard_at=now,
            permit=permit,
            ends_at=ends_at,
            request_id=get_contextvars().get("request_id"),
        )
        self._places[session.id] = place
        if is_seated:
            place.sit_down()
        else:
            self._waiting.append(place)
        return place

    def get(self, session_id: str) -> Place | None:
        """The session of that name, if it is here."""
        return self._places.get(session_id)

    def find(self, session_id: str) -> Place:
        """The session of that name.

        Raises:
          Refusal: there is none, or no more.
        """
        place = self.get(session_id)
        if place is None:
            raise Refusal(ErrorCode.UNKNOWN_SESSION, "no such session, or it has ended", param="session_id")
        return place

    def check_token(self, place: Place, token: str) -> None:
        """Lets the bearer of this session's token pass.

        Raises:
          Refusal: another session's token, no token, or one that has expired.
        """
        if hmac.compare_digest(token.encode(), place.resume_token.encode()):
            return
        if not hmac.compare_digest(token.encode(), place.token.encode()):
            raise Refusal(ErrorCode.UNAUTHORIZED, f"the token in wm.auth.<token> is not session {place.session.id}'s")
        if time.time() > place.expires_at:
            raise Refusal(
                ErrorCode.UNAUTHORIZED,
                f"the token expired after {self.config.token_s:g} s; resume with the resume_token of session.created",
            )

    def status(self, place: Place) -> str:
        """The session's state in one word of the protocol."""
        session = place.session
        if place.ended is not None:
            return "ended"
        if place in self._waiting:
            return "queued"
        if session.failure is not None or self.batcher.stage.failure is not None:
            return "failed"
        if self.is_draining:
            return "draining"
        if not self.batcher.stage.is_ready:
            return "starting"
        if session.is_paused:
            return "paused"
        return "running" if session.is_connected else "ready"

    def state(self, place: Place) -> SessionState:
        """What `GET /v1/sessions/{id}` tells."""
        session = place.session
        return SessionState(
            session_id=session.id,
            status=self.status(place),
            code=session.failure,
            mode=session.mode,
            source=session.source,
            frames=session.frames,
            dropped=session.outbox.dropped,
            seconds=round(time.monotonic() - session.started_at, 3),
            kept=session.kept_frames(),
        )

    async def recall(self, place: Place, frame_id: int) -> Kept | None:
        """What going back to that frame needs from the disk; None: nothing, or nothing that old is there.

        Raises:
          Refusal: the disk is too slow.
        """
        session = place.session
        while self.keeper is not None and (filed := session.filed_at(frame_id)) is not None:
            try:
                return await self.keeper.recall(session.id, filed)
            except Refusal as refusal:
                if refusal.code != ErrorCode.UNKNOWN_SNAPSHOT:
                    raise
                log.info("%s", refusal.message, extra=place.named)
                session.trail.drop(filed)
        return None

    def end(self, place: Place, reason: str, code: CloseCode = CloseCode.NORMAL) -> None:
        """Ends a session: its slot is free at once, its client is told."""
        if place.ended is not None:
            return
        place.ended = reason
        session = place.session
        self._places.pop(session.id, None)
        self._dropped += session.outbox.dropped
        session.is_connected = False
        if place in self._waiting:
            self._waiting.remove(place)
        else:
            stayed = time.monotonic() - session.started_at
            self._stays = stayed if self._stays == 0.0 else self._stays + 0.2 * (stayed - self._stays)
        self.batcher.evict(session)
        self._seat_next()
        # What the client did not end itself lies on the disk, if it was ever written, and waits there.
        place.is_kept = self.keeper is not None and place.is_written and _goes_on(place)
        if self.keeper is not None and not _goes_on(place):
            self.keeper.forget(session.id, place.epoch)
        seconds = round(time.monotonic() - session.started_at, 3)
        told = {"reason": reason, "frames": session.frames, "seconds": seconds, "dropped": session.outbox.dropped}
        log.info("session ends", extra={**place.named, **told})
        last = SessionEnded(reason=reason, frames=session.frames, seconds=seconds, resumable=place.is_kept)
        for connection in _sockets(place):
            connection.finish(last, code)

    def move(self, session_id: str) -> None:
        """Another server owns this session now: here it stops, and what is written of it is left alone."""
        place = self.get(session_id)
        if place is not None:
            self.end(place, MOVED, CloseCode.TAKEN_OVER)

    async def release(self) -> None:
        """Writes and ends every session, and takes new ones afterwards: nobody can tell whose they are any more.

        What is not on the disk plays on, or waits on: nobody else can take it up, and whoever lets go asks again.
        """
        if self.keeper is None:
            return
        with self.batcher.holding():  # nobody is shown a frame that is not in what is written
            for place in list(self._places.values()):
                if await self._keep(place) and place.is_written:
                    self.end(place, DRAINING, CloseCode.GO_AWAY)

    def epochs(self) -> dict[str, int]:
        """The epoch of every session that is here."""
        return {session_id: place.epoch for session_id, place in self._places.items()}

    def saved(self) -> dict[str, int]:
        """The frame with which every session would go on that was written to the disk."""
        return {session_id: place.kept_at for session_id, place in self._places.items() if place.kept_at >= 0}

    @property
    def waiting(self) -> int:
        """Sessions that wait for a slot."""
        return len(self._waiting)

    @property
    def ids(self) -> set[str]:
        """The names of all sessions."""
        return set(self._places)

    def states(self) -> list[str]:
        """The state of every session."""
        return [self.status(place) for place in self._places.values()]

    @property
    def dropped(self) -> int:
        """Frames that slow clients lost so far."""
        return self._dropped + sum(place.session.outbox.dropped for place in self._places.values())

    def queue(self, place: Place) -> Queue | None:
        """Where a session stands that waits for a slot; None: it has one."""
        if place not in self._waiting:
            return None
        position = self._waiting.index(place) + 1
        eta_s = round(self._stays * position / self.config.slots, 1) if self._stays else None
        return Queue(position=position, size=len(self._waiting), eta_s=eta_s)

    def _seat_next(self) -> None:
        """Gives free slots to those who wait; while the device is too slow for one more only to those who come back."""
        for place in list(self._waiting):
            if not _comes_back(place.session) and self._costs_too_much(place.session.mode):
                continue
            if self.is_draining or not self.batcher.seat(place.session):
                return
            self._waiting.remove(place)
            place.sit_down()

    async def sweep_forever(self) -> None:
        """Ends what nobody came for, nobody came back to, or nobody speaks to; seats who waited for a faster clock."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            for place in list(self._places.values()):
                self._sweep(place, now)
            self._seat_next()

    async def drain(self) -> None:
        """Tells every player, waits a little, ends every session."""
        self.is_draining = True
        deadline = time.monotonic() + self.config.drain_s
        for place in self._places.values():
            message = GoAway(
                deadline_ms=round(1e3 * self.config.drain_s),
                reason="the server is about to stop",
                resumable=self.keeper is not None and (place.is_written or not self._is_elsewhere(place)),
                resume_url=self._resume_url(place),
            )
            for connection in _sockets(place):
                connection.tell(message)
        while self._connected() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        self.batcher.hold()  # nobody is shown a frame that is not in what is written
        for place in list(self._places.values()):
            await self._keep(place)
        finishing = [connection.closed for place in self._places.values() for connection in _sockets(place)]
        for place in list(self._places.values()):
            self.end(place, DRAINING, CloseCode.GO_AWAY)
        try:
            async with asyncio.timeout(CLOSING_S):
                await asyncio.gather(*(closed.wait() for closed in finishing))
        except TimeoutError:
            open_still = sum(not closed.is_set() for closed in finishing)
            log.error("%d connections did not close within %g s; the server stops without them", open_still, CLOSING_S)
        if self.keeper is not None:
            await self.keeper.settle()

    def _resume_url(self, place: Place) -> str | None:
        """Where the client may come back at once, if there is such a place."""
        base = self.config.resume_url
        return None if base is None else f"{base.rstrip('/')}/v1/sessions/{place.session.id}/resume"

    async def keep_forever(self) -> None:
        """Writes every session that went on since, and makes room, every `snapshot_every_s` seconds."""
        assert self.keeper is not None
        while True:
            await asyncio.sleep(self.config.snapshot_every_s)
            for place in list(self._places.values()):
                if place.ended is None and not await self._is_kept(place):
                    await self._keep(place)
            try:
                await self.keeper.sweep(self.ids)
            except Exception:  # whatever lies in that folder: what is saved next must still be saved
                log.exception("the folder of snapshots could not be swept")

    def _is_elsewhere(self, place: Place) -> bool:
        """Whether nothing of it is on the device: it waits for a slot, or plays the real game. What was written of it counts."""
        return place.session.source == "real" or place in self._waiting

    async def _is_kept(self, place: Place) -> bool:
        """Whether all of it is on the disk, and marked as new: what somebody has removed there is written again."""
        assert self.keeper is not None
        is_old = place.session.frames <= place.kept_at and place.session.beginning is None
        is_same = is_old or self._is_elsewhere(place)
        return is_same and await self.keeper.touch(place.session.id, place.epoch)

    async def _keep(self, place: Place) -> bool:
        """Writes a session to the disk; whether all that can be written of it is."""
        if self.keeper is None or self._is_elsewhere(place) or not self.batcher.stage.is_ready:
            return True
        is_written = False
        try:
            terms = Terms(place.resume_token, place.linger_s, place.permit, place.ends_at)
            place.kept_at = await self.keeper.keep(place.session, terms, place.epoch)
            is_written = True
        except Superseded as moved:
            log.warning("%s", moved)
            self.move(place.session.id)
        except Exception:  # whatever it was: the others are to be written all the same, and a drain is to end
            if place.ended is None or _goes_on(place):
                log.exception("a session could not be saved", extra=place.named)
        return is_written

    def _connected(self) -> list[Place]:
        return [place for place in self._places.values() if place.connection is not None]

    def _sweep(self, place: Place, now: float) -> None:
        session = place.session
        if session.failure is not None:
            code, message = session.failure, FAILURES[session.failure]
            session.outbox.put(Error(code=code, message=message, fatal=True))
            self.end(place, code, CloseCode.GO_AWAY)
        elif place.ends_at is not None and time.time() > place.ends_at:
            self.end(place, TIME_IS_UP)
        elif place.connection is not None:
            if now - place.heard_at > self.config.idle_s:
                self.end(place, ErrorCode.IDLE, CloseCode.IDLE)
        elif now < place.awaited_until:
            return
        elif not place.was_connected:
            if time.time() > place.expires_at:
                self.end(place, "never connected")
        elif now - place.left_at > place.linger_s:
            self.end(place, "connection lost")


def _comes_back(session: Session) -> bool:
    """Whether it was seated before, in another process: it is not new here, and not held up like those who are."""
    return session.resumed_at is not None


def _goes_on(place: Place) -> bool:
    """Whether a session that has ended here goes on elsewhere, or later: its client did not end it."""
    return place.session.failure is not None or place.ended in (DRAINING, MOVED)


def _sockets(place: Place) -> "list[Connection]":
    """Everybody who sees this session: its player, if connected, and its spectators."""
    return [*([] if place.connection is None else [place.connection]), *place.spectators]
