"""The past of a session: its own states, kept on the device every few frames, and what was done since the newest of them.

A state is there to go back to and to fork from; with what was done since, it makes every frame again, to the bit, should
the device lose the state that all sessions share.
"""

import bisect
import dataclasses
from typing import Any, NamedTuple

from jaxtyping import Bool, UInt8

from wm_jax.serving.inputs import Mouse


class Memory(NamedTuple):
    """All that a session remembers between two frames.

    Attributes:
      state: A batch of one, on the device.
      stream: Where its noise stands, if that is drawn on the host.
    """

    state: Any
    stream: Any = None


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
        self.forget(frame_id - 1)
        self._kept.append(Kept(frame_id, memory))
        self._make_room()

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


class Foreseen(History):
    """The history of a replay: it keeps those states that will be gone back to, each until then.

    The newest `depth` would not do. A stepped session finds its state when it is told to go back, and goes back only
    after all steps that wait: by then the state may be older than any that is kept.
    """

    def __init__(self, depth: int, every: int, uses: dict[int, int]) -> None:
        """`uses`: the last frame that begins with what was kept before each frame."""
        super().__init__(depth, every)
        self._uses = uses

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
        """That frame, the newest, was not made after all."""
        while self._stretches and self._stretches[-1].first > frame_id:
            self._stretches.pop()
        if self._stretches:
            del self._stretches[-1].rows[frame_id - self._stretches[-1].first :]

    @property
    def newest(self) -> Stretch | None:
        """All that it takes to make the newest frames again; None: nothing is known."""
        return self._stretches[-1] if self._stretches else None
