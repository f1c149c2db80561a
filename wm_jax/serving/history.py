"""The past of a session: its own states, kept on the device every few frames, to go back to and to fork from."""

import bisect
from typing import Any, NamedTuple


class Memory(NamedTuple):
    """All that a session remembers between two frames.

    Attributes:
      state: A batch of one, on the device.
      stream: Where its noise stands, if that is drawn on the host.
    """

    state: Any
    stream: Any = None


class Kept(NamedTuple):
    """A session as it was just before one of its frames.

    Attributes:
      frame_id: That frame.
      memory: What it remembered then.
    """

    frame_id: int
    memory: Memory


class History:
    """The newest kept states of one session. Used under the session's lock.

    Attributes:
      depth: How many are kept; 0 keeps none.
      every: Frames from one to the next.
    """

    def __init__(self, depth: int, every: int) -> None:
        self.depth = depth
        self.every = every
        self._kept: list[Kept] = []

    def is_due(self, frame_id: int) -> bool:
        """Whether the state before this frame is one to keep."""
        return self.depth > 0 and frame_id % self.every == 0

    def keep(self, frame_id: int, memory: Memory) -> None:
        """Keeps it; the oldest makes room."""
        self._kept.append(Kept(frame_id, memory))
        del self._kept[: -self.depth]

    def find(self, frame_id: int) -> Kept | None:
        """The newest state kept at or before this frame."""
        place = bisect.bisect_right(self._kept, frame_id, key=lambda kept: kept.frame_id)
        return self._kept[place - 1] if place else None

    @property
    def frames(self) -> list[int]:
        """Where one can go back to, oldest first."""
        return [kept.frame_id for kept in self._kept]
