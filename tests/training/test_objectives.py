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
        level, stride, is_boot = objective._levels(config, jax.random.key(seed), (64, 16))
        step = config.levels // 2**stride
        assert np.all(level % step == 0) and np.all(level + step <= config.levels)
        assert np.all((stride == config.stride_rows - 1) == ~is_boot) and np.any(is_boot)


def test_a_row_remembers_as_in_playing_or_anywhere_above_the_floor(tiny):
    config = tiny[0].config.dynamics
    level = np.asarray(ShortcutForcing()._context_levels(config, jax.random.key(0), (512, 3)))
    assert np.all(level == level[:, :1]) and level.max() == config.levels - 1 and level.min() >= 0.7 * config.levels - 1
    assert 0.5 < np.mean(level == config.context_index) < 0.65
    assert np.all(
        ShortcutForcing(as_played=1.0)._context_levels(config, jax.random.key(0), (9, 3)) == config.context_index
    )


def test_the_smallest_batch_still_teaches_big_strides():
    rows = {batch: ShortcutForcing(bootstrap=0.125)._boot_rows(batch) for batch in (2, 4, 8, 16, 64)}
    assert rows == {2: 1, 4: 1, 8: 1, 16: 2, 64: 8}
    assert ShortcutForcing(bootstrap=1.0)._boot_rows(8) == 7 and ShortcutForcing(bootstrap=0.0)._boot_rows(1) == 0
    with pytest.raises(ValueError, match="a batch of 1 row"):
        ShortcutForcing()._boot_rows(1)


def test_two_small_strides_of_a_constant_prediction_imply_that_prediction(tiny):
    """An untrained head predicts 0 everywhere: the implied clean latent is 0 where taught, the truth elsewhere."""
    world, _ = tiny
    params = world.init(jax.random.key(0))
    config, batch = world.config.dynamics, clip(world)
    clean = jnp.asarray(batch.latents, jnp.float32)
    level, stride, taught = ShortcutForcing(bootstrap=0.5)._levels(config, jax.random.key(1), clean.shape[:2])
    segment, known = jnp.zeros((ROWS, FRAMES), jnp.int32), jnp.ones((ROWS, FRAMES), bool)
    past = (clean, jnp.full((ROWS, FRAMES), config.context_index))
    target = np.asarray(
        shortcut_forcing._two_small(
            world, params, clean, clean * 0.3, level, stride, (batch.controls.keys, known, segment, past)
        )
    )
    taught = np.asarray(taught)
    np.testing.assert_allclose(target[taught], 0.0, atol=1e-4)
    np.testing.assert_array_equal(target[~taught], np.asarray(clean)[~taught])
    assert taught.any() and (~taught).any()


@pytest.mark.slow
def test_computing_layers_again_gives_the_same_gradient_and_keeps_less(tiny):
    world, params = tiny

    def update(objective):
        def loss(params):
            carry = objective.init_carry(world)
            return objective.loss(world, params, params, clip(world), jax.random.key(2), jnp.int32(0), carry)[0]

        return jax.jit(jax.grad(loss)).lower(params).compile()

    plain, again = (update(ShortcutForcing(is_rematerialised=choice)) for choice in (False, True))
    for a, b in zip(jax.tree.leaves(plain(params)), jax.tree.leaves(again(params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)
    memory = [made.memory_analysis() for made in (plain, again)]
    plain_bytes, again_bytes = (found.temp_size_in_bytes if found else 0 for found in memory)
    assert again_bytes < 0.8 * plain_bytes, (again_bytes, plain_bytes)


@pytest.mark.slow
def test_the_bank_remembers_errors_and_gives_them_to_the_past(tiny):
    world, params = tiny
    objective = ShortcutForcing(recycle_from=0, bank=64)
    carry = objective.init_carry(world)
    _, (_, carry) = jax.jit(lambda key: objective.loss(world, params, params, clip(world), key, jnp.asarray(1), carry))(
        jax.random.key(0)
    )
    assert float(jnp.abs(carry["errors"]).max()) > 0.0
    clean = jnp.zeros((64, FRAMES, *world.config.latent_shape))
    errors = jnp.ones_like(carry["errors"])
    added = np.asarray(objective._recycle(jax.random.key(1), clean, jnp.asarray(5), errors))
    touched = added.any(axis=(2, 3, 4))
    assert 0.25 < touched.mean() < 0.55 and (~touched.any(axis=1)).any()
    late = dataclasses.replace(objective, recycle_from=10)
    assert not np.any(np.asarray(late._recycle(jax.random.key(1), clean, jnp.asarray(5), errors)))


def test_a_frame_is_learned_from_the_remembered_past_and_never_from_itself(tiny):
    """The loss of the first frame of an episode knows nothing: remembering it clean must not help."""
    world, params = tiny
    config, batch = world.config.dynamics, clip(world)
    clean, noisy = jnp.asarray(batch.latents, jnp.float32), jnp.zeros((ROWS, FRAMES, *world.config.latent_shape))
    level = jnp.zeros((ROWS, FRAMES), jnp.int32)
    segment, known = jnp.zeros((ROWS, FRAMES), jnp.int32), jnp.ones((ROWS, FRAMES), bool)

    def guess(past):
        given = (batch.controls.keys, known, segment, (past, level + config.context_index))
        return np.asarray(shortcut_forcing._predict(world, params, noisy, level, level, given))

    changed = clean.at[:, 3].add(1.0)
    np.testing.assert_array_equal(guess(clean)[:, :4], guess(changed)[:, :4])
    assert np.abs(guess(clean)[:, 4:] - guess(changed)[:, 4:]).min(axis=(2, 3, 4)).max() > 0.0


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
