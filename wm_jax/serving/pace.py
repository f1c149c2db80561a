"""The media clock of all realtime sessions: when their next frame is due, and how fast it runs where the device is too slow."""

SHARES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125, 0.0625)
"""Of the wanted frames a second, from best to worst."""

WINDOW = 30
"""Ticks that are looked at together."""

MISSED = 0.1
"""The share of them that may be missed; beyond it the clock runs slower for everybody."""

ROOM = 0.8
"""A frame must fit into this share of the faster period before the clock runs faster again."""

PATIENCE = 3
"""Windows in a row in which it must."""


class Pace:
    """Ticks at a rate that the device keeps up with. Used by the device thread; the attributes are read by anyone.

    A late tick is skipped and counted, never made up for. Where too many are late time runs slower, evenly for all: every
    session gets fewer frames and each of them on time, rather than the wanted number and each of them late.

    Attributes:
      wanted: Frames a second.
      fps: Frames a second now.
      missed: Ticks that were skipped so far.
    """

    def __init__(self, fps: float) -> None:
        self.wanted = self.fps = fps
        self.missed = 0
        self._share = 0
        self._due = 0.0
        self._ticks = 0
        self._late = 0
        self._roomy = 0

    @property
    def due(self) -> float:
        """`time.perf_counter()` of the next tick; 0 is at once."""
        return self._due

    @property
    def is_exhausted(self) -> bool:
        """Whether it runs as slowly as it may: nobody more can be taken on at everybody's cost."""
        return self._share == len(SHARES) - 1

    def rest(self) -> None:
        """Nobody plays: whoever comes next gets a frame at once, and the full rate."""
        self._due = 0.0
        self._ticks = self._late = 0
        self._run(0)

    def is_tick(self, now: float, frame_s: float) -> bool:
        """Moves the clock on if a tick is due; `frame_s` is what a frame takes."""
        if now < self._due:
            return False
        period = 1.0 / self.fps
        late = now - self._due
        if self._due > 0.0:
            skipped = int(late / period)
            self.missed += skipped
            self._count(skipped, frame_s)
        self._due = self._due + period if late < period else now + period
        return True

    def _count(self, skipped: int, frame_s: float) -> None:
        self._ticks += 1
        self._late += skipped
        if self._ticks + self._late < WINDOW:
            return
        is_behind = self._late > MISSED * (self._ticks + self._late)
        faster = SHARES[max(self._share - 1, 0)] * self.wanted
        self._roomy = self._roomy + 1 if not is_behind and frame_s * faster < ROOM else 0
        self._ticks = self._late = 0
        if is_behind:
            self._run(min(self._share + 1, len(SHARES) - 1))
        elif self._roomy >= PATIENCE:
            self._run(max(self._share - 1, 0))

    def _run(self, share: int) -> None:
        self._share, self._roomy = share, 0
        self.fps = SHARES[share] * self.wanted
