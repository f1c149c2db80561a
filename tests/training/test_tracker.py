"""What a run tells is complete, without repeats, and readable where there is no terminal."""

import importlib.util
import io
import json
import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from wm_jax.training.tracker import MissingExtraError, Tracker, read_metrics


def make_tracker(out: Path, start: int = 0, is_terminal: bool = False, **named: Any) -> tuple[Tracker, io.StringIO]:
    said = io.StringIO()
    console = Console(file=said, force_terminal=is_terminal, width=200, color_system=None)
    return Tracker(out, steps=100, start=start, frames_per_step=8, console=console, **named), said


def test_every_logged_step_is_one_line_of_jsonl_with_frames_a_second(tmp_path: Path) -> None:
    tracker, _ = make_tracker(tmp_path)
    with tracker:
        for step in (1, 2, 3):
            tracker.done(step)
            time.sleep(0.01)
            tracker.log(step, {"loss": 1.0 / step})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3] and rows[1]["loss"] == 0.5
    assert rows[0]["frames_per_second"] is None  # its time is the compiler's
    assert 0 < rows[2]["frames_per_second"] < 8 / 0.01


def test_after_a_restart_no_step_stands_twice_and_a_cut_off_line_is_gone(tmp_path: Path) -> None:
    tracker, _ = make_tracker(tmp_path)
    with tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    tracker, _ = make_tracker(tmp_path, start=2)
    with tracker:
        tracker.log(3, {"loss": 2.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_without_a_terminal_it_speaks_in_plain_lines(tmp_path: Path) -> None:
    tracker, said = make_tracker(tmp_path)
    with tracker:
        tracker.done(10)
        time.sleep(0.01)
        tracker.log(20, {"loss": 0.25})
    line = said.getvalue()
    assert (
        line.startswith("step 20/100  loss 0.25") and "frames/s" in line and "eta 0:00:" in line and "\x1b" not in line
    )


def test_on_a_terminal_there_is_a_bar(tmp_path: Path) -> None:
    tracker, said = make_tracker(tmp_path, is_terminal=True)
    with tracker:
        tracker.done(10)
        time.sleep(0.01)
        tracker.log(20, {"loss": 0.25})
        tracker.say("a word")
    text = said.getvalue()
    assert "10/100" in text and "loss 0.25" in text and "a word" in text and "━" in text


def test_time_apart_does_not_count_in_frames_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5.0]
    monkeypatch.setattr("wm_jax.training.tracker.time", SimpleNamespace(perf_counter=lambda: now[0]))
    tracker, _ = make_tracker(tmp_path)
    with tracker:
        tracker.done(1)
        with tracker.apart():
            now[0] += 30.0
        now[0] += 0.5
        tracker.log(2, {"loss": 1.0})
    assert read_metrics(tmp_path)[0]["frames_per_second"] == 8 / 0.5


def test_tensorboard_is_written_when_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    tracker, _ = make_tracker(tmp_path, has_tensorboard=True)
    with tracker:
        tracker.log(1, {"loss": 1.0})
        tracker.picture(1, np.zeros((4, 4, 3), np.uint8))
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_tensorboard_asked_for_and_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install -e '.\[track\]'"):
        make_tracker(tmp_path, has_tensorboard=True)


def test_a_picture_is_a_png_named_after_its_step(tmp_path: Path) -> None:
    from PIL import Image

    tracker, _ = make_tracker(tmp_path)
    image = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    path = tracker.picture(40, image)
    assert path.name == "step_000040.png" and np.array_equal(np.asarray(Image.open(path)), image)


def test_a_full_disk_is_said_with_the_file_and_a_later_run_reads_what_was_logged(tmp_path: Path) -> None:
    tracker, _ = make_tracker(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    words = r"metrics.jsonl: could not be written, the disk is full \(\d+ MB free\)"
    with pytest.raises(OSError, match=words), tracker:
        tracker.log(1, {"loss": 1.0})
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size + 5, before[1]))
            tracker.log(2, {"loss": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
