"""Laws of signal levels and of the few-step sampler."""

import jax.numpy as jnp
import numpy as np
import pytest

from wm_jax.samplers import mix, sample, update

NOISE = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 3, 4)), jnp.float32)
CLEAN = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 3, 4)), jnp.float32)


def test_level_one_is_clean_and_level_zero_is_noise():
    np.testing.assert_array_equal(mix(NOISE, CLEAN, 1.0), CLEAN)
    np.testing.assert_array_equal(mix(NOISE, CLEAN, 0.0), NOISE)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_last_update_ends_at_the_prediction(steps):
    predictions = [CLEAN + i for i in range(steps)]
    latent = sample(lambda noisy, i: predictions[i], NOISE, steps)
    np.testing.assert_allclose(latent, predictions[-1], atol=1e-5)


def test_a_perfect_prediction_walks_the_straight_line():
    level, stride = 0.25, 0.5
    np.testing.assert_allclose(
        update(mix(NOISE, CLEAN, level), CLEAN, level, stride), mix(NOISE, CLEAN, level + stride), atol=1e-6
    )


def test_a_prediction_given_beforehand_is_not_computed_again():
    asked = []

    def predict(noisy, i):
        asked.append(i)
        return CLEAN

    sample(predict, NOISE, 4, first=CLEAN)
    assert asked == [1, 2, 3]
