"""Laws of the 8-bit layers: what rounding may cost, what zeros give, and who takes the kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from pallas_kernels import block_sizes, quantize, quantized_matmul
from pallas_kernels.quantized_matmul.quantize import LARGEST, TINY, QuantizedWeight, products

INT8, FLOAT8 = "int8", "float8_e4m3fn"
ROUNDING = 1e-5
"""Of float32 on the way, relative: far below half a step."""
M, I, O = 5, 24, 7
MATRICES = {"seed": st.integers(0, 2**32 - 1), "size": st.integers(-25, 25), "has_zeros": st.booleans()}
quantize_now = jax.jit(quantize, static_argnums=1)
multiply_now = jax.jit(quantized_matmul)


def matrix(seed, size, has_zeros, *shape):
    """Numbers of about 10**size, in channels of different sizes, some of them zero."""
    rng = np.random.default_rng(seed)
    channels = np.where((rng.random(shape[1]) < 0.3) & has_zeros, 0.0, 10.0 ** rng.uniform(-3, 3, shape[1]))
    return (rng.standard_normal(shape) * channels * 10.0**size).astype(np.float32)


def half_steps(a, scale, dtype):
    """The most that rounding to 8 bits changes each number: half of its distance to the next."""
    if dtype == INT8:
        return np.broadcast_to(scale / 2, a.shape)
    exponent = np.floor(np.log2(np.maximum(np.abs(a) / scale, 2.0**-6)))  # numbers below 2**-6 are as dense as there
    return 2.0 ** (exponent - 4) * scale


@settings(max_examples=60, deadline=None)
@given(**MATRICES)
@pytest.mark.parametrize("dtype", [INT8, FLOAT8])
def test_a_quantised_weight_is_off_by_half_a_step_and_keeps_its_signs(dtype, seed, size, has_zeros):
    weight = matrix(seed, size, has_zeros, I, O).astype(np.float64)
    values, scale = (np.asarray(a, np.float64) for a in quantize_now(weight.astype(np.float32), dtype))
    assert (scale > 0.0).all()
    assert (np.abs(values * scale - weight) <= half_steps(weight, scale, dtype) * (1 + ROUNDING)).all()
    assert (values * weight >= 0.0).all()
    used = np.abs(weight).max(0) > TINY
    np.testing.assert_array_equal(np.abs(values).max(0)[used], LARGEST[dtype])


@settings(max_examples=40, deadline=None)
@given(**MATRICES)
@pytest.mark.parametrize("dtype", [INT8, FLOAT8])
def test_the_product_is_off_by_what_rounding_both_sides_costs(dtype, seed, size, has_zeros):
    x, weight = matrix(seed, -size, False, M, I), matrix(seed + 1, size, has_zeros, I, O)
    quantised = quantize_now(weight, dtype)
    found = np.asarray(multiply_now(x, quantised), np.float64)
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    row = np.maximum(np.abs(x).max(1, keepdims=True), TINY) / LARGEST[dtype]
    off_x, off_weight = half_steps(x, row, dtype), half_steps(weight, np.asarray(quantised.scale, np.float64), dtype)
    bound = off_x @ np.abs(weight) + np.abs(x) @ off_weight + off_x @ off_weight
    slack = ROUNDING * (np.abs(x) @ np.abs(weight))
    assert (np.abs(found - x @ weight) <= bound + slack).all()


@pytest.mark.parametrize("dtype", [INT8, FLOAT8])
def test_zero_rows_and_channels_give_zeros(dtype):
    x, weight = np.ones((3, 2, I), np.float32), np.ones((I, O), np.float32)
    x[1], weight[:, 2] = 0.0, 0.0
    found = quantized_matmul(jnp.asarray(x), quantize(jnp.asarray(weight), dtype))
    right = np.full((3, 2, O), float(I), np.float32)
    right[1], right[:, :, 2] = 0.0, 0.0
    np.testing.assert_allclose(found, right, rtol=1e-6)


def test_int8_is_summed_exactly_where_float32_could_not():
    row = jnp.full((1, 2**14 + 1), 127, jnp.int8)
    assert int(products(row, row.T)[0, 0]) == 127 * 127 * (2**14 + 1)


def test_what_does_not_fit_is_refused_with_both_sides():
    x, weight = jnp.ones((M, I)), quantize(jnp.ones((I, O)))
    with pytest.raises(ValueError, match=r"x \(5, 23\), weight \(24, 7\) and scale \(7,\) do not fit"):
        quantized_matmul(x[:, 1:], weight)
    with pytest.raises(ValueError, match="of int8 or float8_e4m3fn, not of float32"):
        quantized_matmul(x, QuantizedWeight(jnp.ones((I, O)), weight.scale))
    with pytest.raises(ValueError, match="of int8 or float8_e4m3fn, not of int4"):
        quantize(jnp.ones((I, O)), "int4")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="140000 channels are more than the 133144 of int32"):
        quantized_matmul(jnp.ones((1, 140_000)), QuantizedWeight(jnp.ones((140_000, 1), jnp.int8), jnp.ones(1)))


def exported(kind, dtype, implementation):
    """The program as it is lowered for a TPU of this kind."""
    mesh = AbstractMesh((1,), ("_",), (AxisType.Explicit,), abstract_device=AbstractDevice(kind, 1, "tpu"))
    x, weight = jnp.ones((32, 128), jnp.bfloat16), quantize(jnp.ones((128, 128)), dtype)
    run = jax.jit(lambda x, weight: quantized_matmul(x, weight, implementation=implementation))
    with use_abstract_mesh(mesh):
        return jax.export.export(run, platforms=["tpu"])(x, weight).mlir_module()


def test_auto_waits_for_a_measurement_and_a_name_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(block_sizes, "FOLDER", tmp_path)
    (tmp_path / "quantized_matmul").mkdir()
    block_sizes.read.cache_clear()
    assert "tpu_custom_call" not in exported("TPU v6 lite", INT8, "auto")
    assert "tpu_custom_call" in exported("TPU v6 lite", INT8, "tpu")
    block_sizes.write("quantized_matmul", "TPU v6 lite", block_sizes.Sizes(rows=256))
    assert "tpu_custom_call" in exported("TPU v6 lite", INT8, "auto")
    assert "tpu_custom_call" not in exported("TPU v5 lite", INT8, "auto")
    block_sizes.read.cache_clear()


@pytest.mark.parametrize(("kind", "dtype"), [("TPU v4", INT8), ("TPU7x", INT8), ("TPU v6 lite", FLOAT8)])
def test_a_tpu_without_such_products_says_so(kind, dtype):
    with pytest.raises(ValueError, match=f"'tpu' was asked for, but {kind} has no products of {dtype}"):
        exported(kind, dtype, "tpu")
