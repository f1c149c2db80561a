"""Laws of the losses: what is taught, what is never fed, who learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wm_jax as wm
from wm_jax.training.objectives import shortcut_forcing
from wm_jax.training.objectives.reconstruction import Reconstruction, local_similarity, pyramid_distance
from wm_jax.training.objectives.shortcut_forcing import ShortcutForcing
from wm_jax.training.source import LatentClip

ROWS, FRAMES = 8, 6


@pytest.fixture(scope="module")
def tiny():
    return wm.tiny_world(0)


def clip(world, seed=0):
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((ROWS, FRAMES, *world.config.latent_shape)).astype(np.float16)
    keys = wm.Controls(keys=rng.random((ROWS, FRAMES, 4)) < 0.5)
    return LatentClip(latents, keys, np.zeros((ROWS, FRAMES), bool))


def test_levels_lie_on_the_grid_of_their_stride_and_never_reach_clean(tiny):
    config, objective = tiny[0].config.dynamics, ShortcutForcing(bootstrap=0.5)
    for seed in range(20):
        level, stride, is_boot, is_past = objective._levels(config, jax.random.key(seed), (64, 16))
        step = config.levels // 2**stride
        assert np.all(level % step == 0) and np.all(level + step <= config.levels)
        assert np.all((stride == config.stride_rows - 1) | is_boot)
        assert not np.any(is_boot & is_past) and np.any(is_boot) and np.any(is_past)
        assert np.all(np.where(is_past, level, config.levels) >= 0.8 * config.levels - 1)


def test_a_nearly_clean_past_comes_first_in_its_row(tiny):
    _, _, _, is_past = ShortcutForcing()._levels(tiny[0].config.dynamics, jax.random.key(0), (256, 12))
    is_past = np.asarray(is_past)
    assert np.all(is_past[:, :-1] >= is_past[:, 1:]) and not is_past[:, -1].any()


def test_two_small_strides_of_a_constant_prediction_imply_that_prediction(tiny):
    """An untrained head predicts 0 everywhere: the implied clean latent is 0 where taught, the truth elsewhere."""
    world, _ = tiny
    params = world.init(jax.random.key(0))
    config, batch = world.config.dynamics, clip(world)
    clean = jnp.asarray(batch.latents, jnp.float32)
    level, stride, is_boot, _ = ShortcutForcing(bootstrap=1.0, context=0.5)._levels(
        config, jax.random.key(1), clean.shape[:2]
    )
    noisy = clean * 0.3
    segment, known = jnp.zeros((ROWS, FRAMES), jnp.int32), jnp.ones((ROWS, FRAMES), bool)
    target = shortcut_forcing._two_small(
        world, params, clean, noisy, level, stride, is_boot, batch.controls.keys, known, segment
    )
    taught = np.asarray(is_boot)
    np.testing.assert_allclose(np.asarray(target)[taught], 0.0, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(target)[~taught], np.asarray(clean)[~taught])
    assert taught.any() and (~taught).any()


def test_the_bank_remembers_errors_and_gives_them_to_the_past_only(tiny):
    world, params = tiny
    objective = ShortcutForcing(recycle_from=0, bank=64)
    carry = objective.init_carry(world)
    _, (_, carry) = jax.jit(
        lambda key: objective.loss(world, params, params, clip(world), key, jnp.asarray(1), carry)
    )(jax.random.key(0))
    assert float(jnp.abs(carry["errors"]).max()) > 0.0
    is_past = jnp.asarray(np.arange(FRAMES)[None] < 3).repeat(64, axis=0)
    clean = jnp.zeros((64, FRAMES, *world.config.latent_shape))
    errors = jnp.ones_like(carry["errors"])
    added = np.asarray(objective._recycle(jax.random.key(1), clean, is_past, jnp.asarray(5), errors))
    assert np.any(added[:, :3]) and not np.any(added[:, 3:])
    late = dataclasses.replace(objective, recycle_from=10)
    assert not np.any(np.asarray(late._recycle(jax.random.key(1), clean, is_past, jnp.asarray(5), errors)))


def test_an_episode_start_hides_the_past_and_its_controls(tiny):
    is_first = np.zeros((ROWS, FRAMES), bool)
    is_first[:, 3] = True
    objective = ShortcutForcing(images=0.0, cuts=0.0, unknown=0.0)
    segment, known = objective._segments(jax.random.key(0), jnp.asarray(is_first))
    assert np.all(np.asarray(segment)[:, :3] != np.asarray(segment)[:, 3:])
    np.testing.assert_array_equal(np.asarray(known), ~is_first)


def test_the_autoencoder_measures_the_scale_of_its_latents(tiny):
    world, params = tiny
    objective = Reconstruction()
    frames = np.random.default_rng(0).integers(0, 256, (4, 2, 32, 32, 3), dtype=np.uint8)
    batch = wm.Clip(frames, wm.Controls(keys=np.zeros((4, 2, 4), bool)), np.zeros((4, 2), bool))
    carry = objective.init_carry(world)
    run = jax.jit(lambda key, step, carry: objective.loss(world, params, params, batch, key, step, carry)[1][1])
    for step in range(60):
        carry = run(jax.random.key(step), jnp.asarray(step), carry)
    scaled = world.model(objective.finish(params, carry)).autoencoder.encode(jnp.asarray(frames))
    assert np.allclose(scaled.mean(axis=(0, 1, 2, 3)), 0.0, atol=0.35)
    assert np.allclose(scaled.std(axis=(0, 1, 2, 3)), 1.0, atol=0.35)


def test_distances_are_zero_for_equal_frames_and_grow_with_the_error():
    rng = np.random.default_rng(0)
    truth = jnp.asarray(rng.uniform(-1, 1, (1, 2, 16, 16, 3)), jnp.float32)
    noise = jnp.asarray(rng.standard_normal(truth.shape), jnp.float32)
    near, far = truth + 0.05 * noise, truth + 0.5 * noise
    assert float(pyramid_distance(truth, truth)) == 0.0
    assert float(pyramid_distance(far, truth)) > float(pyramid_distance(near, truth)) > 0.0
    assert np.allclose(local_similarity(truth, truth), 1.0, atol=1e-5)
    assert float(local_similarity(far, truth).mean()) < float(local_similarity(near, truth).mean()) < 1.0
