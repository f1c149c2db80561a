"""The device loop under an engine that costs nothing: one slot, frames of zeros."""

import asyncio
import contextlib
import itertools
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import numpy as np
import pytest

from tests.serving.conftest import wait_until
from wm_jax.serving import batcher as batcher_module
from wm_jax.serving import pace
from wm_jax.serving.batcher import Batcher
from wm_jax.serving.bodies import CreateSession, Media
from wm_jax.serving.config import ServeConfig
from wm_jax.serving.engine import Engine
from wm_jax.serving.history import Foreseen, History, Memory
from wm_jax.serving.lobby import Lobby
from wm_jax.serving.outbox import MAX_STEPPED_FRAMES, EncodedFrame, Outbox, Sending, Spent
from wm_jax.serving.protocol import Refusal, Step
from wm_jax.serving.real import Arcade
from wm_jax.serving.scatter import encode_turn
from wm_jax.serving.session import Opening, Session
from wm_jax.types import ControlSpace, KeyBinding

KEYS = ControlSpace((KeyBinding("Space", "fire"),))
FRAMES = 3 * MAX_STEPPED_FRAMES


class StillEngine(Engine):
    """Nothing moves and nothing compiles."""

    def __init__(self) -> None:
        self.slots = 1
        self.sizes = (1,)

    def compile(self, report) -> None:
        report("ready", 1.0)

    def seat(self, slot, opening) -> None:
        pass

    def step(self, controls, active, chosen=None):
        return np.zeros((1, 8, 8, 3), np.uint8)


class ForgetfulEngine(Engine):
    """Shows how many keys were held so far, which is all it remembers; the pixels of one frame never come."""

    def __init__(self, lost: int) -> None:
        self.slots = 1
        self.sizes = (1,)
        self.held = 0
        self._lost = lost
        self._made = 0

    def compile(self, report) -> None:
        report("ready", 1.0)

    @property
    def is_sound(self) -> bool:
        return True

    def forget(self) -> None:
        self.held = -100

    def seat(self, slot, opening) -> None:
        self.held = 0 if opening.memory is None else opening.memory.state

    def take(self, slot) -> Memory:
        return Memory(self.held)

    def step(self, controls, active, chosen=None):
        self.held += int(controls.keys[0].sum())
        self._made += 1
        return LostFrames() if self._made == self._lost else Frames(self.held)


