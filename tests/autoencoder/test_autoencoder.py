"""Laws of the autoencoder: streaming equals all at once, a frame's latent knows no other frame."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wm_jax.autoencoder import Autoencoder, AutoencoderConfig
from wm_jax.autoencoder.autoencoder import start_decoder, to_bytes, to_unit

CONFIG = AutoencoderConfig(patch=4, widths=(8, 16), blocks=(1, 1), channels=4)
IMAGE = (32, 16)


@pytest.fixture(scope="module")
def model():
    return Autoencoder(CONFIG, nnx.Rngs(0))


@pytest.fixture(scope="module")
def frames():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 5, *IMAGE, 3), dtype=np.uint8))


def test_streaming_equals_decoding_the_clip(model, frames):
    latents = model.encode(frames)
    start = start_decoder(CONFIG, IMAGE, 2)
    together, last = model.decode(latents, start)
    one_by_one, state = [], start
    for t in range(5):
        frame, state = model.decode(latents[:, t : t + 1], state)
        one_by_one.append(frame)
    np.testing.assert_allclose(jnp.concatenate(one_by_one, axis=1), together, atol=1e-5)
    for name in last.memory:
        np.testing.assert_allclose(state.memory[name], last.memory[name], atol=1e-5)


def test_the_decoder_remembers_one_frame_a_block_and_no_future(model, frames):
    latents = model.encode(frames)
    start = start_decoder(CONFIG, IMAGE, 2)
    before, _ = model.decode(latents, start)
    after, _ = model.decode(latents.at[:, 3].add(1.0), start)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.any(np.asarray(before[:, 4]) != np.asarray(after[:, 4]))


def test_a_latent_knows_its_own_frame_only(model, frames):
    changed = frames.at[:, 2].set(0)
    before, after = model.encode(frames), model.encode(changed)
    keep = [0, 1, 3, 4]
    np.testing.assert_array_equal(np.asarray(before)[:, keep], np.asarray(after)[:, keep])
    assert np.any(np.asarray(before)[:, 2] != np.asarray(after)[:, 2])


def test_latents_have_the_grid_that_the_config_says(model, frames):
    cell = CONFIG.downscale
    assert model.encode(frames).shape == (2, 5, IMAGE[0] // cell, IMAGE[1] // cell, CONFIG.channels)


def test_bytes_survive_the_unit_interval():
    every = jnp.arange(256, dtype=jnp.uint8)
    np.testing.assert_array_equal(to_bytes(to_unit(every)), every)
    assert to_bytes(jnp.asarray([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"widths": (48, 64)}, r"widths \(48, 64\): 64 is no multiple of 48 before it"),
        ({"widths": (96, 48)}, "48 is no multiple of 96 before it"),
        ({"blocks": (1, 2, 3)}, r"widths \(48, 96\) and blocks \(1, 2, 3\) must name the same stages"),
        ({"widths": (), "blocks": ()}, "must name the same stages"),
        ({"channels": 0}, "channels=0.* must be at least 1"),
        ({"blocks": (1, -1)}, "blocks at least 0"),
    ],
)
def test_stages_that_cannot_be_joined_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        AutoencoderConfig(**wrong)
