"""The released size with random weights, by `pytest -m full`: what is proven on a small model holds there too."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wm_jax as wm
from wm_jax.ports import open_oasis
from wm_jax.ports.open_oasis.frame import encode, next_latent, see_latents

pytestmark = pytest.mark.full
FRAMES = 2


def test_the_ring_equals_recomputing_and_a_frame_is_made_of_it():
    """From one real-sized picture, two frames of one pass each, by the ring and by the published program's window of 32."""
    config = dataclasses.replace(open_oasis.RELEASED, steps=1)
    world = open_oasis.OasisWorld(config)
    params = world.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (1, 1, 360, 640, 3), dtype=np.uint8)
    actions = jnp.asarray(rng.integers(0, 2, (1, 1 + FRAMES, 25)), jnp.float32)
    noise = jnp.asarray(rng.standard_normal((1, FRAMES, *config.latent_shape)), jnp.float32)
    latents = jax.jit(encode, static_argnums=0)(config, params, picture)
    right = np.asarray(open_oasis.recompute(config, params, latents, actions, noise))
    state = see_latents(config, params, latents, actions[:, :1], wm.empty(world))
    advance = jax.jit(next_latent, static_argnums=0, donate_argnums=2)
    for i in range(FRAMES):
        state = advance(config, params, state, actions[:, 1 + i], jnp.ones((1,), bool), noise[:, i])
        np.testing.assert_allclose(state.latent, right[:, i], atol=1e-3)
    _, frame = wm.step(world, params, state, wm.Controls(np.zeros((1, 23), bool)))
    assert frame.shape == (1, 360, 640, 3) and np.std(np.asarray(frame)) > 0