class Frames:
    """As a device gives them: pixels when they are asked for, a little later."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __array__(self, dtype=None, copy=None):
        time.sleep(0.002)
        return np.full((1, 8, 8, 3), self.value, np.uint8)

    def block_until_ready(self):
        return self


class LostFrames(Frames):
    def __init__(self) -> None:
        super().__init__(0)

    def block_until_ready(self):
        raise RuntimeError("the device had a bad moment")

    def __array__(self, dtype=None, copy=None):
        time.sleep(0.02)  # meanwhile the next frame is launched
        raise RuntimeError("the pixels never came")


@pytest.mark.parametrize("lost", [1, 2, 7, 15, 16, 17, 40])
def test_a_lost_frame_and_what_was_launched_after_it_are_made_again(lost):
    """In order, once each, and under the keys that were asked for."""
    delivered: list[Any] = []
    engine = ForgetfulEngine(lost)
    batcher = Batcher(engine, Arcade("none", delivered.extend), 30.0, delivered.extend)
    session = Session(KEYS, 30.0, Outbox(None), Opening(0), mode="stepped", codec="raw", history=History(4, 5))
    session.is_connected = True
    assert batcher.seat(session)
    rows = [index % 3 == 0 for index in range(48)]
    for step in range(8):
        held = [{"held": ["Space"] if row else []} for row in rows[6 * step : 6 * step + 6]]
        session.ask(Step.model_validate({"type": "step", "step_id": step, "actions": held}))
    batcher.begin()
    deadline = time.monotonic() + 20
    while len(delivered) < len(rows) and time.monotonic() < deadline:
        time.sleep(0.01)
    batcher.stop()
    assert [frame.frame_id for _, frame in delivered] == list(range(len(rows)))
    assert [frame.payload[0] for _, frame in delivered] == np.cumsum(rows).tolist()
    assert batcher.pulse.failures == 1 and session.failure is None


POISON = -1000


class PoisonedEngine(ForgetfulEngine):
    """Two slots; the frame that fails takes the state of all along, and what is copied or goes on from it fails too."""

    def __init__(self) -> None:
        super().__init__(lost=-1)
        self.slots, self.sizes, self.is_failing = 2, (2,), False
        self.states = [0, 0]

    def forget(self) -> None:
        self.states = [0, 0]

    def seat(self, slot, opening) -> None:
        if POISON not in self.states:  # all slots are rows of the same arrays
            self.states[slot] = 0 if opening.memory is None else opening.memory.state

    def take(self, slot) -> Memory:
        return Memory(self.states[slot])

    def step(self, controls, active, chosen=None):
        for slot in np.flatnonzero(active).tolist():
            self.is_failing |= self.states[slot] == POISON
            self.states[slot] += int(controls.keys[slot].sum())
        if self.is_failing:
            self.states, self.is_failing = [POISON, POISON], False
            return LostFrames()
        return np.stack([np.full((8, 8, 3), state, np.uint8) for state in self.states]).view(Pixels)


class Pixels(np.ndarray):
    def block_until_ready(self):
        return self


def test_who_joins_while_a_frame_is_being_lost_begins_again_and_ends_nobody():
    """What is kept of a newcomer was copied out of a state that is no more."""
    delivered: list[Any] = []
    engine = PoisonedEngine()
    batcher = Batcher(engine, Arcade("none", print), 30.0, delivered.extend)
    batcher._copies = 2
    first, newcomer = (
        Session(KEYS, 30.0, Outbox(None), Opening(0), mode="stepped", codec="raw", history=History(4, 3))
        for _ in range(2)
    )
    steps = Step.model_validate({"type": "step", "step_id": 0, "n": 9, "actions": [{"held": ["Space"]}]})

    def join(session: Session) -> None:
        session.is_connected = True
        assert batcher.seat(session)
        session.ask(steps)

    def frames(count: int) -> None:
        for _ in range(count):
            batcher._launch(is_tick=True)
        batcher._launched.put(None)
        batcher._scatter_all()

    join(first)
    frames(3)
    engine.is_failing = True
    batcher._launch(is_tick=True)
    join(newcomer)
    frames(1)
    broken = batcher._broken.get()
    assert broken.error is not None and newcomer.frames == 1
    batcher._recover(broken.error, broken.turns)
    frames(9)
    assert first.failure is None and newcomer.failure is None
    for session, count in ((first, 9), (newcomer, 9)):
        shown = [frame for one, frame in delivered if one is session]
        assert [frame.frame_id for frame in shown] == list(range(count))
        assert [frame.payload[0] for frame in shown] == list(range(1, count + 1))


def test_of_two_lost_frames_the_second_began_anew_and_the_first_follows_from_the_one_before_it():
    delivered: list[Any] = []
    engine = PoisonedEngine()
    batcher = Batcher(engine, Arcade("none", print), 30.0, delivered.extend)
    session = Session(KEYS, 30.0, Outbox(None), Opening(0), mode="stepped", codec="raw", history=History(4, 3))
    session.is_connected = True
    assert batcher.seat(session)

    def ask(count: int, step_id: int) -> None:
        held = [{"held": ["Space"]}]
        session.ask(Step.model_validate({"type": "step", "step_id": step_id, "n": count, "actions": held}))

    def scatter() -> None:
        batcher._launched.put(None)
        batcher._scatter_all()

    ask(6, 0)
    session.restart()
    ask(3, 1)
    for _ in range(5):
        batcher._launch(is_tick=True)
    scatter()
    engine.is_failing = True
    batcher._launch(is_tick=True)
    batcher._launch(is_tick=True)
    scatter()
    broken = batcher._broken.get()
    assert broken.error is not None and session.frames == 7
    batcher._recover(broken.error, broken.turns)
    for _ in range(4):
        batcher._launch(is_tick=True)
    scatter()
    assert [frame.frame_id for _, frame in delivered] == list(range(9)) and session.failure is None
    assert [frame.payload[0] for _, frame in delivered] == [1, 2, 3, 4, 5, 6, 1, 2, 3]


class SlowState:
    """On a device from which nothing comes until the gate opens."""

    def __init__(self, value: int, gate: threading.Event) -> None:
        self.value, self.gate = value, gate

    def __array__(self, dtype=None, copy=None):
        assert self.gate.wait(20)
        return np.asarray(self.value)


def test_a_device_whose_states_reach_the_host_slowly_plays_on_and_keeps_fewer(monkeypatch):
    delivered: list[Any] = []
    engine, gate = ForgetfulEngine(lost=-1), threading.Event()
    monkeypatch.setattr(engine, "take", lambda slot: Memory(SlowState(engine.held, gate)))
    batcher = Batcher(engine, Arcade("none", delivered.extend), 30.0, delivered.extend)
    history = History(6, 5, on_device=0)
    session = Session(KEYS, 30.0, Outbox(None), Opening(0), mode="stepped", codec="raw", history=history)
    session.is_connected = True
    assert batcher.seat(session)
    batcher.begin()

    def play(frames: int, step_id: int) -> None:
        wanted = len(delivered) + frames
        session.ask(Step.model_validate({"type": "step", "step_id": step_id, "n": frames}))
        batcher.wake()
        wait_until(lambda: len(delivered) == wanted)

    play(24, 1)
    assert session.kept_frames() == [0, 5] and not batcher._mover.has_room, "two are on their way"
    gate.set()
    wait_until(lambda: all(isinstance(kept.memory.state, np.ndarray) for kept in history._kept))
    wait_until(lambda: batcher._mover.has_room)
    play(1, 2)
    assert session.kept_frames() == [0, 5, 24], "what could not be kept is kept as soon as there is room"
    batcher.stop()


class StartingEngine(Engine):
    """Five slots; to begin takes longer than there is time for between two frames."""

    start_s = 1.0

    def __init__(self) -> None:
        self.slots = 5
        self.sizes = (5,)
        self.begun: list[int] = [0]

    def compile(self, report) -> None:
        report("ready", 1.0)

    def seat(self, slot, opening) -> None:
        self.begun[-1] += 1

    def step(self, controls, active, chosen=None):
        self.begun.append(0)
        return np.zeros((5, 8, 8, 3), np.uint8)


def test_dreams_that_begin_share_the_time_between_frames_and_nobody_waits_for_long():
    """One does not read what it asked for, one begins again with every step, one steps on, and players join them."""
    delivered: list[Any] = []
    engine = StartingEngine()
    batcher = Batcher(engine, Arcade("none", delivered.extend), 100.0, delivered.extend)
    full = Outbox(None)
    sessions = [
        Session(KEYS, 100.0, full if slot == 0 else Outbox(None), Opening(0), codec="raw", mode=mode)
        for slot, mode in enumerate(("stepped", "stepped", "stepped", "realtime", "realtime"))
    ]
    stalled, restless, stepping, *players = sessions
    for index in range(MAX_STEPPED_FRAMES):
        full.put_frame(EncodedFrame(b"x", "raw", 8, 8, index, 0.0, None, None, None, Spent()))
    for session in sessions:
        session.is_connected = True
        session.pause(True)  # the players wait until the others have begun
        assert batcher.seat(session)
    stalled.ask(Step(type="step", step_id=0))
    batcher.begin()
    asked = itertools.count()

    def ask_until(is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 5
        while not is_so() and time.monotonic() < deadline:
            with contextlib.suppress(Refusal):  # so many wait already
                stepping.ask(Step(type="step", step_id=next(asked)))
                restless.restart()
                restless.ask(Step(type="step", step_id=next(asked)))
            batcher.wake()
            time.sleep(0.002)

    ask_until(lambda: len(dict(delivered)) == 2)
    for player in players:
        player.pause(False)
    ask_until(lambda: len(dict(delivered)) == 4)
    engine.begun, began = [0], time.monotonic()
    ask_until(lambda: time.monotonic() > began + 0.3 and sum(engine.begun) > 1)
    batcher.stop()
    assert set(dict(delivered)) == {restless, stepping, *players}, "nobody waits for those who begin again and again"
    assert max(engine.begun) == 1 and 1 < sum(engine.begun) <= 2 + 100.0 * (time.monotonic() - began), "one a tick"


class BeginningEngine(StartingEngine):
    """There is time to begin between two frames; what is begun is noted, and how many rows are stepped."""

    start_s = 1e-4

    def __init__(self) -> None:
        super().__init__()
        self.sizes = (1, 2, 5)
        self.seeds: list[int] = []
        self.rows: list[int] = []
        self.error: Exception | None = None

    def seat(self, slot, opening) -> None:
        self.seeds.append(opening.seed)

    def take(self, slot) -> Memory:
        return Memory(slot)

    def wait(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error

    def forget(self) -> None:
        self.seeds.append(-1)

    def step(self, controls, active, chosen=None):
        self.rows.append(len(active))
        return np.zeros((len(active), 8, 8, 3), np.uint8).view(Pixels)


@contextlib.contextmanager
def ticking() -> Iterator[tuple[BeginningEngine, Batcher, Callable[[int], Session], Callable[[], set[Session]]]]:
    """A batcher whose device thread is this one, a way to join it with a seed, and one to make a frame: who was in it."""
    engine, delivered = BeginningEngine(), list[Any]()
    batcher = Batcher(engine, Arcade("none", delivered.extend), 1.0, delivered.extend)
    batcher._encoder.start()

    def join(seed: int) -> Session:
        session = Session(KEYS, 1.0, Outbox(None), Opening(seed), codec="raw", history=History(4, 1))
        session.is_connected = True
        assert batcher.seat(session)
        return session

    def tick() -> set[Session]:
        delivered.clear()
        batcher.pace.is_tick(max(time.perf_counter(), batcher.pace.due), 0.0)
        batcher._launch(is_tick=True)
        wait_until(lambda: len(delivered) > 0)
        return {session for session, _ in delivered}

    try:
        yield engine, batcher, join, tick
    finally:
        batcher._launched.put(None)
        batcher._encoder.join()


def test_a_dream_begins_between_two_frames_so_that_nobody_elses_waits_for_it():
    with ticking() as (engine, batcher, join, tick):
        first = join(1)
        assert tick() == {first} and engine.seeds == [1], "nobody plays who would have to wait"
        second = join(2)
        assert tick() == {first} and engine.seeds == [1]
        assert batcher._begin_ahead() and engine.seeds == [1, 2] and second.next_frame == 0
        assert not batcher._begin_ahead(), "it waits for its frame"
        assert tick() == {first, second} and engine.seeds == [1, 2], "already begun"

        second.restart(seed=3)
        assert batcher._begin_ahead() and engine.seeds == [1, 2, 3]
        second.restart(seed=4)
        assert tick() == {first}, "it was begun as it is no longer wanted"
        batcher.pace._due = time.perf_counter()
        assert not batcher._begin_ahead(), "a frame is due"
        assert tick() == {first, second} and engine.seeds == [1, 2, 3, 4], "put off once only"


def test_a_dream_that_cannot_be_begun_fails_its_own_session_and_those_begun_before_are_begun_again():
    with ticking() as (engine, batcher, join, tick):
        first = join(1)
        tick()
        second, third = join(2), join(3)
        assert tick() == {first} and batcher._begin_ahead()
        engine.error = RuntimeError("the device lost it")
        assert batcher._begin_ahead(), "the state of all is made again"
        assert engine.seeds == [1, 2, 3, -1, 1] and batcher.pulse.failures == 1
        assert third.failure == "engine_failed" and second.failure is None
        assert batcher._begin_ahead() and not batcher._begin_ahead()
        assert tick() == {first, second} and engine.seeds == [1, 2, 3, -1, 1, 2]


def test_who_cannot_begin_between_two_frames_begins_with_the_next(monkeypatch):
    monkeypatch.setattr(BeginningEngine, "start_s", 0.6)  # twice that is longer than a frame
    with ticking() as (engine, _, join, tick):
        first = join(1)
        tick()
        second, third = join(2), join(3)
        assert tick() == {first, second}, "one a tick"
        assert tick() == {first, second, third} and engine.seeds == [1, 2, 3]


def test_whoever_takes_the_slot_of_one_who_was_put_off_is_put_off_himself():
    with ticking() as (engine, batcher, join, tick):
        first = join(1)
        tick()
        second = join(2)
        assert tick() == {first}
        batcher.evict(second)
        third = join(3)
        assert tick() == {first} and engine.seeds == [1]
        assert tick() == {first, third}


def test_between_two_frames_a_stepped_session_begins_and_then_steps():
    with ticking() as (engine, batcher, join, tick):
        first = join(1)
        tick()
        stepped = Session(KEYS, 1.0, Outbox(None), Opening(2), codec="raw", mode="stepped")
        assert batcher.seat(stepped) and not batcher._has_room_for_steps()
        stepped.ask(Step(type="step", step_id=0, n=3))
        assert not batcher._has_room_for_steps(), "there is a dream to begin first"
        assert batcher._begin_ahead() and engine.seeds == [1, 2] and batcher._has_room_for_steps()
        batcher._launch(is_tick=False)
        wait_until(lambda: batcher._is_free)
        assert (first.frames, stepped.frames) == (1, 1) and engine.rows[-1] == 1
        assert tick() == {first, stepped}
        batcher.pace._due = time.perf_counter()
        assert not batcher._has_room_for_steps(), "a frame is due"
        batcher.pace._due = math.inf
        batcher._in_flight += 1
        assert not batcher._has_room_for_steps(), "the device is busy"


def test_ticks_keep_to_the_rows_they_needed_of_late(monkeypatch):
    monkeypatch.setattr(pace, "STEADY", 3)
    with ticking() as (engine, _, join, tick):
        sessions = [join(seed) for seed in range(3)]
        tick()
        assert engine.rows.pop() == 5, "all at once: nobody plays yet"
        sessions[2].pause(True)
        for _ in range(3):
            tick()
        sessions[2].pause(False)
        tick()
        sessions[2].pause(True)
        for _ in range(5):
            tick()
        assert engine.rows == [5, 5, 5, 5, 5, 5, 5, 2, 2]


class HangingEngine(StillEngine):
    """Its frame comes when it is let go: the call itself hangs, or the pixels do."""

    def __init__(self, call: bool) -> None:
        super().__init__()
        self.let_go = threading.Event()
        self._call = call

    def step(self, controls, active, chosen=None):
        if self._call:
            self.let_go.wait(20)
        return self

    def __array__(self, dtype=None, copy=None):
        self.let_go.wait(20)
        return np.zeros((1, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("call", [True, False])
def test_a_device_that_does_not_answer_is_noticed(call, monkeypatch):
    monkeypatch.setattr(batcher_module, "STUCK_S", 0.2)
    engine, delivered = HangingEngine(call), list[Any]()
    batcher = Batcher(engine, Arcade("none", delivered.extend), 30.0, delivered.extend)
    session = Session(KEYS, 30.0, Outbox(None), Opening(0), mode="stepped", codec="raw")
    session.is_connected = True
    assert batcher.seat(session) and not batcher.is_stuck
    session.ask(Step(type="step", step_id=0))
    batcher.begin()
    wait_until(lambda: batcher.is_stuck)
    engine.let_go.set()
    wait_until(lambda: len(delivered) == 1 and not batcher.is_stuck)
    time.sleep(0.3)
    assert not batcher.is_stuck, "nobody wants anything"
    batcher.stop()


class LargeEngine(StartingEngine):
    """Shows each slot its number, in pictures that are encoded by workers."""

    start_s = 0.0

    def step(self, controls, active, chosen=None):
        return np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None, None], (5, 256, 256, 3))


def test_states_that_are_due_at_once_are_copied_one_after_the_other_and_all_in_their_turn(monkeypatch):
    engine, copied = StartingEngine(), [0]
    monkeypatch.setattr(engine, "start_s", 0.0)

    def take(slot: int) -> Memory:
        copied[-1] += 1
        return Memory(slot)

    monkeypatch.setattr(engine, "take", take)
    batcher = Batcher(engine, Arcade("none", print), 100.0, print)
    sessions = [Session(KEYS, 100.0, Outbox(None), Opening(0), history=History(9, 3)) for _ in range(4)]
    foreseen = Session(KEYS, 100.0, Outbox(None), Opening(0), history=Foreseen(9, 3, {31: 50}))
    for session in (*sessions, foreseen):
        session.is_connected = True
        assert batcher.seat(session)
    for _ in range(40):
        batcher._launch(is_tick=True)
        copied.append(0)
    assert max(copied) == 1, "of five slots one is copied before each frame"
    for session in sessions:
        kept = session.kept_frames()
        assert len(kept) >= 7 and max(np.diff(kept)) <= 3 + 5, "whoever waits longest comes first"
    assert foreseen.kept_frames() == [31], "what will be gone back to is kept when it was"


def test_large_frames_are_encoded_at_the_same_time_and_one_that_cannot_be_fails_alone(monkeypatch):
    together = threading.Barrier(3)

    def encode(session, turn, picture, *times):
        if session is sessions[1]:
            raise ValueError("no such codec")
        together.wait(20)
        return encode_turn(session, turn, picture, *times)

    monkeypatch.setattr(batcher_module, "encode_turn", encode)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    delivered: list[Any] = []
    batcher = Batcher(LargeEngine(), Arcade("none", delivered.extend), 100.0, delivered.extend)
    sessions = [Session(KEYS, 100.0, Outbox(None), Opening(0), mode="stepped", codec="raw") for _ in range(4)]
    for session in sessions:
        session.is_connected = True
        assert batcher.seat(session)
        session.ask(Step(type="step", step_id=0))
    batcher.begin()
    deadline = time.monotonic() + 20
    while len(delivered) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    batcher.stop()
    assert [(sessions.index(session), set(frame.payload)) for session, frame in delivered] == [
        (0, {0}),
        (2, {2}),
        (3, {3}),
    ]
    assert [session.failure for session in sessions] == [None, "server_failed", None, None]


@asynccontextmanager
async def playing() -> AsyncIterator[tuple[Session, Batcher]]:
    """A connected stepped session in the only slot."""
    loop = asyncio.get_running_loop()

    async def show(delivery) -> None:
        for session, frame in delivery:
            session.show(frame)

    def deliver(delivery) -> None:
        asyncio.run_coroutine_threadsafe(show(delivery), loop).result(20)  # no frame is made long before it is shown

    batcher = Batcher(StillEngine(), Arcade("none", deliver), 30.0, deliver)
    lobby = Lobby(ServeConfig(slots=1, history=0), KEYS, 30.0, batcher, memory_bytes=1)
    session = lobby.create(CreateSession(mode="stepped", media=Media(codec="raw")), Opening(0)).session
    session.is_connected = True
    batcher.begin()
    try:
        yield session, batcher
    finally:
        await asyncio.to_thread(batcher.stop)


def test_a_long_step_goes_on_when_a_late_reader_comes():
    async def play() -> list[int]:
        async with playing() as (session, batcher):
            session.ask(Step(type="step", step_id=1, n=FRAMES))
            batcher.wake()
            deadline = time.monotonic() + 20
            while not session.outbox.is_full and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)  # the device thread is asleep now: it has nowhere to put more
            assert session.frames < FRAMES
            async with asyncio.timeout(30):
                return [cast(Sending, await session.outbox.next()).header.frame_id for _ in range(FRAMES)]

    assert asyncio.run(play()) == list(range(FRAMES))


class DeafConnection:
    """Never closes."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    def tell(self, message) -> None:
        pass

    def finish(self, message, code) -> None:
        pass


def test_a_connection_that_never_closes_does_not_keep_the_server(monkeypatch, caplog):
    monkeypatch.setattr("wm_jax.serving.lobby.CLOSING_S", 0.05)

    async def drain() -> None:
        batcher = Batcher(StillEngine(), Arcade("none", lambda _: None), 30.0, lambda _: None)
        lobby = Lobby(ServeConfig(slots=1, history=0, drain_s=0.1), KEYS, 30.0, batcher, memory_bytes=1)
        place = lobby.create(CreateSession(), Opening(0))
        place.connection = cast(Any, DeafConnection())
        async with asyncio.timeout(5):
            await lobby.drain()
        assert place.ended == "draining"

    asyncio.run(drain())
    assert "1 connections did not close" in caplog.text
