"""The published function: the same numbers from the same weights, recomputed and from the ring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wm_jax as wm
from wm_jax.ports import open_oasis
from wm_jax.ports.open_oasis import autoencoder, schedule, transformer
from wm_jax.ports.open_oasis.frame import next_latent, see_latents
from wm_jax.types import Params

pytestmark = pytest.mark.oasis
Small = tuple[open_oasis.OasisWorld, Params]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def recomputed(small: Small, expected):
    """All frames after the prompt by the published program."""
    prompt, actions, noise = (expected[f"rollout.{name}"] for name in ("prompt", "actions", "noise"))
    return np.asarray(open_oasis.recompute(small[0].config, small[1], prompt, actions, noise[:, 1:]))


def dreamed(small: Small, expected, prompt: int, frames: int):
    """The frames after the first `prompt` ones of the expected rollout, from the ring, with the same noise."""
    advance = jax.jit(next_latent, static_argnums=0, donate_argnums=2)
    actions, noise = expected["rollout.actions"], expected["rollout.noise"]
    latents = expected["rollout.latents"][:, :prompt]
    config, params, made = small[0].config, small[1], []
    state = see_latents(config, params, latents, actions[:, :prompt], wm.empty(small[0], 2))
    for i in range(prompt, prompt + frames):
        state = advance(config, params, state, actions[:, i], jnp.ones((2,), bool), noise[:, i])
        made.append(np.asarray(state.latent))
    return np.stack(made, axis=1)


def test_one_pass_over_a_window_is_the_published_one(small: Small, expected):
    inputs = (expected[f"forward.{name}"] for name in ("x", "t", "actions"))
    see = jax.jit(transformer.denoise_window, static_argnums=0)
    v = see(small[0].config, small[1]["transformer"], *inputs, jnp.zeros((2, 4), jnp.int32))
    np.testing.assert_allclose(v, expected["forward.v"], atol=TOLERANCE, rtol=0)


def test_the_autoencoder_is_the_published_one(small: Small, expected):
    config, params = small[0].config.autoencoder, small[1]["autoencoder"]
    latents = autoencoder.encode(config, params, expected["vae.image"][:, None])
    rows = latents.reshape(expected["vae.latent_mean"].shape)
    np.testing.assert_allclose(rows, expected["vae.latent_mean"], atol=TOLERANCE, rtol=0)
    pixels = autoencoder.decode(config, params, expected["vae.latent_mean"].reshape(latents.shape))
    np.testing.assert_allclose(pixels[:, 0], expected["vae.decoded"], atol=TOLERANCE, rtol=0)


def test_the_recomputed_rollout_is_the_published_one_also_when_the_window_slides(expected, recomputed):
    np.testing.assert_allclose(recomputed, expected["rollout.latents"][:, 1:], atol=TOLERANCE, rtol=0)


def test_the_ring_equals_recomputing_until_the_window_slides_and_then_remembers_more(
    small: Small, expected, recomputed
):
    made = dreamed(small, expected, prompt=1, frames=7)
    np.testing.assert_allclose(made[:, :3], recomputed[:, :3], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(made[:, :3], expected["rollout.latents"][:, 1:4], atol=TOLERANCE, rtol=0)
    # Frame 4 sees frames 1 to 3 both ways, but as they were seen when frame 0 was still there.
    assert 0.01 < np.abs(made[:, 3:] - recomputed[:, 3:]).max() < 1.0


@pytest.mark.parametrize("prompt", [2, 3])
def test_a_prompt_of_several_frames_is_remembered_as_if_it_had_been_dreamed(small: Small, expected, prompt):
    made = dreamed(small, expected, prompt=prompt, frames=4 - prompt)
    np.testing.assert_allclose(made, expected["rollout.latents"][:, prompt:4], atol=TOLERANCE, rtol=0)


def test_frames_before_the_first_are_seen_by_nobody(small: Small, expected):
    """A recomputed window that is not full is padded with what could be anything."""
    inputs = [expected[f"forward.{name}"][:, 2:] for name in ("x", "t", "actions")]
    see = jax.jit(transformer.denoise_window, static_argnums=0)
    config, params = small[0].config, small[1]["transformer"]
    alone = see(config, params, *inputs, jnp.zeros((2, 2), jnp.int32))
    padded = [jnp.concatenate([jnp.full_like(part, 7), part], axis=1) for part in inputs]
    both = see(config, params, *padded, jnp.asarray([[1, 1, 0, 0]] * 2))
    np.testing.assert_allclose(both[:, 2:], alone, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 4, 10, 50])
def test_the_passes_go_from_noise_to_clean_in_equal_strides(steps):
    timestep, share, to = schedule.passes(1000, steps)
    np.testing.assert_array_equal(timestep, [1000 * (steps - i) // steps - 1 for i in range(steps)])
    assert np.all(np.diff(share) > 0) and to[-1] == 1.0
    np.testing.assert_array_equal(share[1:], to[:-1])


def test_a_perfect_velocity_brings_a_noisy_frame_home():
    clean, noise = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    _, share, to = (jnp.asarray(part) for part in schedule.passes(1000, 10))
    x = jnp.sqrt(share[0]) * clean + jnp.sqrt(1 - share[0]) * noise
    for i in range(10):
        v = jnp.sqrt(share[i]) * noise - jnp.sqrt(1 - share[i]) * clean
        x = schedule.update(x, v, share[i], to[i])
    np.testing.assert_allclose(x, clean, atol=1e-5)
