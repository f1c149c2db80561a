"""Laws of rotary positions: only differences count, nothing is stretched."""

import jax.numpy as jnp
import numpy as np
import pytest

from wm_jax.nn.patch import depth_to_space, space_to_depth
from wm_jax.nn.rope import rotate, rotate_grid

RNG = np.random.default_rng(0)
Q = jnp.asarray(RNG.standard_normal((5, 2, 8)), jnp.float32)
K = jnp.asarray(RNG.standard_normal((5, 2, 8)), jnp.float32)


@pytest.mark.parametrize("shift", [1, 7, 1000])
def test_only_the_difference_of_positions_counts(shift):
    here, there = jnp.arange(5) + 3, jnp.arange(5)
    before = jnp.sum(rotate(Q, here, 100.0) * rotate(K, there, 100.0), axis=-1)
    after = jnp.sum(rotate(Q, here + shift, 100.0) * rotate(K, there + shift, 100.0), axis=-1)
    np.testing.assert_allclose(before, after, atol=2e-3 if shift > 100 else 1e-4)


def test_a_key_turned_back_by_its_age_meets_a_query_that_stays():
    age = jnp.arange(5)
    expected = jnp.sum(rotate(Q, age, 100.0) * K, axis=-1)
    np.testing.assert_allclose(jnp.sum(Q * rotate(K, -age, 100.0), axis=-1), expected, atol=1e-5)


def test_position_zero_is_the_identity_and_lengths_stay():
    np.testing.assert_array_equal(rotate(Q, jnp.zeros((5,), jnp.int32), 100.0), Q)
    turned = rotate(Q, jnp.arange(5) * 13, 100.0)
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(Q, axis=-1), rtol=1e-5)


def test_the_grid_turns_its_own_tokens_and_leaves_the_others():
    tokens = jnp.asarray(RNG.standard_normal((1, 8, 1, 8)), jnp.float32)
    turned = rotate_grid(tokens, 2, 3, 100.0)
    np.testing.assert_array_equal(turned[:, 6:], tokens[:, 6:])
    np.testing.assert_array_equal(turned[:, 0], tokens[:, 0])
    moved = np.asarray(turned != tokens)[0, :6, 0]
    assert moved[1, 4:].any() and not moved[1, :4].any()  # one to the right: x channels only
    assert moved[3, :4].any() and not moved[3, 4:].any()  # one down: y channels only


def test_pixels_survive_the_way_into_the_channels_and_back():
    frames = jnp.asarray(RNG.standard_normal((2, 3, 8, 12, 3)), jnp.float32)
    folded = space_to_depth(frames, 4)
    assert folded.shape == (2, 3, 2, 3, 48)
    np.testing.assert_array_equal(depth_to_space(folded, 4), frames)
