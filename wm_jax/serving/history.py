"""The past of a session: its own states, kept every few frames, and what was done since the newest of them.

A state is there to go back to and to fork from; with what was done since, it makes every frame again, to the bit, should
the device lose the state that all sessions share. The newest stay on the device, older ones move to the host; what was
written to the disk lies there for a while longer.
"""

import bisect
import dataclasses
import logging
import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import Bool, UInt8

from wm_jax.serving.inputs import Mouse

log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False, slots=True)
class Memory:
    """All that a session remembers between two frames. Whoever holds it shares it: it moves for all of them at once.

    Attributes:
      state: A batch of one, on the device or on the host, the same to the bit.
      stream: Where its noise stands, if that is drawn on the host.
    """

    state: Any
    stream: Any = None


CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")

MOVING = 2
"""States that may be on their way to the host at once: until it is there each occupies the device beside the others."""


class Mover:
    """Brings states from the device to the host, on a thread of its own: the device thread never waits for a copy."""

    def __init__(self) -> None:
        self._moving = 0
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "mover")

    @property
    def has_room(self) -> bool:
        """Whether one more may be on its way."""
        return self._moving < MOVING

    def move(self, memory: Memory | None) -> None:
        """Returns at once; the state, if there is one, is on the host a little later."""
        if memory is None:
            return
        with self._lock:
            self._moving += 1
        self._thread.submit(self._move, memory)

    def close(self) -> None:
        """Ends with the copy that is being made."""
        self._thread.shutdown(cancel_futures=True)

    def _move(self, memory: Memory) -> None:
        try:
            memory.state = jax.device_get(memory.state)
        except Exception:  # what was kept after a frame that failed is no state: it is forgotten with that frame
            log.exception("a kept state could not be copied to the host")
        finally:
            with self._lock:
                self._moving -= 1


@dataclasses.dataclass(frozen=True)
class Opening:
    """What a session (re)starts from.

    Attributes:
      seed: Of its noise.
      prompt: A scene that ships with the world, by number.
      image: The first frame, given by the client.
      memory: What a session remembered once: it goes on from there, whatever the other fields say.
      back_to: The frame of the same session that the memory is of, where a player went back.
    """

    seed: int
    prompt: int | None = None
    image: UInt8[Any, "h w 3"] | None = None
    memory: Memory | None = None
    back_to: int | None = None


class Kept(NamedTuple):
    """A session as it was just before one of its frames.

    Attributes:
      frame_id: That frame.
      memory: What it remembered then.
    """

    frame_id: int
    memory: Memory


class Room(NamedTuple):
    """How many states of one session are kept.

    Attributes:
      depth: In all; 0 keeps none.
      on_device: As many of the newest stay on the device; the rest are moved to the host.
    """

    depth: int
    on_device: int


def room_for(state_bytes: int, most: int, device_mb: float, host_mb: float) -> Room:
    """The room for states of this size, of at most so many, in what one session may occupy on device and host."""
    on_device = min(most, int(1e6 * device_mb / state_bytes))
    return Room(min(most, on_device + int(1e6 * host_mb / state_bytes)), on_device)


