"""The device loop: gather what every player holds, step all slots at once, scatter the pixels.

Three threads. The device thread (this loop) never waits for pixels unless the device is behind; a second one waits for
them, encodes (large ones with workers) and hands over; the event loop sends. Frame n is encoded while frame n+1 is on the device.
"""

import contextlib
import dataclasses
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, UInt8

from wm_jax.serving.engine import Engine
from wm_jax.serving.history import Mover, Row
from wm_jax.serving.metrics import Times
from wm_jax.serving.outbox import EncodedFrame
from wm_jax.serving.pace import Pace
from wm_jax.serving.protocol import ErrorCode, Refusal
from wm_jax.serving.pulse import Pulse
from wm_jax.serving.real import Arcade
from wm_jax.serving.scatter import encode_turn, is_wanted
from wm_jax.serving.session import Moment, Opening, Session, Turn
from wm_jax.types import Controls

log = logging.getLogger(__name__)

LEAD_S = 0.002
"""How long before the device is expected to be free the next frame is launched."""

MAX_IN_FLIGHT = 2

STUCK_S = 120.0
"""A frame that takes longer will not come any more: the device or its driver hangs. The slowest world here takes ten seconds."""

LARGE = 3 * 256 * 256
"""Bytes of a picture from which several are encoded at the same time; smaller ones take less than handing them over does."""

MAX_FAILURES = 3
"""So many frames one after the other may fail before the engine is taken for broken."""

COPIED = 1 / 8
"""Of how many slots the states are copied before one frame at most: players who began together would all wait for the copies of all."""

Delivery = list[tuple[Session, EncodedFrame]]


def show_all(delivery: Delivery) -> None:
    """Hands every frame to its session; on the thread of the event loop."""
    for session, frame in delivery:
        session.show(frame)


@dataclasses.dataclass
class Stage:
    """How far the server is: compiling, ready or failed."""

    name: str = "loading"
    progress: float = 0.0
    failure: str | None = None

    @property
    def is_ready(self) -> bool:
        return self.name == "ready" and self.failure is None


class Launch(NamedTuple):
    """One call of the compiled step, the slots it steps, and who is in it."""

    frames: UInt8[Array, "b h w 3"]
    chosen: Sequence[int]
    turns: list[tuple[int, Session, Turn]]
    at: float
    host_s: float
    error: Exception | None = None


def _controls(rows: dict[int, Row], chosen: Sequence[int]) -> tuple[Controls, Bool[np.ndarray, " b"]]:
    """What the chosen slots are told, and which of them go on, from what is done in these."""
    first = next(iter(rows.values()))
    keys, active = np.zeros((len(chosen), first.keys.shape[0]), bool), np.zeros(len(chosen), bool)
    mouse = None if first.mouse is None else np.zeros((len(chosen), 2), np.float32)
    for index, slot in enumerate(chosen):
        if (row := rows.get(slot)) is None:
            continue
        keys[index] = row.keys
        active[index] = True
        if mouse is not None:
            mouse[index] = row.mouse
    return Controls(keys, mouse), active


def _encoded(
    launch: Launch, done: float, session: Session, turn: Turn, picture: UInt8[np.ndarray, "h w 3"]
) -> tuple[EncodedFrame, float] | None:
    """The frame of a turn and what encoding it cost; None: it cannot be, which fails its own session alone."""
    try:
        return encode_turn(session, turn, picture, done - launch.at, launch.host_s)
    except Exception:
        known = {"session_id": session.id, "frame_id": turn.frame_id, "event_id": turn.event_id}
        log.exception("a frame could not be encoded", extra=known)
        session.failure = ErrorCode.SERVER_FAILED
        return None


