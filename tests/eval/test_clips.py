"""The clips of an evaluation are the same everywhere, and never cross the end of an episode."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

import wm_jax as wm
from wm_jax.data import EpisodeError
from wm_jax.data.record import RecordConfig, record
from wm_jax.eval.clips import choose_clips, long_sessions, open_held_out, random_keys

CONFIG = wm.tiny_world()[0].config


def test_a_clip_is_a_cut_of_one_episode_and_says_how_far_it_is_true(held_out: Path) -> None:
    recording = open_held_out(held_out, CONFIG, 500)
    clips = choose_clips(recording, 20, prompt_frames=4, horizon=48, seed=0)
    whole = [recording.folder.read(e.start, e.length).frames for e in recording.episodes]
    for i, length in enumerate(clips.lengths):
        cut = clips.frames[i, :length]
        assert any(np.array_equal(cut, frames[s : s + length])
                   for frames in whole for s in range(len(frames) - length + 1))  # fmt: skip
        assert clips.is_true[i].sum() == length - 4 < 48
    assert len({tuple(frames.ravel()[:3000]) for frames in clips.frames}) > 5


def test_the_same_seed_gives_the_same_clips_from_a_longer_recording(held_out: Path, tmp_path: Path) -> None:
    longer = RecordConfig("bouncing_ball", tmp_path / "longer", frames=700, split="held_out", max_length=40)
    both = [open_held_out(path, CONFIG, 400) for path in (held_out, record(longer, quiet=True))]
    assert both[0].checksum == both[1].checksum
    first, second = (choose_clips(recording, 8, 4, 16, seed=3) for recording in both)
    np.testing.assert_array_equal(first.frames, second.frames)
    np.testing.assert_array_equal(first.keys, second.keys)
    np.testing.assert_array_equal(random_keys(both[0], (8, 4), 3), random_keys(both[1], (8, 4), 3))


def test_batches_are_full_and_hold_every_clip_once(held_out: Path) -> None:
    clips = choose_clips(open_held_out(held_out, CONFIG, 500), 7, 4, 16, seed=0)
    batches = list(clips.batches(3))
    assert [len(batch.frames) for batch, _ in batches] == [3, 3, 3] and [meant for _, meant in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([batch.keys[:n] for batch, n in batches]), clips.keys)


def test_long_sessions_go_on_with_the_keys_of_their_own_episode(held_out: Path) -> None:
    recording = open_held_out(held_out, CONFIG, 500)
    prompt, keys, own = long_sessions(recording, 3, prompt_frames=4, length=200, seed=0)
    assert prompt.controls is not None and keys.shape == (3, 200, 4)
    for row, episode in enumerate(own):
        recorded = recording.folder.read_controls(episode.start, episode.length)[0].keys
        stream = np.concatenate([prompt.controls.keys[row], keys[row]])
        np.testing.assert_array_equal(stream[: len(recorded)], recorded)


def test_training_levels_are_refused(tmp_path: Path) -> None:
    path = record(RecordConfig("bouncing_ball", tmp_path / "train", frames=60, max_length=40), quiet=True)
    with pytest.raises(ValueError, match="train"):
        open_held_out(path, CONFIG, 60)


def test_another_game_and_damaged_frames_are_refused(held_out: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="recording of 'bouncing_ball', world 'tiny' is of 'pong'"):
        open_held_out(held_out, dataclasses.replace(CONFIG, env="pong"), 500)
    damaged = tmp_path / "damaged"
    shutil.copytree(held_out, damaged)
    frames = next(damaged.glob("*frames.npy"))
    content = bytearray(frames.read_bytes())
    content[-4000:] = bytes(4000)
    frames.write_bytes(content)
    with pytest.raises(EpisodeError, match=frames.name):
        open_held_out(damaged, CONFIG, 500)


def test_another_picture_size_is_refused_with_both(held_out: Path) -> None:
    other = dataclasses.replace(CONFIG, image=(64, 64))
    with pytest.raises(ValueError, match=r"\(32, 32\).*\(64, 64\)"):
        open_held_out(held_out, other, 500)


def test_a_missing_recording_is_played_first(tmp_path: Path) -> None:
    recording = open_held_out(tmp_path / "new", CONFIG, 600)
    assert (tmp_path / "new" / "DONE").exists() and recording.folder.meta["split"] == "held_out"
