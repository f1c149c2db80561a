"""Laws of the episode folder: what is written is read; what is broken is named and refused."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from wm_jax.data import episode as episode_module
from wm_jax.data.episode import CHECKED, DONE, EpisodeError, EpisodeFolder, checksum
from wm_jax.data.writer import EpisodeWriter
from wm_jax.types import ControlSpace, KeyBinding

CONTROLS = ControlSpace((KeyBinding("ArrowLeft", "left"), KeyBinding("Space", "jump")))
LENGTHS = (5, 3, 9, 1, 7)


def episode(number: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    keys = rng.random((length, 2)) < 0.5
    keys[0] = False
    return rng.integers(0, 256, (length, 4, 6, 3), np.uint8), keys


def write(path: Path, shard_frames: int = 8) -> Path:
    """Five short episodes in three shards."""
    with EpisodeWriter(path, controls=CONTROLS, image=(4, 6), fps=30.0, facts={"env": "none"},
                       shard_frames=shard_frames) as writer:  # fmt: skip
        for number, length in enumerate(LENGTHS):
            frames, keys = episode(number, length)
            writer.add(frames, keys, level=100 + number, policy="runner" if number % 2 else "sticky", seed=number)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "recording")


def edit_meta(folder: Path, **changes: object) -> None:
    """Changes meta.json and its done-mark, as a foreign program would write them."""
    meta = json.loads((folder / "meta.json").read_text())
    meta.update(changes)
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / DONE).write_text(checksum(folder / "meta.json"))


def test_what_was_written_is_read(folder: Path):
    read = EpisodeFolder.open(folder, check_frames=True)
    assert read.controls == CONTROLS and read.image == (4, 6) and read.fps == 30.0
    assert (read.num_frames, read.num_episodes) == (sum(LENGTHS), len(LENGTHS))
    for number, length in enumerate(LENGTHS):
        frames, keys = episode(number, length)
        assert np.array_equal(read.frames(number), frames) and np.array_equal(read.keys(number), keys)
        assert np.array_equal(read.frames(number, length // 2, 1), frames[length // 2 : length // 2 + 1])
        kept = read.episodes[number]
        assert (kept.length, kept.level, kept.seed) == (length, 100 + number, number)
        assert kept.policy == ("runner" if number % 2 else "sticky")


def test_a_cut_may_cross_shards_and_marks_where_episodes_start(folder: Path):
    read = EpisodeFolder.open(folder)
    assert len(read.meta["shards"]) > 1
    everything = np.concatenate([episode(number, length)[0] for number, length in enumerate(LENGTHS)])
    clip = read.read(0, sum(LENGTHS))
    assert np.array_equal(clip.frames, everything)
    assert np.flatnonzero(clip.is_first).tolist() == [0, 5, 8, 17, 18]
    part = read.read(3, 17)
    assert np.array_equal(part.frames, everything[3:20])
    assert np.array_equal(part.controls.keys, clip.controls.keys[3:20])


def test_frames_are_plain_npy_files(folder: Path):
    assert np.load(folder / "shard_00000.frames.npy", mmap_mode="r").shape == (8, 4, 6, 3)


def test_a_folder_sent_to_another_process_reads_the_same_and_is_small(folder: Path):
    read = EpisodeFolder.open(folder)
    sent = pickle.dumps(read)
    assert len(sent) < 5000
    assert np.array_equal(pickle.loads(sent).frames(2), read.frames(2))


@pytest.mark.parametrize("start, length", [(-1, 2), (0, sum(LENGTHS) + 1), (sum(LENGTHS), 1)])
def test_frames_outside_the_folder_are_refused(folder: Path, start: int, length: int):
    with pytest.raises(IndexError, match=f"which has {sum(LENGTHS)}"):
        EpisodeFolder.open(folder).read(start, length)


def test_frames_outside_an_episode_are_refused(folder: Path):
    with pytest.raises(IndexError, match=r"frames 1\.\.4 of episode 1 .* which has 3"):
        EpisodeFolder.open(folder).frames(1, 1, 3)


def cut_frames(folder: Path) -> None:
    file = folder / "shard_00001.frames.npy"
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_pixel(folder: Path) -> None:
    file = folder / "shard_00001.frames.npy"
    file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))


def flip_a_key(folder: Path) -> None:
    file = folder / "shard_00000.keys.npy"
    file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))


def other_image(folder: Path) -> None:
    np.save(folder / "shard_00001.frames.npy", np.zeros((9, 8, 8, 3), np.uint8))


def change_meta_only(folder: Path) -> None:
    (folder / "meta.json").write_text((folder / "meta.json").read_text().replace("30.0", "60.0"))


BROKEN = {
    "no folder": (
        lambda path: path.rename(path.with_name("elsewhere")),
        r"is no folder; record one: .*--env GAME --out .*recording \(GAME: coinrun, ",
    ),
    "no done-mark": (lambda path: (path / DONE).unlink(), "no DONE mark: its recording never finished"),
    "no meta": (lambda path: (path / "meta.json").unlink(), "holds no meta.json"),
    "meta is no JSON": (lambda path: (path / "meta.json").write_text("{"), r"meta\.json is not JSON"),
    "meta is binary": (lambda path: (path / "meta.json").write_bytes(b"\xff\xfe\x00"), r"meta\.json is not JSON"),
    "meta is a list": (lambda path: (path / "meta.json").write_text("[]"), "has format 'list'"),
    "foreign format": (lambda path: edit_meta(path, format="jasmine"), "format 'jasmine'.*'wm_jax.episodes'"),
    "wrong version": (lambda path: edit_meta(path, version=99), "version 99, this wm_jax reads version 1"),
    "meta changed": (change_meta_only, r"meta\.json has checksum \w{8}, DONE says \w{8}"),
    "meta lacks a field": (lambda path: edit_meta(path, shards=[]), "meta.json says 25 frames.*hold 0"),
    "frames cut short": (cut_frames, r"shard_00001\.frames\.npy is cut short.*uint8 \[9, 4, 6, 3\]"),
    "frames of another size": (other_image, r"holds uint8 \[9, 8, 8, 3\], meta\.json says uint8 \[9, 4, 6, 3\]"),
    "frames missing": (lambda path: (path / "shard_00001.frames.npy").unlink(), r"shard_00001\.frames\.npy is missing"),
    "foreign frames": (lambda path: (path / "shard_00001.frames.npy").write_text("hello"), "cut short or no .npy"),
    "a key flipped": (flip_a_key, r"keys\.npy has checksum \w{8}, meta\.json says \w{8}"),
    "index missing": (lambda path: (path / "shard_00000.index.json").unlink(), r"index\.json is missing"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_is_named_and_refused(folder: Path, what: str):
    harm, words = BROKEN[what]
    harm(folder)
    with pytest.raises(EpisodeError, match=words):
        EpisodeFolder.open(folder)


def test_a_flipped_pixel_is_found_when_frames_are_checked(folder: Path):
    flip_a_pixel(folder)
    with pytest.raises(EpisodeError, match=r"shard_00001\.frames\.npy has checksum"):
        EpisodeFolder.open(folder, check_frames=True)


def test_frames_are_checked_once_and_again_when_their_files_change(folder: Path, monkeypatch: pytest.MonkeyPatch):
    read, checked = EpisodeFolder.open(folder), []
    check = episode_module._check_sums
    monkeypatch.setattr(episode_module, "_check_sums", lambda *given: (checked.append(given[1]), check(*given)))
    read.check_once()
    read.check_once()
    assert checked == [0, 1, 2]
    flip_a_pixel(folder)
    for _ in range(2):
        with pytest.raises(EpisodeError, match=r"shard_00001\.frames\.npy has checksum"):
            read.check_once()


def test_a_folder_that_cannot_be_noted_in_is_checked_every_time(folder: Path):
    (folder / CHECKED).mkdir()
    EpisodeFolder.open(folder).check_once()
    flip_a_pixel(folder)
    with pytest.raises(EpisodeError, match=r"shard_00001\.frames\.npy has checksum"):
        EpisodeFolder.open(folder).check_once()


def test_a_file_cut_short_while_open_is_noticed_when_read(folder: Path):
    read = EpisodeFolder.open(folder)
    cut_frames(folder)
    with pytest.raises(EpisodeError, match="ended 100 bytes early while it was read"):
        read.read(0, sum(LENGTHS))


def test_any_bytes_as_meta_are_refused_and_never_crash(folder: Path):
    rng, whole = np.random.default_rng(0), (folder / "meta.json").read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[int(rng.integers(len(whole)))] = int(rng.integers(256))
        if bytes(damaged) == whole:
            continue
        (folder / "meta.json").write_bytes(damaged)
        with pytest.raises(EpisodeError):
            EpisodeFolder.open(folder)
