"""Two devices learn what one device learns."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from wm_jax.sharding import make_mesh, put_batch, replicate

SHARDED_STEP = """
import dataclasses
from types import SimpleNamespace
import jax, numpy as np, wm_jax as wm
from pallas_kernels import implementation
from wm_jax.data.loader import DataConfig
from wm_jax.sharding import make_mesh, put_batch, replicate
from wm_jax.training.config import TrainConfig
from wm_jax.training.objectives.shortcut_forcing import ShortcutForcing
from wm_jax.training.optimizer import OptimizerConfig
from wm_jax.training.source import LatentClip
from wm_jax.training.state import init_state
from wm_jax.training.step import make_train_step

# Kernels of a made-up platform, which note how many rows they are given: XLA cannot split a kernel, so each device must
# call it for its own rows.
seen = []

def kernel(op):
    reference = implementation.load(op, "reference")
    def run(q, *rest, **static):
        seen.append(q.shape[0])
        return reference(q, *rest, **static)
    return SimpleNamespace(**{op: run}, refusal=lambda *_, **__: None)

kernels, module = {"block_causal_attention": kernel("block_causal_attention")}, implementation._module
implementation._module = lambda op, name: kernels.get(op) if name == "tpu" else module(op, name)
implementation.PLATFORMS = (implementation.Platform("tpu", "cpu", lambda device: True),)

ROWS, FRAMES = 4, 5
world, weights = jax.device_get(wm.tiny_world(0))
config = TrainConfig(
    name="sharded", world=world.config, objective=ShortcutForcing(bootstrap=0.5, recycle_from=0, bank=16),
    data=DataConfig("none", "none", clip_frames=FRAMES, batch=ROWS), optimizer=OptimizerConfig(warmup_steps=1), steps=100,
)

def start():
    state = init_state(config)
    # Rough weights: the zeros of fresh ones have no gradient, of which Adam would make a full step of either sign.
    rough, slow = (jax.tree.map(jax.numpy.array, {name: weights[name] for name in state.params}) for _ in range(2))
    return dataclasses.replace(state, params=rough, ema=slow)

def learn(devices):
    mesh, rng, losses = make_mesh(devices), np.random.default_rng(0), []
    step = make_train_step(config, mesh)
    seen.clear()
    state = replicate(mesh, start())
    for _ in range(3):
        latents = rng.standard_normal((ROWS, FRAMES, *world.config.latent_shape)).astype(np.float16)
        keys = wm.Controls(keys=rng.random((ROWS, FRAMES, 4)) < 0.5)
        batch = put_batch(mesh, LatentClip(latents, keys, np.zeros((ROWS, FRAMES), bool)))
        assert batch.latents.sharding.device_set == set(devices)
        assert batch.latents.addressable_shards[0].data.shape[0] == ROWS // len(devices)
        state, metrics = step(state, batch)
        losses.append((float(metrics["loss"]), float(metrics["gradient"])))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves((state.params, state.ema)))
    return losses, jax.device_get((state.params, state.ema)), sorted(set(seen))

assert jax.device_count() == 2
(many, learned_by_many, rows_of_many) = learn(jax.devices())
(one, learned_by_one, rows_of_one) = learn(jax.devices()[:1])
assert [2 * rows for rows in rows_of_many] == rows_of_one, (rows_of_many, rows_of_one)
np.testing.assert_allclose(many, one, rtol=1e-4)
moved = []
for ours, theirs, before in zip(*map(jax.tree.leaves, (learned_by_many, learned_by_one, (start().params, start().ema)))):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    moved.append(np.abs(ours - before).max())
assert np.median(moved) > 1e-3, moved
try:
    put_batch(make_mesh(), np.zeros((3, 2)))
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_train_step_of_two_devices_is_that_of_one() -> None:
    """The real update of the dynamics on a tiny world: same losses, gradients and weights after three batches."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-c", SHARDED_STEP],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "a batch of 3 cannot be divided among 2 devices: make data.batch a multiple of 2" in done.stdout


def test_on_one_device_nothing_changes() -> None:
    mesh = make_mesh(jax.devices()[:1])
    tree = {"a": np.arange(6.0).reshape(3, 2), "key": jax.random.key(0)}
    assert np.array_equal(put_batch(mesh, tree["a"]), tree["a"])
    moved = replicate(mesh, tree)
    assert np.array_equal(moved["a"], tree["a"]) and moved["key"].dtype == tree["key"].dtype


def test_the_mesh_has_one_axis_named_data() -> None:
    assert make_mesh(jax.devices()[:1]).shape == {"data": 1}
    with pytest.raises(ValueError, match="cannot be divided"):
        put_batch(make_mesh([*jax.devices()[:1]] * 2), np.zeros((3, 1)))
