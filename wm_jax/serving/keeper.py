"""Which sessions are on the disk, and how they come back: between the lobby, which knows them, and the store, which waits."""

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import jax

from wm_jax.serving.history import Filed, Kept
from wm_jax.serving.protocol import ErrorCode, Refusal
from wm_jax.serving.session import Moment, Opening, Session
from wm_jax.serving.snapshots import LOOK_S, LOOKS, PREFIX, Record, SnapshotStore
from wm_jax.serving.tokens import Permit

log = logging.getLogger(__name__)

CAPTURE_S = 5.0
RECALL_S = 2.0
"""How long a player waits for a state that lies on the disk: no longer than what is said meanwhile finds room."""

MAX_QUEUED = 8
"""Sessions that may wait to be written."""

READERS = 4
"""Threads that wait for the disk where something is looked for or taken up."""

Answer = TypeVar("Answer")


class Terms(NamedTuple):
    """On what terms a session is held: who may come back to it, how long it waits, and how long it may last; see `Place`."""

    resume_token: str
    linger_s: float
    permit: Permit | None = None
    ends_at: float | None = None


class Keeper:
    """Saves sessions beside the play and finds them again. Used by the event loop alone, which never waits for the disk.

    All that changes a file is done by one thread in the order in which it was asked for, so that what was written before a
    session ended does not come back after it was forgotten. Its threads are its own: a disk that hangs holds up no other.
    """

    def __init__(self, store: SnapshotStore, capture: "Callable[[Session], Future[Moment]]") -> None:
        self._store = store
        self._capture = capture
        self._writer = ThreadPoolExecutor(1, "disk-writer")
        self._readers = ThreadPoolExecutor(READERS, "disk-reader")
        self._saving = asyncio.Lock()  # of two saves of one session the later one must be the one that stays
        self._queued = Counter[str]()  # saves by name, from when they are asked for until they are done
        self._over = set[str]()  # of those the sessions that were forgotten meanwhile
        self._leaving = Counter[str]()  # sessions whose files are still to be removed
        self._left = asyncio.Event()
        self._looking = asyncio.Lock()
        self._listing: asyncio.Task[set[str]] | None = None

    async def settle(self) -> None:
        """Returns when nothing is left on the disk of sessions that have ended."""
        while self._leaving:
            self._left.clear()
            await self._left.wait()

    def close(self) -> None:
        """Lets its threads end with what they do; nothing is asked of it any more."""
        for pool in (self._writer, self._readers):
            pool.shutdown(wait=False)

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
        self._check_stays(session_id)
        if session_id.startswith(PREFIX) or not await self._is_there(session_id):
            raise _no_session()
        try:
            record = await self._read(self._store.read, session_id)
        except Refusal as refusal:
            raise _no_session(refusal) from None
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

        self._check_stays(session_id)
        try:
            return await self._read(take)
        except Refusal as refusal:
            raise _no_session(refusal) from None

    async def load(self, name: str) -> tuple[Record, Moment]:
        """A snapshot that was asked for.

        Raises:
          Refusal: there is none of that name, or it is of another world.
        """
        if not name.startswith(PREFIX):
            raise Refusal(ErrorCode.UNKNOWN_SNAPSHOT, "no such snapshot, or it has expired", param="init.snapshot")
        return await self._read(self._store.load, name)

    async def recall(self, session_id: str, filed: Filed) -> Kept:
        """What a session remembered before one of its frames, from the disk.

        Raises:
          Refusal: it is not there any more, or the disk is too slow.
        """
        try:
            memory = await asyncio.wait_for(self._read(self._store.recall, session_id, filed), RECALL_S)
        except TimeoutError:
            text = f"the server's disk is too slow to go back to frame {filed.frame_id} now; try again"
            raise Refusal(ErrorCode.BUSY, text, param="frame", retry_after_ms=10_000) from None
        return Kept(filed.frame_id, memory)

    def forget(self, session_id: str, epoch: int = 0) -> None:
        """The session has ended: nobody may come back to it. Its file goes when the disk has time; `settle` waits for that."""
        if self._queued[session_id]:
            self._over.add(session_id)
        self._leaving[session_id] += 1
        self._write(self._store.forget, session_id, epoch).add_done_callback(lambda _: self._forgotten(session_id))

    async def touch(self, session_id: str, epoch: int = 0) -> bool:
        """The session is still here, as it was written: it is not old. False: it is not on the disk any more."""
        return await self._write(self._store.touch, session_id, epoch)

    async def sweep(self, played: set[str]) -> None:
        """Makes room, and leaves the sessions that are here alone."""
        await self._write(self._store.sweep, played)

    def _write(self, what: Callable[..., Answer], *arguments: object) -> "asyncio.Future[Answer]":
        return asyncio.get_running_loop().run_in_executor(self._writer, what, *arguments)

    def _read(self, what: Callable[..., Answer], *arguments: object) -> "asyncio.Future[Answer]":
        return asyncio.get_running_loop().run_in_executor(self._readers, what, *arguments)

    def _forgotten(self, session_id: str) -> None:
        _count_down(self._leaving, session_id)
        self._left.set()

    def _check_stays(self, session_id: str) -> None:
        if session_id in self._leaving:
            raise _no_session()

    async def _is_there(self, name: str) -> bool:
        """Whether anything is kept under that name. Anybody may ask for any, so all share what it costs to look."""
        try:
            for _ in range(LOOKS):
                if name in await self._names():
                    return True
        except OSError as error:
            log.warning("the folder of snapshots cannot be read: %s", error)
            text = "the server's disk cannot be read now; try again"
            raise Refusal(ErrorCode.BUSY, text, retry_after_ms=10_000) from None
        return False

    async def _names(self) -> set[str]:
        """What is in the folder, by a listing that has not begun: all who ask until then share it."""
        if self._listing is None:
            self._listing = asyncio.create_task(self._list())
        return await asyncio.shield(self._listing)  # one that does not wait any more takes it from nobody

    async def _list(self) -> set[str]:
        async with self._looking:
            await asyncio.sleep(LOOK_S)
            self._listing = None
            return await self._read(self._store.names)

    async def _save(self, name: str, session: Session, terms: Terms, epoch: int = 0) -> tuple[int, Record]:
        if self._queued.total() >= MAX_QUEUED:
            raise Refusal(ErrorCode.BUSY, "too many sessions are being written already", retry_after_ms=1000)
        self._queued[name] += 1
        try:
            return await self._save_next(name, session, terms, epoch)
        finally:
            _count_down(self._queued, name)
            if name not in self._queued:
                self._over.discard(name)

    async def _save_next(self, name: str, session: Session, terms: Terms, epoch: int) -> tuple[int, Record]:
        async with self._saving:
            moment = await captured(self._capture(session))
            writing = session.writing(moment.frame_id) if name == session.id else None
            record = self._record(session, terms, moment, [] if writing is None else writing.filed)
            if name in self._over:
                raise _no_session()
            size = await self._write(self._store.save, name, record, moment, epoch, writing)
            if writing is not None:
                session.trail.follow(writing, None if moment.opening.memory is None else Filed(epoch, moment.frame_id))
            return size, record

    def _record(self, session: Session, terms: Terms, moment: Moment, filed: list[Filed]) -> Record:
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
            past=[(one.epoch, one.frame_id) for one in filed],
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
    if opening.memory is None:
        return opening
    try:
        await asyncio.to_thread(jax.block_until_ready, opening.memory.state)
    except Exception:
        log.exception("a copy was made of a frame that failed")
        raise Refusal(ErrorCode.BUSY, "a frame failed just now; try again", retry_after_ms=1000) from None
    return opening


def _no_session(why: Refusal | None = None) -> Refusal:
    text = "no such session, or it has ended" + ("" if why is None else f": {why.message}")
    return Refusal(ErrorCode.UNKNOWN_SESSION, text, param="session_id")


def _count_down(counter: Counter[str], name: str) -> None:
    """One less of it; what is none is not held, for names come without end."""
    counter[name] -= 1
    if not counter[name]:
        del counter[name]


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
