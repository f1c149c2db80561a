"""The device loop: gather what every player holds, step all slots at once, scatter the pixels.

Three threads. The device thread (this loop) never waits for pixels unless the device is behind; a second one waits for
them, encodes and hands over; the event loop sends. Frame n is encoded while frame n+1 is on the device.
"""

import dataclasses
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np
from jaxtyping import Array, UInt8

from wm_jax.serving.engine import Engine
from wm_jax.serving.outbox import EncodedFrame
from wm_jax.serving.protocol import ErrorCode
from wm_jax.serving.real import Arcade
from wm_jax.serving.scatter import encode_turn, is_wanted
from wm_jax.serving.session import Session, Turn

log = logging.getLogger(__name__)

LEAD_S = 0.002
"""How long before the device is expected to be free the next frame is launched."""

MAX_IN_FLIGHT = 2

Delivery = list[tuple[Session, EncodedFrame]]


@dataclasses.dataclass
class Stage:
    """How far the server is: compiling, ready or failed."""

    name: str = "loading"
    progress: float = 0.0
    failure: str | None = None

    @property
    def is_ready(self) -> bool:
        return self.name == "ready" and self.failure is None


@dataclasses.dataclass
class Launch:
    """One call of the compiled step, and who is in it."""

    frames: UInt8[Array, "b h w 3"]
    turns: list[tuple[int, Session, Turn]]
    at: float
    host_s: float
    done: threading.Event = dataclasses.field(default_factory=threading.Event)


@dataclasses.dataclass
class Pulse:
    """What the loop measures of itself: running means over about the last hundred frames.

    Attributes:
      step_s: From launch to pixels on the host.
      host_s: This process' own work for one frame outside the device call and the encoder.
      launch_s: The device call as the host sees it, until it returns.
    """

    frames: int = 0
    missed_ticks: int = 0
    step_s: float = 0.0
    host_s: float = 0.0
    launch_s: float = 0.0
    encode_s: float = 0.0

    def mix(self, **measured: float) -> None:
        for name, value in measured.items():
            old = getattr(self, name)
            setattr(self, name, value if old == 0.0 else old + 0.02 * (value - old))