class Batcher:
    """Runs one engine for all sessions.

    Attributes:
      stage: How far the start is; read by anyone.
      pulse: Measurements; read by anyone.
      times: The same as histograms.
      pace: The media clock; its attributes are read by anyone.
    """

    def __init__(self, engine: Engine, arcade: Arcade, fps: float, deliver: Callable[[Delivery], None]) -> None:
        self.stage = Stage()
        self.pulse = Pulse()
        self.times = Times()
        self.engine = engine
        self._arcade = arcade
        arcade.wake = self.wake
        self.pace = Pace(fps)
        self._deliver = deliver
        self._seats: list[Session | None] = [None] * engine.slots
        self._put_off: list[tuple[int, Session]] = []
        self._begun: dict[int, Opening] = {}  # what slots hold whose first frame is not made yet
        self._is_awaited = False
        self._seating = threading.Lock()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._captures: queue.SimpleQueue[tuple[Session, Future[Moment]]] = queue.SimpleQueue()
        self._is_stopping = False
        self._in_flight = 0
        self._failures = 0
        self._is_losing = False
        self._holds = 0
        self._broken: queue.SimpleQueue[Launch] = queue.SimpleQueue()
        self._launched_at = 0.0
        self._is_calling = False
        self._finished: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._launched: queue.SimpleQueue[Launch | None] = queue.SimpleQueue()
        self._last_done = 0.0
        self._device = threading.Thread(target=self._run, name="device", daemon=True)
        self._encoder = threading.Thread(target=self._scatter_all, name="encoder", daemon=True)
        self._mover = Mover()
        self._copies = math.ceil(engine.slots * COPIED)
        self._encoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="encoder")

    # ---- any thread

    def begin(self) -> None:
        """Compiles, then plays, on threads of its own."""
        self._device.start()
        self._encoder.start()

    def stop(self) -> None:
        """Ends both threads; returns when they have."""
        self._is_stopping = True
        self.wake()
        self._device.join()
        self._launched.put(None)
        self._encoder.join()
        self._encoders.shutdown()
        self._mover.close()
        self._arcade.close()

    def wake(self) -> None:
        """Something changed that may be work: a step, room for its frames, a resume, a newcomer."""
        self._bell.put(None)

    @property
    def is_stuck(self) -> bool:
        """Whether the device has not answered for so long that it will not."""
        is_waiting = self._is_calling or not self._is_free
        return is_waiting and time.perf_counter() - self._launched_at > STUCK_S

    @property
    def free_slots(self) -> int:
        """Slots that a player may have."""
        return sum(seated is None or seated.yields for seated in self._seats)

    @property
    def empty_slots(self) -> int:
        """Slots in which nobody sits."""
        return self._seats.count(None)

    def seat(self, session: Session) -> bool:
        """Gives the session a slot for as long as it lives; False: all are taken.

        A player gets that of a session that yields, if no other is free.
        """
        with self._seating:
            slot = next((slot for slot, seated in enumerate(self._seats) if seated is None), None)
            if slot is None and not session.yields:
                slot = next((slot for slot, seated in enumerate(self._seats) if seated and seated.yields), None)
            if slot is None:
                return False
            loser, self._seats[slot] = self._seats[slot], session
        if loser is not None:
            loser.turn_out()
            self._arcade.leave(loser)
        self.wake()
        return True

    def evict(self, session: Session) -> None:
        """Takes the slot back."""
        with self._seating:
            if session in self._seats:
                self._begun.pop(self._seats.index(session), None)
            self._seats = [None if seated is session else seated for seated in self._seats]
        self._arcade.leave(session)

    @property
    def is_held(self) -> bool:
        """Whether no frame is launched now."""
        return self._holds > 0

    def hold(self) -> None:
        """No frame is launched any more; what is under way still comes, and captures are answered. Event loop alone."""
        self._holds += 1
        self.wake()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """The same for a while; whoever holds it meanwhile still does afterwards. Event loop alone."""
        self.hold()
        try:
            yield
        finally:
            self._holds -= 1
            self.wake()

    def capture(self, session: Session) -> "Future[Moment]":
        """A session as it is between two frames, with a copy of all that it remembers.

        Raises (from the future):
          Refusal: it has ended, or plays the real game, which nobody can copy.
        """
        asked: Future[Moment] = Future()
        self._captures.put((session, asked))
        self.wake()
        return asked

    # ---- the device thread

    def _capture_next(self) -> None:
        """Answers one capture: frames come in between, and never many copies are on the device."""
        if self._captures.empty():
            return
        session, asked = self._captures.get()
        if not asked.set_running_or_notify_cancel():
            return  # nobody waits any more
        try:
            asked.set_result(self._moment(session))
        except Exception as error:
            if not isinstance(error, Refusal):
                log.exception("a session could not be copied", extra={"session_id": session.id})
            asked.set_exception(error)

    def _moment(self, session: Session) -> Moment:
        seats = self._seats
        if session not in seats:
            raise Refusal(ErrorCode.UNKNOWN_SESSION, "no such session, or it has ended")
        if session.source == "real":
            text = "this session plays the real game, which cannot be copied; switch it to the dream first"
            raise Refusal(ErrorCode.UNSUPPORTED, text)
        return session.moment(self.engine.take(seats.index(session)))

    def _run(self) -> None:
        try:
            self.engine.compile(self._report)
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
        while True:
            if self._is_stopping:
                return False
            if not self._broken.empty():
                broken = self._broken.get()
                assert broken.error is not None
                self._recover(broken.error, broken.turns)
            self._capture_next()
            wait = self._time_to_next(time.perf_counter())
            if wait is not None and wait <= 0:
                break
            if not self._captures.empty() or self._begin_ahead():
                continue
            if self._has_room_for_steps():
                break
            with contextlib.suppress(queue.Empty):
                self._bell.get(timeout=wait)
        woken = max(time.perf_counter(), self.pace.due)
        self._await_device()
        self._launched_at, self._is_calling = time.perf_counter(), True
        is_tick = self.pace.is_tick(self._launched_at, self.pulse.step_s)
        self.pace.learn(self._launched_at - woken if is_tick else None)
        self._launch(is_tick)
        self._is_calling = False
        return True

    def _time_to_next(self, now: float) -> float | None:
        """Seconds until the next launch; None: nobody wants anything."""
        if self.is_held:
            self.pace.rest()
            return None
        if not self._is_played:
            self.pace.rest()
            return 0.0 if any(self._stepping()) else None
        return self.pace.due - now

    @property
    def _is_played(self) -> bool:
        """Whether anybody plays in real time."""
        return any(session and session.is_playing for session in self._seats)

    def _stepping(self) -> Iterator[tuple[int, Session]]:
        """The stepped sessions that could make a frame, and their slots."""
        for slot, session in enumerate(self._seats):
            if session is not None and session.mode == "stepped" and self._is_due(session, is_tick=False):
                yield slot, session

    def _has_room_for_steps(self) -> bool:
        """Whether frames of stepped sessions can be made before the next tick; those that begin with theirs are to be begun first."""
        ready = sum(not self._is_new(slot, session) for slot, session in self._stepping())
        self._is_awaited = self._is_awaited or ready > 0
        return ready > 0 and self._is_free and self.pace.has_room(time.perf_counter(), self._longest(ready))

    @property
    def _is_free(self) -> bool:
        """Whether the device has made all that was launched."""
        return self._in_flight == self._finished.qsize()

    def _longest(self, rows: int) -> float:
        """Seconds that a frame of so many sessions may take, as it looks."""
        return self.pulse.longest_of.get(self.engine.size_for(rows), self.pulse.step_s)

    def _is_new(self, slot: int, session: Session) -> bool:
        """Whether the device has a dream to begin before the next frame of this session."""
        return session.is_to_begin and self._begun.get(slot) is not session.beginning

    def _begin_ahead(self) -> bool:
        """Begins one dream while no frame is made or due, so that nobody else's frame has to wait for it."""
        newcomer = next(self._newcomers(), None)
        self._is_awaited = newcomer is not None  # before the device is looked at: the encoder rings once it is free
        began = time.perf_counter()
        has_time = began + self._start_s < self.pace.due
        if newcomer is None or not has_time or self.is_held or not self._is_free:
            return False
        slot, session = newcomer
        opening = session.beginning
        if opening is None:
            return False
        self._launched_at, self._is_calling = began, True
        try:
            if self._seat(slot, session, opening):
                self.engine.wait()
                self._begun[slot] = opening
                self.pulse.count_start(time.perf_counter() - began)
        except Exception as error:
            log.exception("a dream could not be begun; the others go on from their last frames")
            if self._broken.empty():  # nothing else was on the device
                session.failure = ErrorCode.ENGINE_FAILED
            self._recover(error, [])
        self._is_calling = False
        return True

    @property
    def _start_s(self) -> float:
        """How long before a tick a dream has to begin, so that the tick need not wait for it: twice what that takes."""
        return 2.0 * max(self.engine.start_s, self.pulse.start_s)

    def _newcomers(self) -> Iterator[tuple[int, Session]]:
        """Who waits for a dream that is not begun yet: first those whom a tick has put off, in their order."""
        for slot in self._in_turn(self._put_off):
            session = self._seats[slot]
            if session is not None and self._is_new(slot, session) and self._is_due(session, is_tick=True):
                yield slot, session

    def _in_turn(self, before: list[tuple[int, Session]]) -> list[int]:
        """All slots, first of those who were put off before and still sit there."""
        first = [slot for slot, session in before if self._seats[slot] is session]
        return [*first, *(slot for slot in range(len(self._seats)) if slot not in first)]

    def _await_device(self) -> None:
        """Waits until the device is free, or nearly: launching earlier would only make the controls older."""
        while self._in_flight and not self._finished.empty():
            self._finished.get()
            self._in_flight -= 1
        if self._in_flight >= MAX_IN_FLIGHT:
            self._finished.get()
            self._in_flight -= 1
        if self._in_flight:
            wait = self._launched_at + self.pulse.step_s - LEAD_S - time.perf_counter()
            if wait > 0:
                with contextlib.suppress(queue.Empty):
                    self._finished.get(timeout=wait)
                    self._in_flight -= 1

    def _launch(self, is_tick: bool) -> None:
        began_cpu = time.thread_time()
        turns: list[tuple[int, Session, Turn]] = []
        try:
            self._gather(is_tick, turns)
            if not turns:
                return
            rows = {slot: Row(turn.keys, turn.mouse) for slot, _, turn in turns}
            chosen = self.engine.choose(rows, self.pace.crowd.count(len(rows)) if is_tick else 0)
            controls, active = _controls(rows, chosen)
            called, called_cpu = time.perf_counter(), time.thread_time()
            frames = self.engine.step(controls, active, chosen)
        except Exception as error:
            log.exception("a frame could not be launched; its sessions go on from the one before it")
            self._recover(error, turns)
            return
        self._launched_at = time.perf_counter()
        self._launched.put(Launch(frames, chosen, turns, self._launched_at, called_cpu - began_cpu))
        self._in_flight += 1
        self.pulse.count_launch(self._launched_at - called)

    def _recover(self, error: Exception, turns: list[tuple[int, Session, Turn]]) -> None:
        """After a frame that failed: every session is again what it was after its last good one.

        Raises:
          Exception: the error, if frame after frame fails; whatever fails in here.
        """
        self.pulse.failures += 1
        self._failures += 1
        if self._failures > MAX_FAILURES:
            raise error
        while self._in_flight:
            self._finished.get()
            self._in_flight -= 1
        self._is_losing = False
        while not self._broken.empty():
            turns = [*turns, *self._broken.get().turns]
        for _, session, turn in sorted(turns, key=lambda taken: -taken[2].frame_id):
            session.give_back(turn)
        self.engine.forget()
        self._begun.clear()
        self._make_again()

    def _make_again(self) -> None:
        """Brings every session, from the last state that is kept of it, to where it was; they share the calls."""
        ways: dict[int, list[Row]] = {}
        for slot, session in enumerate(self._seats):
            if session is None or not session.is_seated:
                continue
            way = session.way_back()
            if way is None:
                session.failure = ErrorCode.ENGINE_FAILED
                continue
            self.engine.seat(slot, way.known)
            ways[slot] = way.rows
        was_calling, self._is_calling = self._is_calling, True
        for index in range(max(map(len, ways.values()), default=0)):
            rows = {slot: row[index] for slot, row in ways.items() if index < len(row)}
            chosen = self.engine.choose(rows)
            self._launched_at = time.perf_counter()
            self.engine.step(*_controls(rows, chosen), chosen).block_until_ready()
        self._is_calling = was_calling

    def _gather(self, is_tick: bool, turns: list[tuple[int, Session, Turn]]) -> None:
        """Takes every latch into `turns`; starts dreams anew where asked; sends the turns of real games to the arcade.

        Whoever begins does not make those wait who play: it is put off once, to begin between two frames, and where there is
        no time for all beginnings some come later, in the order in which they were put off, and before others.
        """
        room, before, self._put_off = self._beginnings(is_tick), self._put_off, []
        can_wait = is_tick and self._can_begin_between()
        for slot in self._in_turn(before):
            session = self._seats[slot]
            if session is None:
                continue
            was_put_off = (slot, session) in before
            if not self._is_due(session, is_tick):
                if was_put_off and session.is_to_begin:
                    self._put_off.append((slot, session))
                continue
            if self._is_new(slot, session):
                if not room or (can_wait and not was_put_off):
                    self._put_off.append((slot, session))
                    continue
                room -= 1
            turn = session.take(self.pace.fps)
            if turn is None:
                continue
            if turn.source == "real":
                self._arcade.play(session, turn)
                continue
            is_begun = self._begun.pop(slot, None) is turn.opening
            if turn.opening is not None and not is_begun and not self._seat(slot, session, turn.opening):
                continue
            turns.append((slot, session, turn))
            if turn.opening is not None:
                self._mover.move(session.begins(turn.frame_id, turn.opening))
        self._keep_some(turns)
        for _, session, turn in turns:
            session.is_launched(turn)

    def _keep_some(self, turns: list[tuple[int, Session, Turn]]) -> None:
        """Copies the states that are due, a few before each frame: of those first whose sessions wait longest for it."""
        due: list[tuple[float, int, Session, Turn]] = []
        for slot, session, turn in turns:
            late = session.lateness(turn.frame_id)
            if late is not None:
                due.append((late, slot, session, turn))
        due.sort(key=lambda one: one[0], reverse=True)
        copied = 0
        for late, slot, session, turn in due:
            has_room = copied < self._copies and (self._mover.has_room or not session.moves_states)
            if has_room or late == math.inf:
                self._keep(slot, session, turn.frame_id)
                copied += 1

    def _keep(self, slot: int, session: Session, frame_id: int) -> None:
        """Copies a state; where the device has no room for one the frame is made all the same."""
        try:
            memory = self.engine.take(slot)
        except Exception:
            log.exception("a state could not be kept", extra={"session_id": session.id})
            session.cannot_keep()
            return
        self._mover.move(session.keep(frame_id, memory))

    def _beginnings(self, is_tick: bool) -> int:
        """How many dreams may begin with a frame now: with a tick as many as there is time for until the next one, and one at
        least; between ticks none, unless nobody plays.
        """
        start_s, slots = self.engine.start_s, len(self._seats)
        if not start_s or not self._is_played:
            return slots
        return min(slots, max(1, int((1.0 / self.pace.fps - self.pulse.step_s) / start_s))) if is_tick else 0

    def _can_begin_between(self) -> bool:
        """Whether a dream can begin after this tick and before the next, and anybody plays on whose frame it would delay here."""
        has_time = self.pulse.step_s + self._start_s < 1.0 / self.pace.fps
        is_shared = any(session and session.is_playing and not session.is_to_begin for session in self._seats)
        return self.engine.start_s > 0.0 and has_time and is_shared

    def _seat(self, slot: int, session: Session, opening: Opening) -> bool:
        """Starts a dream in its slot; a beginning that cannot be made fails its own session alone."""
        try:
            self.engine.seat(slot, opening)
        except Exception:
            log.exception("a session cannot begin as it wants to", extra={"session_id": session.id})
            session.failure = ErrorCode.ENGINE_FAILED
            if not self.engine.is_sound:
                raise
            return False
        return True

    def _is_due(self, session: Session, is_tick: bool) -> bool:
        if not (is_tick and session.is_playing if session.mode == "realtime" else session.has_steps):
            return False
        return self._arcade.is_free(session)

    # ---- the encoder thread

    def _scatter_all(self) -> None:
        while (launch := self._launched.get()) is not None:
            try:
                # What was launched after a lost frame, before anybody knew, is taken back with it.
                if self._is_losing:
                    raise RuntimeError("the frame before this one was lost")
                pixels = np.asarray(launch.frames)
            except Exception as error:
                log.exception("a frame was lost; its sessions go on from the one before it")
                self._is_losing = True
                self._broken.put(launch._replace(error=error))
                self._finished.put(None)
                self.wake()
                continue
            try:
                self._scatter(launch, pixels)
            except Exception as error:
                log.exception("frames could not be handed over")
                self.stage.failure = f"{type(error).__name__}: {error}"
                self._fail_all()

    def _scatter(self, launch: Launch, pixels: np.ndarray) -> None:
        done, done_cpu = time.perf_counter(), time.thread_time()
        self._failures = 0
        self._finished.put(None)
        if self._is_awaited:
            self.wake()
        step_s = done - max(launch.at, self._last_done)
        self._last_done = done
        delivery: Delivery = []
        encode_s = 0.0
        jobs = [
            (session, turn, pixels[launch.chosen.index(slot)])
            for slot, session, turn in launch.turns
            if is_wanted(session, turn)
        ]
        is_spread = len(jobs) > 1 and pixels[0].size >= LARGE
        spread = self._encoders.map if is_spread else map
        for (session, turn, _), made in zip(jobs, spread(lambda job: _encoded(launch, done, *job), jobs), strict=True):
            if made is None:
                continue
            frame, seconds = made
            encode_s += seconds
            delivery.append((session, frame))
            self._observe(session, turn)
        self._deliver(delivery)
        self.times.step.observe(step_s)
        host_s = launch.host_s + time.thread_time() - done_cpu - (0.0 if is_spread else encode_s)
        self.pulse.count_frame(len(launch.turns), len(launch.chosen), step_s, encode_s, host_s)

    def _observe(self, session: Session, turn: Turn) -> None:
        if turn.pressed_at is not None:
            self.times.action_to_frame.observe(time.perf_counter() - turn.pressed_at)
        if not session.has_shown:
            session.has_shown = True
            self.times.first_frame.observe(time.monotonic() - session.started_at)
