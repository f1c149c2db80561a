"""Laws of writing: a folder is there whole or not at all."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from wm_jax.data import writer as writer_module
from wm_jax.data.episode import DONE, EpisodeError, EpisodeFolder
from wm_jax.data.writer import EpisodeWriter
from wm_jax.types import ControlSpace, KeyBinding

CONTROLS = ControlSpace((KeyBinding("Space", "jump"),))


def new_writer(path: Path) -> EpisodeWriter:
    return EpisodeWriter(path, controls=CONTROLS, image=(4, 4), fps=10.0, shard_frames=8)


def add(writer: EpisodeWriter, length: int = 5) -> None:
    frames = np.zeros((length, 4, 4, 3), np.uint8)
    writer.add(frames, np.zeros((length, 1), bool), level=1, policy="sticky", seed=0)


def test_an_error_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(RuntimeError, match="of the game"), new_writer(tmp_path / "new") as writer:
        add(writer)
        raise RuntimeError("of the game")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["frames", "keys", "index", "meta", "done"])
def test_a_full_disk_is_said_and_leaves_nothing_that_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    def full(*_: object, **__: object):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_json = writer_module._write_json
    replace = {
        "frames": (EpisodeWriter, "_append", full),
        "keys": (np, "save", full),
        "index": (writer_module, "_write_json", full),
        "meta": (
            writer_module,
            "_write_json",
            lambda path, value: (full if "meta" in path.name else write_json)(path, value),
        ),
        "done": (writer_module, "_to_disk", full),
    }
    monkeypatch.setattr(*replace[where])
    words = r"could not write .*new after \d+ frames: the disk is full \(\d+ MB free there"
    with pytest.raises(OSError, match=words), new_writer(tmp_path / "new") as writer:
        add(writer)
        add(writer)
    assert list(tmp_path.iterdir()) == []


def test_what_is_unfinished_does_not_open(tmp_path: Path):
    writer = new_writer(tmp_path / "new").__enter__()
    add(writer, 9)
    with pytest.raises(EpisodeError, match="never finished"):
        EpisodeFolder.open(tmp_path / "new.unfinished")
    assert not (tmp_path / "new").exists()
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


def test_the_done_mark_is_written_last(tmp_path: Path):
    with new_writer(tmp_path / "new") as writer:
        add(writer)
        assert not (tmp_path / "new.unfinished" / DONE).exists()
    assert (tmp_path / "new" / DONE).exists()
    assert not (tmp_path / "new.unfinished").exists()


def test_what_a_killed_recording_left_is_cleared_by_the_next(tmp_path: Path):
    (tmp_path / "new.unfinished").mkdir()
    (tmp_path / "new.unfinished" / "shard_00099.keys.npy").write_text("old")
    with new_writer(tmp_path / "new") as writer:
        add(writer)
    assert not (tmp_path / "new" / "shard_00099.keys.npy").exists()


def test_an_existing_folder_is_never_overwritten(tmp_path: Path):
    (tmp_path / "new").mkdir()
    with pytest.raises(EpisodeError, match="exists already"), new_writer(tmp_path / "new"):
        pass
    assert (tmp_path / "new").exists()


def test_nothing_recorded_is_refused(tmp_path: Path):
    with pytest.raises(EpisodeError, match="nothing was recorded"), new_writer(tmp_path / "new"):
        pass


@pytest.mark.parametrize(
    "frames, keys, words",
    [
        (np.zeros((3, 5, 4, 3), np.uint8), np.zeros((3, 1), bool), r"\[3, 5, 4, 3\], this recording holds uint8"),
        (np.zeros((3, 4, 4, 3), np.float32), np.zeros((3, 1), bool), "frames are float32"),
        (np.zeros((3, 4, 4, 3), np.uint8), np.zeros((3, 2), bool), r"keys are \[3, 2\] for 3 frames and 1 keys"),
        (np.zeros((3, 4, 4, 3), np.uint8), np.ones((3, 1), bool), "nothing led to that frame"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(tmp_path: Path, frames: np.ndarray, keys: np.ndarray, words: str):
    with pytest.raises(EpisodeError, match=words), new_writer(tmp_path / "new") as writer:
        writer.add(frames, keys, level=0, policy="sticky", seed=0)
