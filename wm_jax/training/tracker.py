"""What a run tells: a progress bar or plain lines, JSONL always, TensorBoard when asked for, pictures."""

import contextlib
import importlib.util
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from wm_jax import checkpoint

METRICS_FILE = "metrics.jsonl"


class MissingExtraError(ImportError):
    """A library was asked for that this installation lacks; the message names the extra to install."""


class Tracker:
    """The voice of a run.

    `metrics.jsonl` holds one line for each logged step, in order and without repeats, also after a restart.

    Args:
      out: The run's folder.
      steps: Where the run ends.
      start: Steps done already.
      frames_per_step: Frames in a batch, for frames/s.
      has_tensorboard: Write `out/tensorboard` too.
      console: Where to speak; a terminal gets a progress bar, anything else plain lines.

    Raises:
      MissingExtraError: TensorBoard is asked for and tensorboardX is not installed.
    """

    def __init__(
        self,
        out: Path,
        steps: int,
        start: int,
        frames_per_step: int,
        has_tensorboard: bool = False,
        console: Console | None = None,
    ):
        if has_tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise MissingExtraError(
                "TensorBoard needs tensorboardX: pip install -e '.[track]', or leave --tensorboard out"
            )
        self.out, self.steps, self.frames_per_step = out, steps, frames_per_step
        self.console = console or Console()
        self._step = start
        self._clock_step, self._clock_time, self._apart = start, math.nan, 0.0
        self._has_tensorboard = has_tensorboard
        self._stack = contextlib.ExitStack()
        self._board: Any = None
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        _forget_after(self.out / METRICS_FILE, self._step)
        if self._has_tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self.out / "tensorboard"), purge_step=self._step + 1)
            self._stack.callback(self._board.close)
        if self.console.is_terminal:
            said = TextColumn("{task.fields[said]}")
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), said, TimeElapsedColumn())
            self._bar = self._stack.enter_context(Progress(*columns, console=self.console))
            self._task = self._bar.add_task("train", total=self.steps, completed=self._step, said="compiling")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def done(self, step: int) -> None:
        """This step's result has been seen: the bar moves, and after the first one (which compiled) the clock runs."""
        self._step = step
        if math.isnan(self._clock_time):
            self._clock_step, self._clock_time = step, time.perf_counter()
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step with frames/s since the last log, and says the loss and how long it will take."""
        rate = self._rate(step)
        row = {"step": step, **metrics, "frames_per_second": round(rate, 1) if rate else None}
        path = self.out / METRICS_FILE
        with checkpoint.writing(path), path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if self._board is not None and name != "step" and value is not None:
                self._board.add_scalar(name, value, step)
        said = f"loss {metrics.get('loss', math.nan):.4g}"
        if rate:
            said += f"  {rate:,.0f} frames/s  eta {_clock((self.steps - step) * self.frames_per_step / rate)}"
        if self._bar is not None:
            self._bar.update(self._task, said=said)
        else:
            self.say(f"step {step}/{self.steps}  {said}")

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def picture(self, step: int, image: np.ndarray) -> Path:
        """Writes an RGB image `[h w 3]` as `pictures/step_<step>.png`."""
        from PIL import Image

        path = self.out / "pictures" / f"step_{step:06d}.png"
        with checkpoint.writing(path):
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.asarray(image)).save(path)
        if self._board is not None:
            self._board.add_image("picture", np.asarray(image), step, dataformats="HWC")
        return path

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Time spent here (saving, drawing) does not count in frames/s."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._apart += time.perf_counter() - begin

    def _rate(self, step: int) -> float:
        now = time.perf_counter()
        seconds, steps = now - self._clock_time - self._apart, step - self._clock_step
        self._clock_step, self._clock_time, self._apart = step, now, 0.0
        return steps * self.frames_per_step / seconds if steps > 0 and seconds > 0 else 0.0


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`; a last line that was cut off by a kill is left out."""
    path = out / METRICS_FILE
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def _forget_after(path: Path, step: int) -> None:
    """Drops what a killed run logged after its last checkpoint: those steps will be done again."""
    rows = [row for row in read_metrics(path.parent) if row["step"] <= step]
    fresh = path.with_suffix(".tmp")
    with checkpoint.writing(path):
        fresh.write_text("".join(json.dumps(row) + "\n" for row in rows))
        fresh.replace(path)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
