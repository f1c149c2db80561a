"""The heartbeat of one replica: reports it to the directory, does what it is told, and stops what it may not play any more."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TypeVar

from wm_jax.scale.directory import Beat, Load, Orders
from wm_jax.serving.service import Service

log = logging.getLogger(__name__)

REPORT_S = 2.0

Answer = TypeVar("Answer")


class DirectoryLost(Exception):
    """The directory did not answer."""


class Heart:
    """Beats in a thread of its own, so that neither a busy event loop nor a slow directory stops the other.

    Args:
      beat: Reports; raises DirectoryLost.
      drain: Lets the players go and ends the server.
    """

    def __init__(
        self,
        identity: tuple[str, str, str, int],
        service: Service,
        beat: Callable[[Beat], Orders],
        drain: Callable[[], None],
        beat_s: float,
        lease_s: float,
    ) -> None:
        self._identity = identity
        self._service = service
        self._beat = beat
        self._drain = drain
        self._beat_s = beat_s
        self._lease_s = lease_s
        self._renewed_at = time.monotonic()
        self._releasing: Future[None] | None = None
        self._is_lost = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def start(self) -> None:
        """Begins to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Beats no more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.once()
            except (TimeoutError, CancelledError, RuntimeError) as error:
                # The event loop is busy, or has ended: no beat goes out, and the directory draws its conclusion.
                log.warning("no beat: %s", error or type(error).__name__)
            self._stopped.wait(self._beat_s)

    def once(self) -> None:
        """One beat, and what follows from it."""
        asked_at = time.monotonic()
        try:
            orders = self._beat(self._on_loop(self._report))
        except DirectoryLost as error:
            log.warning("the directory does not answer: %s", error)
            if time.monotonic() - self._renewed_at > self._lease_s:
                self._lose()
            return
        self._renewed_at, self._is_lost = asked_at, False
        for session_id in orders.stop:
            log.warning("session %s is another replica's now", session_id)
            self._on_loop(lambda name=session_id: self._service.lobby.move(name))
        if orders.drain:
            self._drain()

    def _lose(self) -> None:
        """Nobody vouches for the sessions of this replica any more: they are written and ended here, as far as they can be.

        Where the disk is slow this goes on at the next beat, with the same release: two would write beside each other.
        """
        if self._releasing is None or self._releasing.done():
            if not self._on_loop(lambda: bool(self._service.lobby.epochs())):
                return
            if not self._is_lost:
                log.error("the lease of %g s is over: every session here that can be written is let go", self._lease_s)
            self._is_lost = True
            loop = self._service.loop
            assert loop is not None
            self._releasing = asyncio.run_coroutine_threadsafe(self._service.lobby.release(), loop)
        self._releasing.result(self._lease_s + REPORT_S)

    def _report(self) -> Beat:
        lobby, batcher, rollouts = self._service.lobby, self._service.batcher, self._service.rollouts
        load = Load(
            slots=self._service.config.slots,
            free_slots=batcher.free_slots,
            waiting=lobby.waiting,
            fps=batcher.pace.fps,
            wanted_fps=self._service.config.fps or self._service.world.fps,
            missed=batcher.pace.missed,
            is_ready=batcher.stage.is_ready and not batcher.is_stuck,
            is_draining=lobby.is_draining,
            scripts=rollouts.scripts,
        )
        return Beat(*self._identity, load, lobby.epochs(), lobby.saved(), rollouts.names())

    def _on_loop(self, ask: Callable[[], Answer]) -> Answer:
        """What a function says on the event loop, the only thread that may touch the lobby."""

        async def say() -> Answer:
            return ask()

        loop = self._service.loop
        assert loop is not None, "the server runs before its heart beats"
        answer = say()
        try:
            return asyncio.run_coroutine_threadsafe(answer, loop).result(REPORT_S)
        except RuntimeError:
            answer.close()  # the loop is closed: nobody will await it
            raise
