"""Laws of the ball in a box: it stays inside, keys push it, and its functions jit, vmap and scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wm_jax.envs import bouncing_ball
from wm_jax.envs.bouncing_ball import RADIUS, SIZE, BouncingBall


@pytest.fixture(scope="module")
def walk():
    """A thousand random frames of eight balls at once."""
    keys = jax.random.bernoulli(jax.random.key(0), 0.4, (1000, 8, 4))
    states = jax.vmap(bouncing_ball.start)(jnp.arange(8, dtype=jnp.int32))

    def step(states, keys):
        states = jax.vmap(bouncing_ball.move)(states, keys)
        return states, states

    return keys, jax.jit(lambda states: jax.lax.scan(step, states, keys))(states)[1]


def test_the_ball_never_leaves_the_box(walk):
    position = np.asarray(walk[1].position)
    assert position.min() >= 1 + RADIUS - 1e-4 and position.max() <= SIZE - 1 - RADIUS + 1e-4


def test_the_functions_and_the_game_are_one_world(walk):
    keys, states = walk
    game = BouncingBall(split="train")
    game.reset(options={"level": 3})
    for t in range(30):
        frame, *_, info = game.step(np.asarray(keys[t, 3]))
        assert np.allclose(info["position"], np.asarray(states.position[t, 3]), atol=1e-4)
    expected = bouncing_ball.draw(jax.tree.map(lambda leaf: leaf[29, 3], states))
    assert np.abs(frame.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_keys_push_the_way_they_point():
    state = bouncing_ball.BallState(jnp.array([16.0, 16.0]), jnp.zeros(2), jnp.int32(0))
    for column, way in enumerate([(-1, 0), (1, 0), (0, -1), (0, 1)]):
        moved = bouncing_ball.move(state, jnp.arange(4) == column)
        assert np.array_equal(np.sign(np.asarray(moved.position - state.position)), way)


def test_held_out_levels_are_even_and_training_levels_odd():
    for game, rest in ((BouncingBall(split="train"), 1), (BouncingBall(split="held_out"), 0)):
        assert {game.reset(seed=seed)[1]["level"] % 2 for seed in range(8)} == {rest}