def host_memory_mb() -> float:
    """What this process may use of the machine's memory: all of it, or what its container has."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        whole = min(whole, int(CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or "max"
        pass
    return 1e-6 * whole


class History:
    """The newest kept states of one session. Used under the session's lock.

    Attributes:
      depth: How many are kept; 0 keeps none.
      every: Frames from one to the next.
      on_device: As many of the newest stay on the device.
    """

    def __init__(self, depth: int, every: int, on_device: int | None = None) -> None:
        """`on_device`: None: all of them."""
        self.depth = depth
        self.every = every
        self.on_device = depth if on_device is None else on_device
        self._owed_since: int | None = None
        self._kept: list[Kept] = []

    def lateness(self, frame_id: int) -> float | None:
        """How many frames ago a state was to be kept and could not be; 0: the one before this frame is; None: none is.

        Infinity where it must be this one.
        """
        if self._owed_since is None and frame_id % self.every == 0:
            self._owed_since = frame_id
        return None if self._owed_since is None or not self.depth else frame_id - self._owed_since

    def put_off(self) -> None:
        """It could not be copied; the next one that is due is tried."""
        self._owed_since = None

    def keep(self, frame_id: int, memory: Memory) -> Memory | None:
        """Keeps it, and the oldest makes room; what is to leave the device for it, if anything is."""
        self._owed_since = None
        self.forget(frame_id - 1)
        self._kept.append(Kept(frame_id, memory))
        does_leave = self.depth > self.on_device < len(self._kept)
        leaving = self._kept[-1 - self.on_device].memory if does_leave else None
        self._make_room()
        return leaving

    def forget(self, frame_id: int) -> None:
        """Nothing is kept that was after this frame."""
        while self._kept and self._kept[-1].frame_id > frame_id:
            self._kept.pop()

    def find(self, frame_id: int) -> Kept | None:
        """The newest state kept at or before this frame."""
        place = bisect.bisect_right(self._kept, frame_id, key=lambda kept: kept.frame_id)
        return self._kept[place - 1] if place else None

    @property
    def frames(self) -> list[int]:
        """Where one can go back to, oldest first."""
        return [kept.frame_id for kept in self._kept]

    def _make_room(self) -> None:
        del self._kept[: -self.depth]


class Filed(NamedTuple):
    """A session as it was just before one of its frames, on the disk.

    Attributes:
      epoch: How often the session had been taken up by then.
      frame_id: That frame.
    """

    epoch: int
    frame_id: int


class Writing(NamedTuple):
    """What a save makes of the states on the disk.

    Attributes:
      before: The one that was written last, and is to stay beside the new one; None: it is to make room for it.
      filed: All that are there afterwards beside the new one, oldest first.
      dropped: Those that are too old then.
    """

    before: Filed | None
    filed: list[Filed]
    dropped: list[Filed]


class Trail:
    """States of one session that stay on the disk: what was written of it to outlive the process, and has been replaced since.

    Used by the event loop alone.

    Attributes:
      depth: How many; 0 leaves none.
    """

    def __init__(self, depth: int, filed: Sequence[Filed] = (), newest: Filed | None = None) -> None:
        """`filed`: what is there already; `newest`: what was written last, by whichever server."""
        self.depth = depth
        self._filed = [*filed]
        self._newest = newest

    @property
    def newest(self) -> int:
        """The frame that follows what was written last; -1: nothing was."""
        return -1 if self._newest is None else self._newest.frame_id

    def next(self, frame_id: int, is_left: bool = False) -> Writing:
        """What writing the session as it is before this frame makes of them.

        Args:
          is_left: What was written last is not what its frame followed from: the session began anew with it.
        """
        does_stay = self.depth > 0 and self.newest < frame_id and not is_left
        before = self._newest if does_stay else None
        filed = self._filed if before is None else [*self._filed, before]
        cut = max(0, len(filed) - self.depth)
        return Writing(before, filed[cut:], filed[:cut])

    def follow(self, writing: Writing, newest: Filed | None) -> None:
        """It was written; `newest`: None where it holds no state to go back to."""
        # What was found to be gone while it was written stays gone.
        self._filed = [filed for filed in writing.filed if filed in self._filed or filed == writing.before]
        self._newest = newest

    def find(self, frame_id: int) -> Filed | None:
        """The newest at or before this frame."""
        place = bisect.bisect_right(self._filed, frame_id, key=lambda filed: filed.frame_id)
        return self._filed[place - 1] if place else None

    def drop(self, filed: Filed) -> None:
        """It is not there any more."""
        self._filed = [one for one in self._filed if one != filed]

    @property
    def frames(self) -> list[int]:
        """Where one can go back to, oldest first."""
        return [filed.frame_id for filed in self._filed]


class Foreseen(History):
    """The history of a replay: it keeps those states that will be gone back to, each until then.

    The newest `depth` would not do. A stepped session finds its state when it is told to go back, and goes back only
    after all steps that wait: by then the state may be older than any that is kept.
    """

    def __init__(self, depth: int, every: int, uses: dict[int, int]) -> None:
        """`uses`: the last frame that begins with what was kept before each frame."""
        super().__init__(depth, every, on_device=0)
        self._uses = uses

    def lateness(self, frame_id: int) -> float | None:
        """As for any history; what will be gone back to is never kept later than it was when it was recorded."""
        return math.inf if frame_id in self._uses else super().lateness(frame_id)

    def _make_room(self) -> None:
        newest = self._kept[-1].frame_id
        self._kept = [kept for kept in self._kept if self._uses.get(kept.frame_id, -1) > newest]


SPARE = 3
"""As many frames may be lost at once, each after a beginning of its own: two on the device, one being launched."""


class Row(NamedTuple):
    """What was done in one frame."""

    keys: Bool[Any, " keys"]
    mouse: Mouse


@dataclasses.dataclass
class Stretch:
    """Frames that follow from something known.

    Attributes:
      first: Index of the first of them.
      known: An `Opening`, with or without a memory.
      rows: What was done in each.
    """

    first: int
    known: Any
    rows: list[Row] = dataclasses.field(default_factory=list[Row])


class Log:
    """How the newest frames of a session came about, from the last state that is kept or from where it began anew.

    A few older stretches are held: while frames are being made, what was kept just before them may turn out to be lost too.
    """

    def __init__(self) -> None:
        self._stretches: list[Stretch] = []

    def begin(self, frame_id: int, known: Any) -> None:
        """The frames from this one on follow from `known`."""
        self._stretches = [one for one in self._stretches if one.first < frame_id][-SPARE:]
        self._stretches.append(Stretch(frame_id, known))

    def note(self, row: Row) -> None:
        """One frame more is being made."""
        if self._stretches:
            self._stretches[-1].rows.append(row)

    def give_back(self, frame_id: int) -> None:
        """That frame, the newest, was not made after all, and what was kept just before it may be lost too."""
        while self._stretches and self._stretches[-1].first >= frame_id:
            self._stretches.pop()
        if self._stretches:
            del self._stretches[-1].rows[frame_id - self._stretches[-1].first :]

    @property
    def newest(self) -> Stretch | None:
        """All that it takes to make the newest frames again; None: nothing is known."""
        return self._stretches[-1] if self._stretches else None
