"""The heart of a replica whose disk is slow."""

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from wm_jax.scale.directory import Orders
from wm_jax.scale.heart import DirectoryLost, Heart


class SlowLobby:
    """Releases its only session once the disk has written it."""

    def __init__(self) -> None:
        self.releases = 0
        self.disk = threading.Event()

    def epochs(self) -> dict[str, int]:
        return {"session": 0}

    async def release(self) -> None:
        self.releases += 1
        await asyncio.to_thread(self.disk.wait)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


def test_the_next_beat_waits_for_the_release_that_the_last_one_began(loop, monkeypatch):
    monkeypatch.setattr("wm_jax.scale.heart.REPORT_S", 0.3)
    lobby = SlowLobby()
    service = cast(Any, SimpleNamespace(loop=loop, lobby=lobby))
    heart = Heart(("name", "url", "node", 1), service, lambda beat: None, lambda: None, beat_s=1.0, lease_s=0.0)  # pyright: ignore[reportArgumentType]
    for _ in range(3):
        with pytest.raises(TimeoutError):
            heart._lose()
    assert lobby.releases == 1
    monkeypatch.setattr("wm_jax.scale.heart.REPORT_S", 20.0)
    lobby.disk.set()
    heart._lose()
    assert lobby.releases == 1
    heart._lose()
    assert lobby.releases == 2, "what has come since is let go as well"


def test_a_directory_that_stays_away_is_told_of_once(loop, caplog):
    lobby, orders = SlowLobby(), [DirectoryLost(), DirectoryLost(), Orders(), DirectoryLost()]
    lobby.disk.set()

    def beat(_) -> Orders:
        answer = orders.pop(0)
        if isinstance(answer, DirectoryLost):
            raise answer
        return answer

    service = cast(Any, SimpleNamespace(loop=loop, lobby=lobby))
    heart = Heart(("name", "url", "node", 1), service, beat, lambda: None, beat_s=1.0, lease_s=0.0)  # pyright: ignore[reportArgumentType]
    heart._report = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    told = []
    while orders:
        heart.once()
        told.append(sum("the lease" in record.message for record in caplog.records))
    assert (told, lobby.releases) == ([1, 1, 1, 2], 3)
