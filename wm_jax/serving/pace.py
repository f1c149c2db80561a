"""The media clock of all realtime sessions: when their next frame is due, and how fast it runs where the device is too slow.

Also what may be done between two frames, and how many rows a frame has.
"""

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

AWAY_S = 0.002
"""A tick that had to wait for less was on time."""

RELAX = 0.98
"""By how much less, from tick to tick, other work stays away from them after one had to wait for it."""

STEADY = 60
"""Ticks for which a batch must have been larger than needed before a smaller one is stepped."""


class Pace:
    """Ticks at a rate that the device keeps up with. Used by the device thread; the attributes are read by anyone.

    A late tick is skipped and counted, never made up for. Where too many are late time runs slower, evenly for all: every
    session gets fewer frames and each of them on time, rather than the wanted number and each of them late.

    Attributes:
      wanted: Frames a second.
      fps: Frames a second now.
      missed: Ticks that were skipped so far.
      spare_s: How far other work stays away from a tick, as learned from ticks that had to wait for such work.
      crowd: How many rows its ticks have.
    """

    def __init__(self, fps: float) -> None:
        self.wanted = self.fps = fps
        self.missed = 0
        self.spare_s = 0.0
        self.crowd = Crowd()
        self._came_between = False
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
        self._due = self.spare_s = 0.0
        self._came_between = False
        self._ticks = self._late = 0
        self.crowd = Crowd()
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

    def has_room(self, now: float, work_s: float) -> bool:
        """Whether work that takes so long can be done before the next tick."""
        return now + work_s + self.spare_s < self._due

    def learn(self, waited_s: float | None) -> None:
        """How long a tick had to wait for the device; None: something was begun on it that is no tick."""
        if waited_s is None:
            self._came_between = True
            return
        if self._came_between and waited_s > AWAY_S:
            self.spare_s = min(self.spare_s + waited_s, 1.0 / self.fps)
        else:
            self.spare_s *= RELAX
        self._came_between = False

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


class Crowd:
    """How many rows ticks have: as many as any of the last ones needed.

    A smaller batch takes less time. If it came and went with every player, the frames of all others would come early and
    then late.
    """

    def __init__(self) -> None:
        self._rows = self._spared = self._most = 0

    def count(self, rows: int) -> int:
        """For a tick that needs so many, how many it has at least."""
        if rows < self._rows:
            self._spared += 1
            self._most = max(self._most, rows)
        if rows >= self._rows or self._spared > STEADY:
            self._rows, self._spared, self._most = max(rows, self._most), 0, 0
        return self._rows
