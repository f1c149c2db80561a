"""Events -> the frames they decide, made by a stepped session of its own that gives its slot to the first player who wants it."""

import asyncio
import contextlib
import hashlib
import os
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from wm_jax.serving.batcher import Batcher
from wm_jax.serving.codec import Mp4Writer
from wm_jax.serving.events import Events
from wm_jax.serving.history import Foreseen, History
from wm_jax.serving.outbox import MAX_STEPPED_FRAMES, Outbox
from wm_jax.serving.protocol import ErrorCode, Message, Refusal
from wm_jax.serving.session import MAX_WAITING_STEPS, Moment, Session
from wm_jax.types import ControlSpace

LOOK_S = 0.5
"""How often a session that gets no frame is looked after."""

BEHIND = 10
"""What makes videos is this much less urgent to the operating system than what makes frames for players."""

Result = TypeVar("Result")

Report = Callable[[int], None]
"""Told how many frames are done."""


class SlotTaken(Exception):
    """A player needed the slot; the frames can be made again later, from the first one."""


async def frames_of(
    events: Events, controls: ControlSpace, fps: float, batcher: Batcher, history: History
) -> AsyncGenerator[UInt8[np.ndarray, "h w 3"]]:
    """Every frame in order; states are kept at the same frames as in `history`, that of the session that was recorded.

    Raises:
      SlotTaken: there is no free slot, or a player took it.
      Refusal: the world of this server failed, or the real game did.
    """
    opening = events.chapters[0].opening
    uses = {one.opening.back_to: one.first for one in events.chapters if one.opening.back_to is not None}
    foreseen = Foreseen(history.depth, history.every, uses)
    outbox = Outbox(None, batcher.wake)
    session = Session(controls, fps, outbox, opening, mode="stepped", codec="raw", history=foreseen)
    session.go_on(session.id, Moment(opening, events.first, events.chapters[0].keys[0]), is_fork=False)
    session.yields = session.is_connected = True
    session.has_shown = True  # no player waits for its first frame
    if not batcher.seat(session):
        raise SlotTaken
    try:
        pieces = events.pieces(MAX_STEPPED_FRAMES)
        piece = next(pieces, None)
        for _ in range(events.frames):
            while piece is not None and session.waiting_steps < MAX_WAITING_STEPS:
                goes_back = piece.opening is not None and piece.opening.back_to is not None
                if goes_back and session.frames < piece.first:
                    break  # what it goes back to may not have been made yet
                session.follow(piece)
                piece = next(pieces, None)
            batcher.wake()
            yield await _next_frame(session, batcher)
    finally:
        batcher.evict(session)


async def _next_frame(session: Session, batcher: Batcher) -> UInt8[np.ndarray, "h w 3"]:
    while True:
        try:
            async with asyncio.timeout(LOOK_S):
                item = await session.outbox.next()
        except TimeoutError:
            failure = ErrorCode.ENGINE_FAILED if batcher.stage.failure else session.failure
            if batcher.is_held:
                raise Refusal(ErrorCode.DRAINING, "this server is about to stop", retry_after_ms=10_000) from None
            if failure is not None:
                raise Refusal(failure, "a frame of the replay could not be made; the server's log says why") from None
            continue
        if isinstance(item, Message):  # nobody else writes to it
            raise SlotTaken
        assert isinstance(item.payload, bytes), "its codec is raw, and nobody asked for pixels"
        return np.frombuffer(item.payload, np.uint8).reshape(item.header.h, item.header.w, 3)


class Film:
    """Frames on their way into files: an MP4, an .npy (uint8 `[t h w 3]`) where nothing may be lost, both or none.

    Attributes:
      frames: How many were written.
    """

    def __init__(
        self, video: Path | None, lossless: Path | None, fps: float, image: tuple[int, int], count: int
    ) -> None:
        self.frames = 0
        self._known = hashlib.sha256()
        self._video = None if video is None else Mp4Writer(video, fps, image)
        self._lossless = None if lossless is None else lossless.open("wb")
        if self._lossless is not None:
            form = {"descr": "|u1", "fortran_order": False, "shape": (count, *image, 3)}
            np.lib.format.write_array_header_1_0(self._lossless, form)

    @property
    def sha256(self) -> str:
        """Of all pixels so far, frame after frame: two replays that agree in it agree to the bit."""
        return self._known.hexdigest()

    def write(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        pixels = np.ascontiguousarray(frame)
        self._known.update(pixels)
        if self._video is not None:
            self._video.write(pixels)
        if self._lossless is not None:
            self._lossless.write(pixels)
        self.frames += 1

    def close(self) -> None:
        if self._video is not None:
            self._video.close()
        if self._lossless is not None:
            self._lossless.close()


async def film(
    frames: AsyncGenerator[UInt8[np.ndarray, "h w 3"]], reel: Film, worker: ThreadPoolExecutor, report: Report
) -> str:
    """Writes them all on the worker's thread, and closes the reel there; the SHA-256 of all pixels."""
    loop = asyncio.get_running_loop()
    try:
        async with contextlib.aclosing(frames):
            async for frame in frames:
                await loop.run_in_executor(worker, reel.write, frame)
                report(reel.frames)
    finally:
        # After a cancelled write, which goes on: no two threads may use the encoder.
        await to_its_end(loop.run_in_executor(worker, reel.close))
    return reel.sha256


async def to_its_end(running: "asyncio.Future[Result]") -> Result:
    """What a thread does with files, waited for even by whoever is cancelled: he removes them next."""
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return running.result()


def film_worker() -> ThreadPoolExecutor:
    """The thread that encodes videos, behind all that players wait for."""
    return ThreadPoolExecutor(1, thread_name_prefix="film", initializer=_step_back)


def _step_back() -> None:
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BEHIND)
