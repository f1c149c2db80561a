"""What the device loop measures of itself, read by anyone."""

import dataclasses


@dataclasses.dataclass
class Pulse:
    """What the loop measures of itself: running means over about the last hundred frames.

    Attributes:
      frames: Calls of the compiled step so far.
      rows: Sessions that were in them, added up.
      failures: Frames that failed and were made again.
      step_s: From launch to pixels on the host, for a batch of the size that was the last.
      step_of: The same for every size there was.
      longest_of: The longest of late, for every size: what must not make a tick late has to fit even so.
      start_s: What it takes to begin a dream between two frames.
      host_s: Processor time of the two threads for one frame, between sleep and sleep, without device call and encoder.
      launch_s: The device call as the host sees it, until it returns.
    """

    frames: int = 0
    rows: int = 0
    failures: int = 0
    step_s: float = 0.0
    start_s: float = 0.0
    host_s: float = 0.0
    launch_s: float = 0.0
    encode_s: float = 0.0
    step_of: dict[int, float] = dataclasses.field(default_factory=dict[int, float])
    longest_of: dict[int, float] = dataclasses.field(default_factory=dict[int, float])

    def count_start(self, start_s: float) -> None:
        self.start_s = _mean(self.start_s, start_s)

    def count_launch(self, launch_s: float) -> None:
        self.launch_s = _mean(self.launch_s, launch_s)

    def count_frame(self, rows: int, size: int, step_s: float, encode_s: float, host_s: float) -> None:
        self.frames += 1
        self.rows += rows
        self.step_s = self.step_of[size] = _mean(self.step_of.get(size, 0.0), step_s)
        self.longest_of[size] = max(step_s, self.longest_of.get(size, 0.0))
        for each, longest in self.longest_of.items():  # a size that is not stepped now may be waiting to be
            self.longest_of[each] = _mean(longest, self.step_of[each])
        self.encode_s = _mean(self.encode_s, encode_s)
        self.host_s = _mean(self.host_s, host_s)


def _mean(mean: float, value: float) -> float:
    return value if mean == 0.0 else mean + 0.02 * (value - mean)
