"""The real game behind the same messages: one env a session, each on a thread of its own, never on the device thread."""

import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from wm_jax.serving.outbox import EncodedFrame
from wm_jax.serving.protocol import ErrorCode
from wm_jax.serving.scatter import encode_turn, is_wanted
from wm_jax.serving.session import Opening, Session, Turn

if TYPE_CHECKING:
    import gymnasium

log = logging.getLogger(__name__)

MAX_SEED = 2**31 - 1


class RealGame:
    """One env, opened at its first frame; episodes follow one another without an end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._env: gymnasium.Env[Any, Any] | None = None
        self._seed = 0

    def play(self, keys: np.ndarray, opening: Opening | None) -> UInt8[np.ndarray, "h w 3"]:
        """The frame after these keys; the first one of an episode where it starts anew."""
        if self._env is None:
            from wm_jax import envs  # gymnasium is slow to import, and most players only dream

            self._env = envs.make(self._name, split="held_out")
        if opening is not None:
            self._seed = opening.seed % MAX_SEED
            return np.asarray(self._env.reset(seed=self._seed)[0])
        frame, _, terminated, truncated, _ = self._env.step(keys)
        if terminated or truncated:
            self._seed = (self._seed + 1) % MAX_SEED
            return np.asarray(self._env.reset(seed=self._seed)[0])
        return np.asarray(frame)

    def close(self) -> None:
        if self._env is not None:
            self._env.close()


class Seat:
    """A session's game and its thread."""

    def __init__(self, name: str) -> None:
        self.game = RealGame(name)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="game")
        self.is_busy = False


class Arcade:
    """The real games of all sessions that play them.

    Attributes:
      name: The game.
    """

    def __init__(
        self,
        name: str,
        deliver: Callable[[list[tuple[Session, EncodedFrame]]], None],
    ) -> None:
        self.name = name
        self.wake: Callable[[], None] = lambda: None
        self._deliver = deliver
        self._seats: dict[str, Seat] = {}
        self._left: weakref.WeakSet[Session] = weakref.WeakSet()
        self._lock = threading.Lock()

    def is_free(self, session: Session) -> bool:
        """Whether the session's last real frame is done; always true of one that only dreams."""
        seat = self._seats.get(session.id)
        return seat is None or not seat.is_busy

    def play(self, session: Session, turn: Turn) -> None:
        """Asks for one frame; it is delivered when the game has made it. Nothing happens once the session has left."""
        with self._lock:
            # The device thread may still hold the turn of a session that the event loop has just ended.
            if session in self._left:
                return
            if session.id not in self._seats:
                self._seats[session.id] = Seat(self.name)
            seat = self._seats[session.id]
            seat.is_busy = True
            seat.thread.submit(self._play, seat, session, turn)

    def leave(self, session: Session) -> None:
        """Closes the session's game, if it had one; it gets no other."""
        with self._lock:
            self._left.add(session)
            seat = self._seats.pop(session.id, None)
            if seat is not None:
                seat.thread.submit(seat.game.close)
                seat.thread.shutdown(wait=False)

    def close(self) -> None:
        """Closes every game and waits for it."""
        with self._lock:
            seats = list(self._seats.values())
            self._seats.clear()
        for seat in seats:
            seat.thread.submit(seat.game.close)
            seat.thread.shutdown(wait=True)

    def _play(self, seat: Seat, session: Session, turn: Turn) -> None:
        began = time.perf_counter()
        try:
            pixels = seat.game.play(turn.keys, turn.opening)
            if is_wanted(session, turn):
                frame, _ = encode_turn(session, turn, pixels, time.perf_counter() - began)
                self._deliver([(session, frame)])
        except Exception:
            log.exception("a real game failed", extra={"session_id": session.id, "frame_id": turn.frame_id})
            session.failure = ErrorCode.GAME_FAILED
        finally:
            seat.is_busy = False
            self.wake()
