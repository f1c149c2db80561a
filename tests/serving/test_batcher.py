"""The device loop under an engine that costs nothing: one slot, frames of zeros."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import numpy as np

from wm_jax.serving.batcher import Batcher
from wm_jax.serving.config import ServeConfig
from wm_jax.serving.engine import Engine
from wm_jax.serving.lobby import Lobby
from wm_jax.serving.outbox import MAX_STEPPED_FRAMES
from wm_jax.serving.protocol import CreateSession, Media, Step, unpack_frames
from wm_jax.serving.real import Arcade
from wm_jax.serving.session import Opening, Session
from wm_jax.types import ControlSpace, KeyBinding

KEYS = ControlSpace((KeyBinding("Space", "fire"),))
FRAMES = 3 * MAX_STEPPED_FRAMES


class StillEngine(Engine):
    """Nothing moves and nothing compiles."""

    def __init__(self) -> None:
        self.slots = 1

    def compile(self, report) -> None:
        report("ready", 1.0)

    def seat(self, slot, opening) -> None:
        pass

    def step(self, controls, active):
        return np.zeros((1, 8, 8, 3), np.uint8)


@asynccontextmanager
async def playing() -> AsyncIterator[tuple[Session, Batcher]]:
    """A connected stepped session in the only slot."""
    loop = asyncio.get_running_loop()

    def show(delivery) -> None:
        for session, frame in delivery:
            session.show(frame)

    def deliver(delivery) -> None:
        loop.call_soon_threadsafe(show, delivery)

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
                return [unpack_frames(cast(bytes, await session.outbox.next()))[0].frame_id for _ in range(FRAMES)]

    assert asyncio.run(play()) == list(range(FRAMES))
