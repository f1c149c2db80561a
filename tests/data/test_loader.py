"""Laws of the loader: the seed decides the order, one integer resumes it, any number of workers gives the same."""

import json
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from wm_jax.data.episode import EpisodeFolder
from wm_jax.data.loader import DataConfig, make_loader
from wm_jax.data.writer import EpisodeWriter
from wm_jax.types import Clip, ControlSpace, KeyBinding


class Latents(NamedTuple):
    """A source of another kind of pytree: the value at t is t."""

    count: int

    @property
    def num_frames(self) -> int:
        return self.count

    def read(self, start: int, length: int) -> dict[str, np.ndarray]:
        t = np.arange(start, start + length)
        return {"latents": t[:, None].astype(np.float16).repeat(4, 1), "t": t}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> EpisodeFolder:
    path, controls = tmp_path_factory.mktemp("episodes") / "small", ControlSpace((KeyBinding("Space", "jump"),))
    with EpisodeWriter(path, controls=controls, image=(64, 64), fps=30.0, shard_frames=150) as writer:
        for number in range(10):
            frames = np.full((40 + number, 64, 64, 3), number, np.uint8)
            writer.add(frames, np.zeros((40 + number, 1), bool), level=number, policy="sticky", seed=number)
    return EpisodeFolder.open(path)


def test_batches_are_clips_with_a_batch_axis(folder: EpisodeFolder):
    batch = next(make_loader(folder, clip_frames=16, batch=3, seed=0))
    assert isinstance(batch, Clip)
    assert batch.frames.shape == (3, 16, 64, 64, 3) and batch.frames.dtype == np.uint8
    assert batch.controls.keys.shape == (3, 16, 1) and batch.is_first.shape == (3, 16)


def test_is_first_marks_every_change_of_episode(folder: EpisodeFolder):
    loader = make_loader(folder, clip_frames=30, batch=8, seed=1)
    for _ in range(5):
        clip = next(loader)
        changes = np.diff(clip.frames[:, :, 0, 0, 0].astype(int), axis=1) != 0
        assert np.array_equal(clip.is_first[:, 1:], changes)


def test_the_seed_decides_the_order():
    first, again, other = (make_loader(Latents(100), 4, 5, seed) for seed in (0, 0, 1))
    one, two, three = ([next(loader)["t"] for _ in range(30)] for loader in (first, again, other))
    assert np.array_equal(one, two) and not np.array_equal(one, three)


def test_every_clip_comes_once_an_epoch_and_epochs_differ():
    loader = make_loader(Latents(103), clip_frames=4, batch=10, seed=0)
    epochs = [np.concatenate([next(loader)["t"][:, 0] for _ in range(10)]) for _ in range(3)]
    assert all(np.array_equal(np.sort(epoch), np.arange(100)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


@pytest.mark.parametrize("given", [0, 1, 7, 45])
def test_a_resumed_loader_goes_on_exactly(given: int):
    loader = make_loader(Latents(103), 4, 10, seed=3)
    for _ in range(given):
        next(loader)
    state = json.loads(json.dumps(loader.get_state()))
    expected = [next(loader) for _ in range(15)]
    resumed = make_loader(Latents(103), 4, 10, seed=3)
    resumed.set_state(state)
    assert resumed.get_state() == state
    for batch in expected:
        assert jax.tree.all(jax.tree.map(np.array_equal, batch, next(resumed)))


def test_a_state_of_another_loader_is_refused_with_both_sides():
    state = make_loader(Latents(100), 4, 5, seed=0).get_state()
    with pytest.raises(ValueError, match="clip_frames 4 there, 8 here, seed 0 there, 1 here"):
        make_loader(Latents(100), 8, 5, seed=1).set_state(state)


def test_too_few_frames_for_a_batch_are_refused_with_numbers():
    with pytest.raises(ValueError, match="10 frames: 7 clips of 4, fewer than one batch of 8; record"):
        make_loader(Latents(10), 4, 8, seed=0)


@pytest.mark.parametrize("wrong", [{"clip_frames": 0}, {"batch": 0}, {"workers": -1}])
def test_a_config_that_cannot_be_is_refused(wrong: dict[str, int]):
    with pytest.raises(ValueError, match="must be at least"):
        DataConfig(**{"episodes": "a", "held_out": "b", "clip_frames": 8, "batch": 4, **wrong})


@pytest.mark.slow
def test_workers_change_nothing_and_resume_too(folder: EpisodeFolder):
    alone, helped = make_loader(folder, 8, 4, seed=5), make_loader(folder, 8, 4, seed=5, workers=2)
    for _ in range(3):
        assert np.array_equal(next(alone).frames, next(helped).frames)
    state = helped.get_state()
    helped.close()
    assert state == alone.get_state()
    helped.set_state(state)
    assert np.array_equal(next(alone).frames, next(helped).frames)
    helped.close()


def private_kilobytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which only Linux has")
def test_the_loader_is_fast_and_its_memory_stays_flat(folder: EpisodeFolder):
    loader = make_loader(folder, 16, 8, seed=0)
    for _ in range(20):
        next(loader)
    before, began = private_kilobytes(), time.process_time()
    for _ in range(200):
        next(loader)
    assert 200 * 8 * 16 / (time.process_time() - began) > 2000
    assert private_kilobytes() - before < 8000
