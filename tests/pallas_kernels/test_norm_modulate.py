"""Laws of norm_modulate: what the model computed before there was the op, LayerNorm by hand, and when `auto` takes a kernel."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from pallas_kernels import bench, block_sizes, norm_modulate, tune
from pallas_kernels.norm_modulate import cases
from wm_jax.nn.norm import rms_norm

KIND = "TPU v6 lite"
A_TPU = AbstractMesh((1,), ("_",), (AxisType.Explicit,), abstract_device=AbstractDevice(KIND, 1, "tpu"))


def arguments(name, dtype="float32"):
    return [jnp.asarray(a, dtype) for a in cases.SMALL[name].arguments() if a is not None]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_is_the_rms_norm_of_the_model_modulated_bit_for_bit(dtype):
    x, shift, scale, branch, gate = arguments("branch and gate", dtype)
    one = jnp.ones((), dtype)
    stream = x + branch * gate[:, :, None]
    for found, given in ((norm_modulate(x, shift, scale, branch, gate), stream), (norm_modulate(x, shift, scale), x)):
        np.testing.assert_array_equal(found[0], rms_norm(given) * (one + scale[:, :, None]) + shift[:, :, None])
        np.testing.assert_array_equal(found[1], given)


def test_a_branch_without_a_gate_is_added_whole():
    x, shift, scale, branch, _ = arguments("branch and gate")
    np.testing.assert_array_equal(norm_modulate(x, shift, scale, branch)[1], x + branch)


def test_centred_is_layer_norm():
    x, shift, scale, branch, gate = arguments("centred")
    h, _ = norm_modulate(x, shift, scale, branch, gate, is_centred=True, epsilon=1e-3)
    shift, scale, gate = (np.asarray(a, np.float64)[:, :, None] for a in (shift, scale, gate))
    stream = np.asarray(x, np.float64) + gate * np.asarray(branch, np.float64)
    normed = (stream - stream.mean(-1, keepdims=True)) / np.sqrt(stream.var(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(h, (1 + scale) * normed + shift, atol=1e-5)


def test_what_does_not_fit_is_refused_with_both_sides():
    x, shift, scale, branch, gate = arguments("branch and gate")
    with pytest.raises(ValueError, match=r"x \(2, 2, 16, 128\) with branch \(2, 2, 15, 128\)"):
        norm_modulate(x, shift, scale, branch[:, :, 1:])
    with pytest.raises(ValueError, match=r"scale \(2, 2, 64\) is no row a frame of x \(2, 2, 16, 128\)"):
        norm_modulate(x, shift, scale[:, :, :64])
    with pytest.raises(ValueError, match="a gate without a branch"):
        norm_modulate(x, shift, scale, None, gate)
    with pytest.raises(ValueError, match="x is float32, other arrays are bfloat16"):
        norm_modulate(x, shift, scale.astype(jnp.bfloat16))


@pytest.fixture
def nothing_tuned(tmp_path, monkeypatch):
    """An empty folder in place of the ops' tuned.json."""
    (tmp_path / "norm_modulate").mkdir()
    monkeypatch.setattr(block_sizes, "FOLDER", tmp_path)
    block_sizes.read.cache_clear()
    yield
    block_sizes.read.cache_clear()


def compiles_a_kernel_for_a_tpu():
    with use_abstract_mesh(A_TPU):
        program = jax.jit(lambda *a: norm_modulate(*a))
        return "tpu_custom_call" in jax.export.export(program, platforms=["tpu"])(*arguments("plain")).mlir_module()


def test_auto_takes_the_kernel_only_where_it_was_measured(nothing_tuned):
    assert not compiles_a_kernel_for_a_tpu()
    block_sizes.write("norm_modulate", "TPU v4", block_sizes.Sizes(rows=16))
    assert not compiles_a_kernel_for_a_tpu()
    block_sizes.write("norm_modulate", KIND, block_sizes.Sizes(rows=16))
    assert compiles_a_kernel_for_a_tpu()


@pytest.mark.parametrize(("kernel_us", "is_kept"), [(9.0, True), (11.0, False)])
def test_tuning_keeps_only_a_kernel_faster_than_xla(kernel_us, is_kept, monkeypatch):
    def row(arm, median_us):
        return bench.Row("norm_modulate", "case", "fwd", "float32", (1,), arm, median_us, 0.0, 1.0)

    monkeypatch.setattr(bench, "ceilings", lambda is_tiny: None)
    monkeypatch.setattr(bench, "works", lambda ops, tiny: [SimpleNamespace(arms={"pallas_kernels tpu": None})])
    monkeypatch.setattr(bench, "only", lambda work, arm: arm)
    monkeypatch.setattr(bench, "measure", lambda arm, ceiling, rounds: [row("reference", 10.0), row(arm, kernel_us)])
    found = tune.tune("norm_modulate", "tpu", rounds=1)
    assert (found in tune.WAYS["norm_modulate"]["tpu"]) == is_kept
