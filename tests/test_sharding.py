"""Eight devices learn what one device learns."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from wm_jax.sharding import make_mesh, put_batch, replicate

SHARDED_STEP = """
import jax, jax.numpy as jnp, numpy as np, optax
from wm_jax.sharding import make_mesh, put_batch, replicate

optimizer = optax.adam(0.1)

@jax.jit
def step(params, opt_state, key, batch):
    def loss(params):
        noisy = batch["x"] + jax.random.normal(key, batch["x"].shape)
        return jnp.mean(jnp.square(jnp.tanh(noisy @ params["kernel"]) - batch["y"]))
    value, gradient = jax.value_and_grad(loss)(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state, value

def learn(devices):
    mesh, rng = make_mesh(devices), np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.standard_normal((5, 3)), jnp.float32)}
    params, opt_state, key = replicate(mesh, (params, optimizer.init(params), jax.random.key(1)))
    for _ in range(3):
        batch = {n: rng.standard_normal((16, w)).astype(np.float32) for n, w in (("x", 5), ("y", 3))}
        batch = put_batch(mesh, batch)
        assert len(batch["x"].sharding.device_set) == len(devices)
        assert batch["x"].addressable_shards[0].data.shape == (16 // len(devices), 5)
        params, opt_state, value = step(params, opt_state, key, batch)
    assert params["kernel"].sharding.is_fully_replicated
    return np.asarray(params["kernel"]), float(value)

assert jax.device_count() == 8
(many, loss_of_many), (one, loss_of_one) = learn(jax.devices()), learn(jax.devices()[:1])
np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6)
np.testing.assert_allclose(loss_of_many, loss_of_one, rtol=1e-6)
try:
    put_batch(make_mesh(), np.zeros((12, 2)))
except ValueError as error:
    print(error)
"""


def test_a_sharded_step_equals_the_step_of_one_device() -> None:
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", SHARDED_STEP],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "a batch of 12 cannot be divided among 8 devices: make data.batch a multiple of 8" in done.stdout


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
