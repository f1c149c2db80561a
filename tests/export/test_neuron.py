"""The Trainium lint: every rule finds what was planted for it, and what we ship has none of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

import wm_jax as wm
from wm_jax.export.neuron import ExportRefusal, export_for_neuron, lint
from wm_jax.export.programs import playing, rollout_program

X = jax.ShapeDtypeStruct((8, 8), jnp.float32)
I = jax.ShapeDtypeStruct((), jnp.int32)
KEY = jax.ShapeDtypeStruct((4,), jnp.uint32)
DIMS = ("NHWC", "HWIO", "NHWC")
PAD = [(2, 2), (2, 2)]
IMAGE, KERNEL = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))


def dilated(x):
    return lax.conv_general_dilated(x, KERNEL, (1, 1), PAD, (2, 2), (2, 2), dimension_numbers=DIMS).sum()


def strided(x):
    return lax.conv_general_dilated(x, KERNEL, (2, 2), PAD, (3, 3), dimension_numbers=DIMS).sum()


PLANTED = {
    "cond": (lambda x, n: lax.cond(n > 0, jnp.sin, jnp.cos, x), X, I),
    "while": (lambda x, n: lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * 2), (0, x)), X, I),
    "while, by a tolerance": (lambda x: lax.while_loop(lambda c: jnp.sum(c) > 0.001, lambda c: c / 2, x), X),
    "while, by one number": (lambda x: lax.while_loop(lambda c: c > 0.001, lambda c: c / 2, x), jax.ShapeDtypeStruct((), jnp.float32)),
    "threefry": (lambda n: jax.random.normal(jax.random.key(n), (8,)), I),
    "randint": (lambda n: jax.random.randint(jax.random.key(n), (8,), 0, 9), I),
    "dtype": (lambda x: x.astype(jnp.complex64), X),
    "fft": (lambda x: jnp.abs(jnp.fft.fft(x)), X),
    "cholesky": (jnp.linalg.cholesky, X),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 8, 7), X),
    "variadic_reduce": (lambda x: jnp.argmax(x, -1), X),
    "integer_dot": (lambda n: jnp.full((8, 8), n) @ jnp.full((8, 8), n), I),
    "integer_scatter": (lambda n: jnp.zeros(8, jnp.int32).at[n].set(n), I),
    "shift": (lambda n: jnp.full(8, n).astype(jnp.int8) >> 1, I),
    "rng": (lambda k: lax.rng_bit_generator(k, (8,), algorithm=lax.RandomAlgorithm.RNG_PHILOX)[1], KEY),
    "convolution": (dilated, IMAGE),
    "convolution, strided": (strided, IMAGE),
    "reduce_window": (lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 2), (1, 1), "VALID", window_dilation=(2, 2)), X),
}  # fmt: skip


@pytest.mark.parametrize("rule", PLANTED)
def test_a_planted_violation_is_found(rule):
    function, *args = PLANTED[rule]
    fatal = {finding.rule for finding in lint(export_for_neuron(function, *args)) if finding.is_fatal}
    assert rule.split(",")[0] in fatal


def test_a_call_that_the_compiler_does_not_know_is_found_where_it_was_let_through():
    function = jax.ffi.ffi_call("nobody_knows_this", X)
    with pytest.raises(ExportRefusal, match="custom call"):
        export_for_neuron(function, X)
    exported = export_for_neuron(function, X, allowed_calls=["nobody_knows_this"])
    assert [finding.rule for finding in lint(exported)] == ["custom_call"]
    own = jax.ffi.ffi_call("AwsNeuronCustomNativeKernel", X)
    assert lint(export_for_neuron(own, X, allowed_calls=["AwsNeuronCustomNativeKernel"])) == []


def test_a_shape_known_only_at_run_time_is_found():
    rows = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 8"), jnp.float32)
    assert "shape" in {finding.rule for finding in lint(export_for_neuron(jnp.sin, rows)) if finding.is_fatal}


def kernel(x):
    def double(x, out):
        out[...] = x[...] * 2

    return pl.pallas_call(double, out_shape=X)(x)


def called_back(x):
    return jax.pure_callback(lambda x: x, X, x)


@pytest.mark.parametrize("function", [kernel, called_back])
def test_what_has_no_lowering_is_refused(function):
    with pytest.raises(ExportRefusal, match="cannot be lowered for neuron"):
        export_for_neuron(function, X)


def test_counts_and_order():
    findings = lint(export_for_neuron(lambda x, i: jnp.argmax(x[i] + x[i + 1]), X, I))
    assert [finding.is_fatal for finding in findings] == sorted((f.is_fatal for f in findings), reverse=True)
    assert {f.rule: f.count for f in findings}["variadic_reduce"] == 1


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("name", ["start", "put", "step", "rollout"])
def test_what_we_play_has_nothing_against_it(name, sinks):
    world, _ = wm.tiny_world(sinks=sinks)
    prompt = wm.Prompt(np.zeros((1, 2, *world.config.image, 3), np.uint8))
    programs = playing(world, 2, prompt, is_noise_given=True)
    program = rollout_program(world, 2, 5) if name == "rollout" else getattr(programs, name)
    exported = export_for_neuron(program.function, *program.shapes)
    assert [finding for finding in lint(exported) if finding.is_fatal] == []
    if program.donated or name == "rollout":
        assert "tf.aliasing_output" in exported.mlir_module() or "jax.buffer_donor" in exported.mlir_module()
