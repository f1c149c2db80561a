"""The shapes and dtypes written on public signatures hold, checked at run time while a tiny world plays and learns."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKED = """
import jaxtyping
jaxtyping.install_import_hook(["wm_jax.types", "wm_jax.world", "wm_jax.dynamics", "wm_jax.nn", "wm_jax.autoencoder",
                               "wm_jax.conditioning", "wm_jax.samplers", "wm_jax.training.objectives",
                               "wm_jax.ports", "pallas_kernels"], "beartype.beartype")
import jax, numpy as np, wm_jax as wm
world, params = wm.tiny_world(0)
height, width = world.config.image
"""
PLAY = """
keys = np.zeros((2, 3, len(world.config.controls.keys)), bool)
prompt = wm.Prompt(frames=np.zeros((2, 3, height, width, 3), np.uint8), controls=wm.Controls(keys=keys))
state = wm.start(world, params, prompt, jax.random.key(0))
state, frame = wm.step(world, params, state, wm.Controls(keys=keys[:, 0]), jax.numpy.array([True, False]))
state, frames = wm.rollout(world, params, state, wm.Controls(keys=keys))
assert frame.shape == (2, height, width, 3) and frames.shape == (2, 3, height, width, 3)

from wm_jax.dynamics import ring_cache
try:
    ring_cache.write(state.cache, state.cache.keys, state.cache.values, state.latent, state.is_pending)
except jaxtyping.TypeCheckError as error:
    print("noticed" if "parameter 'latents'" in str(error) else error)
"""
LEARN = """
from wm_jax.training.objectives.reconstruction import Reconstruction
from wm_jax.training.objectives.shortcut_forcing import ShortcutForcing
from wm_jax.training.source import LatentClip
rng, is_first = np.random.default_rng(0), np.zeros((4, 3), bool)
keys = wm.Controls(keys=rng.random((4, 3, len(world.config.controls.keys))) < 0.5)
latents = rng.standard_normal((4, 3, *world.config.latent_shape)).astype(np.float16)
frames = rng.integers(0, 256, (4, 3, height, width, 3), dtype=np.uint8)
for objective, batch in ((ShortcutForcing(bootstrap=0.5, bank=16), LatentClip(latents, keys, is_first)),
                         (Reconstruction(), wm.Clip(frames, keys, is_first))):
    def loss(params, batch):
        carry = objective.init_carry(world)
        return objective.loss(world, params, params, batch, jax.random.key(0), jax.numpy.asarray(0), carry)[0]
    assert np.isfinite(float(jax.jit(loss)(params, batch)))
"""
PLAY_OASIS = """
from wm_jax.ports import open_oasis as oasis
config = oasis.OasisConfig(
    transformer=oasis.TransformerConfig(depth=1, width=32, heads=2, hidden=32, window_frames=2, frequencies=8),
    autoencoder=oasis.AutoencoderConfig((8, 16), 4, 32, 2, 32, encoder_depth=1, decoder_depth=1), steps=2)
world = oasis.OasisWorld(config)
params, actions = world.init(jax.random.key(0)), np.zeros((2, 3, 25), np.float32)
done = oasis.from_actions(actions)
prompt = wm.Prompt(frames=np.zeros((2, 3, 8, 16, 3), np.uint8), controls=done)
state = wm.start(world, params, prompt, jax.random.key(0))
first = jax.tree.map(lambda leaf: leaf[:, 0], done)
state, frame = wm.step(world, params, state, first, jax.numpy.array([True, False]))
state, frames = wm.rollout(world, params, state, done)
assert frame.shape == (2, 8, 16, 3) and frames.shape == (2, 3, 8, 16, 3)
noise = jax.numpy.zeros((2, 2, 2, 4, 16))
assert oasis.recompute(config, params, noise[:, :1], actions, noise).shape == noise.shape

from wm_jax.ports.open_oasis import ring
try:
    ring.ages(state.past, state.action)
except jaxtyping.TypeCheckError as error:
    print("noticed" if "parameter 'following'" in str(error) else error)
"""


def run(code: str, root: Path) -> str:
    """What `code` prints in a process of its own, in which every signature is checked."""
    done = subprocess.run([sys.executable, "-c", CHECKED + code], cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_shapes_are_as_annotated_while_playing_and_a_wrong_one_is_noticed(root: Path) -> None:
    assert run(PLAY, root) == "noticed\n"


@pytest.mark.oasis
def test_shapes_are_as_annotated_while_oasis_plays_and_a_wrong_one_is_noticed(root: Path) -> None:
    assert run(PLAY_OASIS, root) == "noticed\n"


@pytest.mark.slow
def test_shapes_are_as_annotated_in_the_losses_of_both_stages(root: Path) -> None:
    """Which is where `denoise_clip` with a past, and with it `block_causal_attention`, is called."""
    run(LEARN, root)
