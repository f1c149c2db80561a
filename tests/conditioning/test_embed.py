"""Laws of listening: absent controls are the learned null, whatever was held."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from wm_jax.conditioning import ConditioningConfig, Embedder


def test_unknown_controls_are_the_null_whatever_was_held():
    embedder = Embedder(ConditioningConfig(keys=3), 8, nnx.Rngs(0))
    held = jnp.asarray(np.random.default_rng(0).random((2, 4, 3)) < 0.5)
    unknown = jnp.zeros((2, 4), bool)
    first, second = embedder(held, unknown), embedder(~held, unknown)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    np.testing.assert_array_equal(first.modulation, second.modulation)


def test_nothing_held_is_not_the_same_as_unknown():
    embedder = Embedder(ConditioningConfig(keys=3), 8, nnx.Rngs(0))
    nothing = jnp.zeros((1, 1, 3), bool)
    known, unknown = embedder(nothing, jnp.ones((1, 1), bool)), embedder(nothing, jnp.zeros((1, 1), bool))
    assert np.any(np.asarray(known.tokens) != np.asarray(unknown.tokens))


def test_every_combination_of_keys_is_another_token():
    embedder = Embedder(ConditioningConfig(keys=3), 8, nnx.Rngs(0))
    every = jnp.asarray([[[bool(n & 1), bool(n & 2), bool(n & 4)] for n in range(8)]])
    tokens = np.asarray(embedder(every, jnp.ones((1, 8), bool)).modulation[0])
    distances = np.linalg.norm(tokens[:, None] - tokens[None], axis=-1) + np.eye(8)
    assert distances.min() > 1e-3
