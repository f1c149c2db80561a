"""What decided each frame of a session: how it began, and the keys and the mouse of every frame since; bounded.

Frames follow from these and from nothing else, so a log of a few bytes a frame is a recording of all pixels.
"""

import bisect
import dataclasses
from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from wm_jax.serving.history import Opening
from wm_jax.serving.inputs import Input, Mouse
from wm_jax.serving.protocol import Source


class Piece(NamedTuple):
    """Frames in a row, under known keys.

    Attributes:
      first: Index of the first of them.
      opening: They begin anew with this; None: they follow from the frame before.
    """

    first: int
    source: Source
    opening: Opening | None
    rows: list[Input]


@dataclasses.dataclass(frozen=True, eq=False)
class Chapter:
    """The frames from one beginning to the next.

    Attributes:
      first: Index of the first of them.
      keys: What was held in each.
      mouse: How far it was moved in each; None in a world without a mouse.
    """

    first: int
    source: Source
    opening: Opening
    keys: Bool[np.ndarray, "t keys"]
    mouse: Float32[np.ndarray, "t 2"] | None

    def rows(self, start: int, stop: int) -> list[Input]:
        """What was done in these frames of the chapter, counted from 0."""
        mouse = None if self.mouse is None else self.mouse[start:stop].tolist()
        keys = self.keys[start:stop]
        return [
            Input(row, None if mouse is None else (mouse[index][0], mouse[index][1])) for index, row in enumerate(keys)
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class Events:
    """All that it takes to make a session's frames again.

    Attributes:
      chapters: Never empty, without a gap; the first begins with something known, not with a frame of the same session.
      is_cut: Whether there were frames before, of which nothing is known any more.
    """

    chapters: list[Chapter]
    is_cut: bool = False

    @property
    def first(self) -> int:
        """Index of the first frame."""
        return self.chapters[0].first

    @property
    def frames(self) -> int:
        """How many there are."""
        return sum(len(chapter.keys) for chapter in self.chapters)

    def pieces(self, length: int) -> Iterator[Piece]:
        """The same in order, in pieces of at most so many frames."""
        for chapter in self.chapters:
            for start in range(0, len(chapter.keys), length):
                opening = chapter.opening if start == 0 else None
                yield Piece(chapter.first + start, chapter.source, opening, chapter.rows(start, start + length))


@dataclasses.dataclass(eq=False)
class _Open:
    """A chapter that is being written: bytes, because there may be hours of them."""

    first: int
    source: Source
    opening: Opening
    keys: bytearray = dataclasses.field(default_factory=bytearray)
    mouse: "array[float]" = dataclasses.field(default_factory=lambda: array("f"))
    frames: int = 0

    def note(self, keys: Bool[Any, " keys"], mouse: Mouse) -> None:
        self.keys += keys.tobytes()
        if mouse is not None:
            self.mouse.extend(mouse)
        self.frames += 1

    def part(self, start: int, stop: int) -> tuple[bytearray, "array[float]"]:
        """Keys and mouse of these frames, counted from the chapter's first."""
        width, moved = len(self.keys) // self.frames, len(self.mouse) // self.frames
        return self.keys[start * width : stop * width], self.mouse[start * moved : stop * moved]

    def cut(self, start: int, stop: int) -> "_Open":
        """A chapter of these frames alone, counted from this one's first."""
        keys, mouse = self.part(start, stop)
        return _Open(self.first + start, self.source, self.opening, keys, mouse, stop - start)

    def close(self) -> Chapter:
        keys = np.frombuffer(bytes(self.keys), bool).reshape(self.frames, len(self.keys) // self.frames)
        mouse = np.array(self.mouse, np.float32).reshape(-1, 2) if self.mouse else None
        return Chapter(self.first, self.source, self.opening, keys, mouse)


class EventLog:
    """The newest frames of one session, at most `limit` of them. Used under the session's lock.

    What is too old is dropped up to a frame that the session can begin with: where it began anew, or a state that it kept.
    Up to three such states are held. Where there are none, all is dropped, and the log begins with the
    next one.

    Attributes:
      limit: Frames; 0 writes down nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._chapters: list[_Open] = []
        self._anchors: list[tuple[int, Opening]] = []
        self._newest: tuple[int, Bool[Any, " keys"], Mouse, Source] | None = None
        self._is_cut = False

    def note(
        self, frame_id: int, keys: Bool[Any, " keys"], mouse: Mouse, source: Source, opening: Opening | None
    ) -> None:
        """One frame more is being made, the next."""
        if not self.limit:
            return
        self._newest = (frame_id, keys, mouse, source)
        is_known = opening is not None and (opening.back_to is None or self._has(opening.back_to))
        if opening is not None and is_known:
            # The state of a frame that is in the log need not be held: it will be made again.
            known = opening if opening.back_to is None else Opening(opening.seed, back_to=opening.back_to)
            self._chapters.append(_Open(frame_id, source, known))
            if opening.back_to is not None:  # nothing between the two frames can be a beginning any more
                self._anchors = [anchor for anchor in self._anchors if anchor[0] <= opening.back_to]
        elif opening is not None or not self._chapters:
            self._drop_all()  # nobody knows what this frame follows from
            return
        self._chapters[-1].note(keys, mouse)
        if self._end - self._chapters[0].first > self.limit:
            self._shorten()

    def keep(self, frame_id: int, opening: Opening) -> None:
        """What was kept just before this frame, the newest: the log may begin with it one day."""
        if self._newest is None or self._newest[0] != frame_id:
            return
        if not self._chapters:
            _, keys, mouse, source = self._newest
            self._chapters = [_Open(frame_id, source, opening)]
            self._chapters[0].note(keys, mouse)
        elif frame_id - (self._anchors[-1][0] if self._anchors else self._chapters[0].first) >= self.limit // 2:
            self._anchors.append((frame_id, opening))

    def give_back(self, frame_id: int) -> None:
        """That frame, and what came after it, was not made after all."""
        while self._chapters and self._chapters[-1].first >= frame_id:
            self._chapters.pop()
        if self._chapters:
            last = self._chapters[-1]
            self._chapters[-1] = last.cut(0, min(last.frames, frame_id - last.first))
        self._anchors = [anchor for anchor in self._anchors if anchor[0] < frame_id]
        self._newest = None

    def copy(self) -> "EventLog":
        """The log as it is, to be read by another thread without the session's lock.

        Chapters that are over are shared: they are replaced, never changed.
        """
        copied = EventLog(self.limit)
        copied._is_cut = self._is_cut
        copied._chapters = [*self._chapters]
        if copied._chapters:
            copied._chapters[-1] = copied._chapters[-1].cut(0, copied._chapters[-1].frames)
        return copied

    def read(self) -> Events | None:
        """What is in it; None: no frame is known."""
        if not self._chapters:
            return None
        return Events([chapter.close() for chapter in self._chapters], self._is_cut)

    # ---- inside

    @property
    def _end(self) -> int:
        return self._chapters[-1].first + self._chapters[-1].frames

    def _has(self, frame_id: int) -> bool:
        return bool(self._chapters) and self._chapters[0].first <= frame_id < self._end

    def _drop_all(self) -> None:
        self._chapters, self._anchors, self._is_cut = [], [], True

    def _shorten(self) -> None:
        """Drops the older half, or as much of it as can be: of many beginnings not one after the other, frame by frame."""
        starts = self._starts()
        enough = self._chapters[0].first + self.limit // 2
        start = next((one for one in starts if one[0] >= enough), starts[-1] if starts else None)
        if start is None:
            self._drop_all()
        else:
            self._begin_at(*start)

    def _starts(self) -> list[tuple[int, Opening]]:
        """Frames that the log could begin with instead, oldest first: no later chapter needs what was before them."""
        begun = [(one.first, one.opening) for one in self._chapters[1:] if one.opening.back_to is None]
        chapters, needed, starts = [*self._chapters], self._end, list[tuple[int, Opening]]()
        for start in sorted([*self._anchors, *begun], key=lambda one: one[0], reverse=True):
            while chapters[-1].first > start[0]:
                back_to = chapters.pop().opening.back_to
                needed = needed if back_to is None else min(needed, back_to)
            if self._chapters[0].first < start[0] <= needed:
                starts.append(start)
        return starts[::-1]

    def _begin_at(self, frame_id: int, opening: Opening) -> None:
        place = bisect.bisect_right(self._chapters, frame_id, key=lambda one: one.first) - 1
        self._chapters = self._chapters[place:]
        first = self._chapters[0]
        self._chapters[0] = dataclasses.replace(first.cut(frame_id - first.first, first.frames), opening=opening)
        self._anchors = [anchor for anchor in self._anchors if anchor[0] > frame_id]
        self._is_cut = True
