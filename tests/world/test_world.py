"""Laws of a world on disk: what was saved is what is loaded, and nothing else is."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import wm_jax as wm
from wm_jax import checkpoint
from wm_jax.checkpoint import CheckpointError
from wm_jax.config import ConfigError
from wm_jax.world.world import reconstruct


@pytest.fixture(scope="module")
def tiny():
    return wm.tiny_world(0)


@pytest.fixture
def saved(tiny, tmp_path):
    world, params = tiny
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32, 3), dtype=np.uint8)
    folder = tmp_path / "tiny"
    checkpoint.save_world(
        folder, world.config, jax.device_get(params), prompts={"frames": frames, "keys": np.zeros((2, 3, 4), bool)}
    )
    return folder, frames


def test_what_was_saved_is_what_is_loaded(tiny, saved):
    folder, frames = saved
    world, params = wm.load(folder)
    assert world == tiny[0]
    for mine, theirs in zip(jax.tree.leaves(tiny[1]), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))
    prompts = wm.load_prompts(folder)
    assert prompts.frames is not None and prompts.controls is not None
    np.testing.assert_array_equal(prompts.frames, frames)


@pytest.mark.parametrize("keys", [(1, 3, 4), (2, 3, 5)])
def test_prompts_that_do_not_fit_are_refused(tiny, saved, keys):
    folder, frames = saved
    np.savez(folder / "prompts.npz", frames=frames, keys=np.zeros(keys, bool))
    with pytest.raises(ValueError, match=r"keys \[.*needs frames \[n p 32 32 3\] and keys \[n p 4\]"):
        wm.load_prompts(folder)


def test_a_world_of_other_shapes_is_refused_leaf_by_leaf(saved):
    folder, _ = saved
    config = json.loads((folder / "config.json").read_text())
    config["dynamics"]["registers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"dynamics/registers is \[1, 32\], the config needs \[3, 32\]"):
        wm.load(folder)


def test_a_config_typo_is_refused_by_name(saved):
    folder, _ = saved
    config = json.loads((folder / "config.json").read_text())
    config["dynamics"]["widht"] = config["dynamics"].pop("width")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="dynamics.widht is no field of DynamicsConfig; did you mean width"):
        wm.load(folder)


@pytest.mark.parametrize("fps", [0.0, -30.0, float("nan"), float("inf")])
def test_a_world_that_stands_still_is_refused(tiny, fps):
    with pytest.raises(ValueError, match="fps is .*, it must be a number above 0"):
        dataclasses.replace(tiny[0].config, fps=fps)


def test_same_key_same_weights(tiny):
    world, _ = tiny
    first, second = world.init(jax.random.key(5)), world.init(jax.random.key(5))
    other = world.init(jax.random.key(6))
    kernels = [leaf["dynamics"]["embed"]["kernel"] for leaf in (first, second, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.any(np.asarray(kernels[0]) != np.asarray(kernels[2]))


def test_reconstruction_has_the_size_of_its_frames(tiny):
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32, 3), dtype=np.uint8)
    again = reconstruct(*tiny, frames)
    assert again.shape == frames.shape and again.dtype == frames.dtype


@pytest.mark.slow
def test_weights_made_ready_for_playing_dream_the_same_to_the_bit():
    world, params = wm.tiny_world(0, dtype="bfloat16")
    ready = world.for_playing(params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(ready["dynamics"])} == {"bfloat16"}
    dreams = []
    for weights in (params, ready):
        state = wm.start(world, weights, wm.Prompt(), jax.random.key(3))
        _, frames = wm.rollout(world, weights, state, wm.Controls(np.ones((1, 6, 4), bool)))
        dreams.append(np.asarray(frames))
    np.testing.assert_array_equal(*dreams)
    assert dreams[0].std() > 0