class Batcher:
    """Runs one engine for all sessions.

    Attributes:
      stage: How far the start is; read by anyone.
      pulse: Measurements; read by anyone.
    """

    def __init__(self, engine: Engine, arcade: Arcade, fps: float, deliver: Callable[[Delivery], None]) -> None:
        self.stage = Stage()
        self.pulse = Pulse()
        self._engine = engine
        self._arcade = arcade
        arcade.wake = self.wake
        self._period = 1.0 / fps
        self._deliver = deliver
        self._seats: list[Session | None] = [None] * engine.slots
        self._wake = threading.Condition()
        self._is_stopping = False
        self._due = 0.0
        self._in_flight: deque[Launch] = deque()
        self._launched: queue.SimpleQueue[Launch | None] = queue.SimpleQueue()
        self._last_done = 0.0
        self._device = threading.Thread(target=self._run, name="device", daemon=True)
        self._encoder = threading.Thread(target=self._scatter_all, name="encoder", daemon=True)

    # ---- any thread

    def begin(self) -> None:
        """Compiles, then plays, on threads of its own."""
        self._device.start()
        self._encoder.start()

    def stop(self) -> None:
        """Ends both threads; returns when they have."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._device.join()
        self._launched.put(None)
        self._encoder.join()
        self._arcade.close()

    def wake(self) -> None:
        """Something changed that may be work: a step, a resume, a newcomer."""
        with self._wake:
            self._wake.notify()

    @property
    def free_slots(self) -> int:
        return self._seats.count(None)

    def seat(self, session: Session) -> bool:
        """Gives the session a slot for as long as it lives; False: all are taken."""
        with self._wake:
            if None not in self._seats:
                return False
            self._seats[self._seats.index(None)] = session
            self._wake.notify()
            return True

    def evict(self, session: Session) -> None:
        """Takes the slot back."""
        with self._wake:
            self._seats = [None if seated is session else seated for seated in self._seats]
        self._arcade.leave(session)

    # ---- the device thread

    def _run(self) -> None:
        try:
            self._engine.compile(self._report)
            while self._wait_for_work():
                pass
        except Exception as error:
            log.exception("the device loop failed")
            self.stage.failure = f"{type(error).__name__}: {error}"
            self._fail_all()

    def _report(self, name: str, progress: float) -> None:
        log.info("%s (%d %%)", name, round(100 * progress))
        self.stage.progress = progress
        self.stage.name = name

    def _fail_all(self) -> None:
        for session in self._seats:
            if session is not None:
                session.failure = ErrorCode.ENGINE_FAILED

    def _wait_for_work(self) -> bool:
        """Sleeps until a frame is due and launches it; False when it is time to stop."""
        with self._wake:
            while not self._is_stopping:
                now = time.perf_counter()
                wait = self._time_to_next(now)
                if wait is not None and wait <= 0:
                    break
                self._wake.wait(wait)
            else:
                return False
        self._await_device()
        self._launch(is_tick=self._is_tick(time.perf_counter()))
        return True

    def _time_to_next(self, now: float) -> float | None:
        """Seconds until the next launch; None: nobody wants anything."""
        seated = [session for session in self._seats if session is not None]
        is_playing = any(session.is_playing for session in seated)
        is_stepping = any(session.has_steps and self._arcade.is_free(session) for session in seated)
        if not is_playing:
            self._due = 0.0
            return 0.0 if is_stepping else None
        if is_stepping and now + self.pulse.step_s < self._due:
            return 0.0
        return self._due - now

    def _is_tick(self, now: float) -> bool:
        """Moves the media clock on if a tick is due. Late ticks are skipped and counted, never made up for."""
        if now < self._due:
            return False
        late = now - self._due
        if self._due > 0.0 and late >= self._period:
            self.pulse.missed_ticks += int(late / self._period)
        self._due = self._due + self._period if late < self._period else now + self._period
        return True

    def _await_device(self) -> None:
        """Waits until the device is free, or nearly: launching earlier would only make the controls older."""
        while self._in_flight and self._in_flight[0].done.is_set():
            self._in_flight.popleft()
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            self._in_flight.popleft().done.wait()
        if self._in_flight:
            newest = self._in_flight[-1]
            newest.done.wait(max(0.0, newest.at + self.pulse.step_s - LEAD_S - time.perf_counter()))

    def _launch(self, is_tick: bool) -> None:
        began = time.perf_counter()
        turns = self._gather(is_tick)
        if not turns:
            return
        keys = np.zeros((self._engine.slots, turns[0][2].keys.shape[0]), bool)
        active = np.zeros(self._engine.slots, bool)
        for slot, _, turn in turns:
            keys[slot] = turn.keys
            active[slot] = True
        called = time.perf_counter()
        frames = self._engine.step(keys, active)
        returned = time.perf_counter()
        self.pulse.mix(launch_s=returned - called)
        launch = Launch(frames, turns, returned, called - began)
        self._in_flight.append(launch)
        self._launched.put(launch)

    def _gather(self, is_tick: bool) -> list[tuple[int, Session, Turn]]:
        """Takes every latch; starts dreams anew where asked; sends the turns of real games to the arcade."""
        turns: list[tuple[int, Session, Turn]] = []
        for slot, session in enumerate(self._seats):
            if session is None or not self._is_due(session, is_tick):
                continue
            turn = session.take()
            if turn is None:
                continue
            if turn.source == "real":
                self._arcade.play(session, turn)
                continue
            if turn.opening is not None:
                self._engine.seat(slot, turn.opening)
            turns.append((slot, session, turn))
        return turns

    def _is_due(self, session: Session, is_tick: bool) -> bool:
        if session.mode == "realtime" and not (is_tick and session.is_playing):
            return False
        return self._arcade.is_free(session)

    # ---- the encoder thread

    def _scatter_all(self) -> None:
        while (launch := self._launched.get()) is not None:
            try:
                self._scatter(launch)
            except Exception as error:
                log.exception("a frame could not be made")
                self.stage.failure = f"{type(error).__name__}: {error}"
                self._fail_all()
                launch.done.set()

    def _scatter(self, launch: Launch) -> None:
        pixels = np.asarray(launch.frames)
        done = time.perf_counter()
        launch.done.set()
        step_s = done - max(launch.at, self._last_done)
        self._last_done = done
        delivery: Delivery = []
        encode_s = 0.0
        for slot, session, turn in launch.turns:
            if not is_wanted(session, turn):
                continue
            frame, seconds = encode_turn(session, turn, pixels[slot], done - launch.at, launch.host_s)
            encode_s += seconds
            delivery.append((session, frame))
        self._deliver(delivery)
        self.pulse.frames += 1
        self.pulse.mix(
            step_s=step_s,
            encode_s=encode_s,
            host_s=launch.host_s + time.perf_counter() - done - encode_s,
        )
