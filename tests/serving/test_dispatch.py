"""When the device loop launches a frame, under which keys, and in which rows: under engines that note what they are told."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.serving.conftest import wait_until
from wm_jax.serving import pace
from wm_jax.serving.batcher import MAX_IN_FLIGHT, Batcher
from wm_jax.serving.engine import Engine
from wm_jax.serving.outbox import Outbox
from wm_jax.serving.protocol import Action, Step
from wm_jax.serving.real import Arcade
from wm_jax.serving.session import Opening, Session
from wm_jax.types import ControlSpace, KeyBinding

KEYS = ControlSpace((KeyBinding("Space", "fire"),))


class Pixels:
    """They are there once somebody lets them."""

    def __init__(self, ready: threading.Semaphore) -> None:
        self.ready = ready

    def __array__(self, dtype=None, copy=None):
        assert self.ready.acquire(timeout=20)
        return np.zeros((1, 8, 8, 3), np.uint8)


class HeldEngine(Engine):
    """One slot; it notes which keys it is told, and makes no frame until `ready` is released."""

    def __init__(self) -> None:
        self.slots = 1
        self.sizes = (1,)
        self.told: list[bool] = []
        self.ready = threading.Semaphore(0)

    def compile(self, report) -> None:
        report("ready", 1.0)

    def seat(self, slot, opening) -> None:
        pass

    def step(self, controls, active, chosen=None):
        self.told.append(bool(controls.keys[0, 0]))
        return Pixels(self.ready)


@pytest.fixture
def held() -> Any:
    """An engine that is held, its batcher, and a way to seat a session; what still waits is let go at the end."""
    engine, delivered = HeldEngine(), list[Any]()
    batcher = Batcher(engine, Arcade("none", delivered.extend), 100.0, delivered.extend)

    def seat(mode: Any) -> Session:
        session = Session(KEYS, 100.0, Outbox(None), Opening(0), mode=mode, codec="raw")
        session.is_connected = True
        assert batcher.seat(session)
        return session

    yield engine, batcher, seat
    engine.ready.release(1000)
    batcher.stop()


def test_a_frame_is_launched_before_the_pixels_of_the_one_before_it_are_there(
    held: tuple[HeldEngine, Batcher, Callable[[Any], Session]],
):
    engine, batcher, seat = held
    seat("stepped").ask(Step(type="step", step_id=0, n=5))
    batcher.begin()
    for made in range(4):
        wait_until(lambda made=made: len(engine.told) == made + MAX_IN_FLIGHT)
        time.sleep(0.05)
        assert len(engine.told) == made + MAX_IN_FLIGHT, "no more than that: their keys would be old"
        engine.ready.release()


def test_a_frame_obeys_what_is_pressed_while_the_device_makes_the_one_before_it(
    held: tuple[HeldEngine, Batcher, Callable[[Any], Session]],
):
    """It is launched no earlier than it has to be."""
    engine, batcher, seat = held
    player = seat("realtime")
    batcher.pulse.step_s = 10.0  # what a frame takes here, as it looks
    batcher.begin()
    wait_until(lambda: len(engine.told) == 1)
    time.sleep(0.05)  # the next one is due
    player.press(Action(type="action", held=["Space"]))
    engine.ready.release()
    wait_until(lambda: len(engine.told) >= 2)
    assert engine.told[:2] == [False, True]


class RowsEngine(Engine):
    """Four slots and smaller batches of them; the picture of a row shows its slot and whether its key is held."""

    def __init__(self) -> None:
        self.slots = 4
        self.sizes = (1, 2, 4)
        self.steps: list[tuple[list[int], list[int]]] = []

    def seat(self, slot, opening) -> None:
        pass

    def step(self, controls, active, chosen=None):
        assert chosen is not None and len(chosen) == len(active) == len(controls.keys)
        self.steps.append((list(chosen), [slot for slot, is_active in zip(chosen, active, strict=True) if is_active]))
        shown = 10 * np.asarray(chosen) + controls.keys[:, 0]
        return np.broadcast_to(shown.astype(np.uint8)[:, None, None, None], (len(chosen), 8, 8, 3))


def test_every_session_is_told_and_shown_its_own_row_of_a_smaller_batch(monkeypatch):
    monkeypatch.setattr(pace, "STEADY", 0)  # a batch is as small as its players let it be, at once
    engine, delivered = RowsEngine(), list[Any]()
    batcher = Batcher(engine, Arcade("none", delivered.extend), 1.0, delivered.extend)
    sessions = [Session(KEYS, 1.0, Outbox(None), Opening(slot), codec="raw") for slot in range(4)]
    assert all(batcher.seat(session) for session in sessions)
    batcher._encoder.start()
    companies = [{0, 1, 2, 3}, {3}, {2}, {0, 2}, {1, 3}, {1}, {1, 2, 3}, {0}]
    for index, company in enumerate(companies):
        for slot, session in enumerate(sessions):
            session.is_connected = slot in company
            if slot in company:
                session.press(Action(type="action", held=["Space"] if (slot + index) % 2 else []))
        delivered.clear()
        batcher._launch(is_tick=True)
        wait_until(lambda company=company: len(delivered) == len(company))
        shown = {sessions.index(session): frame.payload[0] for session, frame in delivered}
        assert shown == {slot: 10 * slot + (slot + index) % 2 for slot in company}
    batcher._launched.put(None)
    batcher._encoder.join()
    assert [set(active) for _, active in engine.steps] == companies, "the others among the rows idle"
    assert [len(chosen) for chosen, _ in engine.steps] == [4, 1, 1, 2, 2, 1, 4, 1]
