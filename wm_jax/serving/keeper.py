"""Which sessions are on the disk, and how they come back: between the lobby, which knows them, and the store, which waits."""

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import jax

from wm_jax.serving.protocol import ErrorCode, Refusal
from wm_jax.serving.session import Moment, Opening, Session
from wm_jax.serving.snapshots import PREFIX, Record, SnapshotStore
from wm_jax.serving.tokens import Permit

log = logging.getLogger(__name__)

CAPTURE_S = 5.0

MAX_QUEUED = 8
"""Sessions that may wait to be written."""


class Terms(NamedTuple):
    """On what terms a session is held: who may come back to it, how long it waits, and how long it may last; see `Place`."""

    resume_token: str
    linger_s: float
    permit: Permit | None = None
    ends_at: float | None = None


class Keeper:
    """Saves sessions beside the play and finds them again. Used by the event loop alone."""

    def __init__(self, store: SnapshotStore, capture: "Callable[[Session], Future[Moment]]") -> None:
        self._store = store
        self._capture = capture
        self._queued = 0
        self._saving = asyncio.Lock()  # of two saves of one session the later one must be the one that stays

    async def keep(self, session: Session, terms: Terms, epoch: int = 0) -> int:
        """Writes a session under its own name; the frame that it will go on with.

        Raises:
          Superseded: another server has taken the session up.
          Refusal: the session has ended, plays the real game, or the device is busy.
          OSError: the disk is full or broken.
        """
        return (await self._save(session.id, session, terms, epoch))[1].frame_id

    async def snapshot(self, session: Session, terms: Terms) -> tuple[str, Record, int]:
        """Writes a session under a new name that any number of others may start from: name, record, bytes.

        Raises:
          Refusal, OSError: as `keep`.
        """
        name = PREFIX + secrets.token_urlsafe(18)
        size, record = await self._save(name, session, terms)
        return name, record, size

    async def check(self, session_id: str, resume_token: str) -> None:
        """Passes where a session of another process can be taken up with this token.

        Raises:
          Refusal: none is kept under that name, or it is another token's.
        """
        if session_id.startswith(PREFIX):
            raise Refusal(ErrorCode.UNKNOWN_SESSION, "no such session, or it has ended", param="session_id")
        try:
            record = await asyncio.to_thread(self._store.read, session_id)
        except Refusal as refusal:
            text = f"no such session, or it has ended: {refusal.message}"
            raise Refusal(ErrorCode.UNKNOWN_SESSION, text, param="session_id") from None
        if not hmac.compare_digest(record.resume_sha256, _digest(resume_token)):
            raise Refusal(ErrorCode.UNAUTHORIZED, f"the token is not session {session_id}'s")

    async def claim(self, session_id: str) -> tuple[Record, Moment, int]:
        """Takes a session of another process up, and its new epoch: no other server writes it from now on.

        Raises:
          Refusal: none is kept under that name, or what is kept cannot be read.
        """

        def take() -> tuple[Record, Moment, int]:
            epoch = self._store.claim(session_id)
            return *self._store.load(session_id), epoch

        return await asyncio.to_thread(take)

    async def load(self, name: str) -> tuple[Record, Moment]:
        """A snapshot that was asked for.

        Raises:
          Refusal: there is none of that name, or it is of another world.
        """
        if not name.startswith(PREFIX):
            raise Refusal(ErrorCode.UNKNOWN_SNAPSHOT, "no such snapshot, or it has expired", param="init.snapshot")
        return await asyncio.to_thread(self._store.load, name)

    def forget(self, session_id: str, epoch: int = 0) -> None:
        """The session has ended: nobody may come back to it."""
        self._store.forget(session_id, epoch)

    def touch(self, session_id: str, epoch: int = 0) -> None:
        """The session is still here, as it was written: it is not old."""
        self._store.touch(session_id, epoch)

    async def sweep(self) -> None:
        """Makes room."""
        await asyncio.to_thread(self._store.sweep)

    async def _save(self, name: str, session: Session, terms: Terms, epoch: int = 0) -> tuple[int, Record]:
        if self._queued >= MAX_QUEUED:
            raise Refusal(ErrorCode.BUSY, "too many sessions are being written already", retry_after_ms=1000)
        self._queued += 1
        try:
            return await self._save_next(name, session, terms, epoch)
        finally:
            self._queued -= 1

    async def _save_next(self, name: str, session: Session, terms: Terms, epoch: int) -> tuple[int, Record]:
        async with self._saving:
            moment = await captured(self._capture(session))
            record = self._record(session, terms, moment)
            return await asyncio.to_thread(self._store.save, name, record, moment, epoch), record

    def _record(self, session: Session, terms: Terms, moment: Moment) -> Record:
        opening, memory = moment.opening, moment.opening.memory
        return Record(
            world=self._store.world,
            session_id=session.id,
            resume_sha256=_digest(terms.resume_token),
            saved_at=time.time(),
            linger_s=terms.linger_s,
            permit=terms.permit,
            ends_at=terms.ends_at,
            mode=session.mode,
            codec=session.codec,
            quality=session.quality,
            stride=session.stride,
            seed=opening.seed,
            prompt=opening.prompt,
            frame_id=moment.frame_id,
            held=[bool(key) for key in moment.keys],
            is_fork=session.opening.memory is not None,
            stream=None if memory is None else memory.stream,
        )


async def captured(asked: "Future[Moment]") -> Moment:
    """The moment that a batcher was asked for.

    Raises:
      Refusal: it cannot be had, or not within `CAPTURE_S`.
    """
    try:
        moment = await asyncio.wait_for(asyncio.wrap_future(asked), CAPTURE_S)
    except TimeoutError:
        raise Refusal(ErrorCode.BUSY, "the device is busy; try again", retry_after_ms=1000) from None
    except Exception as error:
        if isinstance(error, Refusal):
            raise
        raise Refusal(ErrorCode.BUSY, "the session could not be copied; try again", retry_after_ms=1000) from None
    await sound(moment.opening)
    return moment


async def sound(opening: Opening) -> Opening:
    """The opening, once its memory is made: a copy of what a failed frame left would bring the failure into another slot.

    Raises:
      Refusal: it was made of such a frame.
    """
    try:
        await asyncio.to_thread(jax.block_until_ready, opening.memory)
    except Exception:
        log.exception("a copy was made of a frame that failed")
        raise Refusal(ErrorCode.BUSY, "a frame failed just now; try again", retry_after_ms=1000) from None
    return opening


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
