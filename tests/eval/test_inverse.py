"""The inverse-dynamics model: learns what shows, survives its file, and refuses what is no such file."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import wm_jax as wm
from wm_jax.data import EpisodeFolder
from wm_jax.data.writer import EpisodeWriter
from wm_jax.eval.inverse import OFFSETS, load, save, windows_of
from wm_jax.eval.inverse_training import InverseConfig, accuracy, draw_windows, train


def written(path: Path, seed: int, episodes: int) -> Path:
    """A recording of a ball that the keys move from the middle: what is held shows in that very frame."""
    controls, rng = wm.tiny_world()[0].config.controls, np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    with EpisodeWriter(path, controls=controls, image=(32, 32), fps=30.0) as writer:
        for number in range(episodes):
            keys = np.repeat(rng.random((10, 4)) < 0.4, 4, axis=0)
            keys[0] = False
            left, right, up, down = keys.T.astype(int)
            at_x, at_y = (16 + 6 * way[:, None, None] for way in (right - left, down - up))
            ball = (x - at_x) ** 2 + (y - at_y) ** 2 < 12
            colour = rng.integers(120, 255, 3)
            writer.add((ball[..., None] * colour).astype(np.uint8), keys, level=number, policy="sticky", seed=number)
    return path


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("episodes") / "train", seed=0, episodes=40)


@pytest.fixture(scope="module")
def trained(recording: Path):
    # optax promotes int32 to float32, as in training.
    with jax.numpy_dtype_promotion("standard"):
        return train(InverseConfig(recording, Path("unused"), steps=50, batch=32), quiet=True)


def test_it_recognises_what_shows_in_play_it_never_saw(trained, tmp_path: Path) -> None:
    for row in accuracy(trained, EpisodeFolder.open(written(tmp_path / "other", seed=1, episodes=10)), 300):
        assert row.real_all > 0.9, row


def test_it_answers_the_same_after_its_file(trained, recording: Path, tmp_path: Path) -> None:
    windows, _ = draw_windows(EpisodeFolder.open(recording), 5, np.random.default_rng(0))
    save(trained, tmp_path / "idm.safetensors")
    again = load(tmp_path / "idm.safetensors")
    assert again.controls == trained.controls and again.image == trained.image and again.facts == trained.facts
    for before, after in zip(trained.likely(windows), again.likely(windows, rows=2), strict=True):
        np.testing.assert_allclose(before, after, atol=0.02)
        np.testing.assert_allclose(after.sum(-1), 1, atol=1e-5)


def test_a_window_is_centred_and_repeats_the_ends_of_a_clip() -> None:
    frames = np.arange(12, dtype=np.uint8)[None, :, None, None, None]
    seen = windows_of(frames, range(3, 5))[0, ..., 0, 0, 0]
    np.testing.assert_array_equal(seen[0], np.clip(3 + np.array(OFFSETS), 0, 11))
    np.testing.assert_array_equal(seen[1], np.clip(4 + np.array(OFFSETS), 0, 11))


def test_weights_that_are_missing_or_of_another_shape_are_named(trained, tmp_path: Path) -> None:
    params = {**trained.params, "answer": {name: leaf[..., :-1] for name, leaf in trained.params["answer"].items()}}
    for wrong, says in (
        ({name: leaves for name, leaves in params.items() if name != "conv1"}, "conv1"),
        (params, "answer/"),
    ):
        save(dataclasses.replace(trained, params=wrong), tmp_path / "wrong.safetensors")
        with pytest.raises(ValueError, match=says):
            load(tmp_path / "wrong.safetensors")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "idm.safetensors"
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"idm\.safetensors.*broken"):
        load(path)
