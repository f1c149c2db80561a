"""The shapes and dtypes written on public signatures hold, checked at run time while a tiny world plays and learns to see."""

import subprocess
import sys
from pathlib import Path

PLAY = """
import jaxtyping
jaxtyping.install_import_hook(["wm_jax.types", "wm_jax.world", "wm_jax.dynamics", "wm_jax.nn", "wm_jax.autoencoder",
                               "wm_jax.conditioning", "wm_jax.samplers", "pallas_kernels"], "beartype.beartype")
import jax, numpy as np, wm_jax as wm
world, params = wm.tiny_world(0)
height, width = world.config.image
keys = np.zeros((2, 3, len(world.config.controls.keys)), bool)
prompt = wm.Prompt(frames=np.zeros((2, 3, height, width, 3), np.uint8), controls=wm.Controls(keys=keys))
state = wm.start(world, params, prompt, jax.random.key(0))
state, frame = wm.step(world, params, state, wm.Controls(keys=keys[:, 0]), jax.numpy.array([True, False]))
state, frames = wm.rollout(world, params, state, wm.Controls(keys=keys))
assert frame.shape == (2, height, width, 3) and frames.shape == (2, 3, height, width, 3)
"""


def test_shapes_are_as_annotated(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PLAY], cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
