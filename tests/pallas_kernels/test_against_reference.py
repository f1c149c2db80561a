"""Every kernel against its reference, forward and gradient, in the interpreter: memory that nobody wrote is NaN, a read outside
its array and a race raise.

Tolerances: float32 products and sums of a few hundred terms in another order, 2e-5 of values of size 1. In bfloat16 the
weights are rounded to 8 bits before the second product: 2e-2. Sums of int8 are exact: only the result is rounded.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from pallas_kernels import block_causal_attention, cached_attention, flash_gpu, norm_modulate, tune
from pallas_kernels.block_causal_attention import cases as block_cases
from pallas_kernels.block_causal_attention import gpu as block_gpu
from pallas_kernels.block_causal_attention import reference as block_reference
from pallas_kernels.block_causal_attention import tpu as block_tpu
from pallas_kernels.block_sizes import Sizes, trying
from pallas_kernels.cached_attention import cases as cached_cases
from pallas_kernels.cached_attention import gpu as cached_gpu
from pallas_kernels.cached_attention import reference as cached_reference
from pallas_kernels.cached_attention import tpu as cached_tpu
from pallas_kernels.norm_modulate import cases as norm_cases
from pallas_kernels.norm_modulate import gpu as norm_gpu
from pallas_kernels.norm_modulate import reference as norm_reference
from pallas_kernels.norm_modulate import tpu as norm_tpu
from pallas_kernels.quantized_matmul import cases as quantized_cases
from pallas_kernels.quantized_matmul import reference as quantized_reference
from pallas_kernels.quantized_matmul import tpu as quantized_tpu

PLATFORMS = {"tpu": (block_tpu, cached_tpu, norm_tpu)}
if hasattr(mosaic_gpu, "InterpretGPUParams"):  # since JAX 0.11
    PLATFORMS["gpu"] = (block_gpu, cached_gpu, norm_gpu)
A_TPU = AbstractMesh((1,), ("_",), (AxisType.Explicit,), abstract_device=AbstractDevice("TPU v6 lite", 1, "tpu"))
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2}


@pytest.fixture(autouse=True)
def _clean():
    yield
    pltpu.reset_tpu_interpret_mode_state()


def cast(arguments, dtype):
    return [a.astype(dtype) if a is not None and a.dtype == np.float32 else a for a in arguments]


def compare(kernel, reference, arguments, dtype, capfd):
    """All results, and the gradient in every floating argument under random cotangents."""
    leaves, tree = jax.tree.flatten(arguments)
    leaves = [jnp.asarray(leaf) for leaf in cast(leaves, dtype)]
    floats = [i for i, leaf in enumerate(leaves) if leaf.dtype == jnp.dtype(dtype)]

    def run(op, *moving):
        whole = list(leaves)
        for i, leaf in zip(floats, moving, strict=True):
            whole[i] = leaf
        return jax.tree.map(lambda a: a.astype(jnp.float32), op(*jax.tree.unflatten(tree, whole)))

    def both(op):
        out, pull = jax.vjp(functools.partial(run, op), *(leaves[i] for i in floats))
        rng = np.random.default_rng(9)
        given = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), jnp.float32), out)
        return [*jax.tree.leaves(out), *pull(given)]

    for mine, theirs in zip(both(kernel), both(reference), strict=True):
        mine, theirs = np.asarray(mine, np.float32), np.asarray(theirs, np.float32)
        assert np.abs(theirs).max() > 0.0
        np.testing.assert_allclose(mine, theirs, atol=TOLERANCE[dtype] * max(1.0, np.abs(theirs).max()), rtol=0)
    assert "RACE DETECTED" not in "".join(capfd.readouterr()), "before JAX 0.12 races are only printed"


def fitted(case, platform):
    """The case as the platform's kernels take it: wgmma wants 16 bits and 64 channels, and 192 tokens are three tiles."""
    if platform == "tpu":
        return case
    *lead, tokens, heads, groups, channels = case.shape
    shape = (*lead, min(tokens, 192), heads, groups, max(channels, 64))
    return dataclasses.replace(case, shape=shape, dtype="bfloat16")


def strict(platform):
    if platform == "tpu":
        return pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise")
    return mosaic_gpu.InterpretGPUParams(detect_races=True)


@pytest.mark.parametrize("name", block_cases.SMALL)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_block_causal_attention(platform, name, capfd):
    case = fitted(block_cases.SMALL[name], platform)
    static = {"window_frames": case.window_frames, "drafts": case.drafts}
    compare(
        functools.partial(PLATFORMS[platform][0].block_causal_attention, interpret=strict(platform), **static),
        functools.partial(block_reference.block_causal_attention, is_per_site=False, **static),
        case.arguments(), case.dtype, capfd,
    )  # fmt: skip


CACHED = [  # TPUs have no kernel of their own for single sites
    (platform, name) for platform in PLATFORMS for name, case in cached_cases.SMALL.items()
    if platform != "tpu" or not case.is_per_site
]  # fmt: skip


@pytest.mark.parametrize(("platform", "name"), CACHED)
def test_cached_attention(platform, name, capfd):
    case = fitted(cached_cases.SMALL[name], platform)
    *arguments, ring_scale = case.arguments()
    kernel = functools.partial(PLATFORMS[platform][1].cached_attention, interpret=strict(platform), **case.static)
    compare(
        lambda *given: kernel(*given, ring_scale),
        functools.partial(cached_reference.cached_attention, ring_scale=ring_scale, **case.static),
        arguments, case.dtype, capfd,
    )  # fmt: skip


@pytest.mark.parametrize("name", norm_cases.SMALL)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_norm_modulate(platform, name, capfd, monkeypatch):
    case = norm_cases.SMALL[name]
    if platform == "gpu":  # the threads of a warpgroup share the channels evenly
        *lead, width = case.shape
        case = dataclasses.replace(case, shape=(*lead, -(-width // norm_gpu.THREADS) * norm_gpu.THREADS))
    monkeypatch.setattr(norm_gpu, "WARPGROUPS", 5)  # so few that each has several tokens, and the last one fewer
    with trying(Sizes(rows=16)):
        compare(
            functools.partial(PLATFORMS[platform][2].norm_modulate, interpret=strict(platform), **case.static),
            functools.partial(norm_reference.norm_modulate, **case.static),
            case.arguments(), case.dtype, capfd,
        )  # fmt: skip


@pytest.mark.parametrize("name", quantized_cases.SMALL)
def test_quantized_matmul(name, capfd):
    case = quantized_cases.SMALL[name]
    x, weight = case.arguments()
    found = quantized_tpu.quantized_matmul(x, weight, interpret=strict("tpu"))
    right = jax.jit(quantized_reference.quantized_matmul)(x, weight)
    assert found.dtype == right.dtype == x.dtype
    found, right = np.asarray(found, np.float32), np.asarray(right, np.float32)
    another_order = 2e-6 * np.abs(right).max() if case.weight == "float8_e4m3fn" else 0.0
    np.testing.assert_allclose(found, right, rtol=float(jnp.finfo(case.dtype).eps), atol=another_order)
    assert "RACE DETECTED" not in "".join(capfd.readouterr()), "before JAX 0.12 races are only printed"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_tokens_that_pad_a_frame_have_no_part_in_a_gradient(platform):
    """Their keys are zeros: beside logits far below zero they would outweigh every real one."""
    case = dataclasses.replace(fitted(block_cases.SMALL["frames padded to tiles"], platform), sinks=0)
    q, k, v, segment, *_ = (jnp.asarray(a) for a in cast(case.arguments()[:4], case.dtype))
    kernel = functools.partial(
        PLATFORMS[platform][0].block_causal_attention, interpret=strict(platform), window_frames=1
    )
    q, k = jnp.full_like(q, 6.0), jnp.full_like(k, -6.0)
    d_q = jax.grad(lambda q: kernel(q, k, v, segment, None, None).astype(jnp.float32).sum())(q)
    assert np.isfinite(np.asarray(d_q, np.float32)).all()


def test_the_threads_of_a_block_share_the_registers_of_a_core():
    for workers, (worker, fetcher) in flash_gpu.REGISTERS.items():
        assert 128 * (workers * worker + fetcher) <= 2**16 and worker % 8 == fetcher % 8 == 0
        at_start = 2**16 // (128 * (workers + 1))  # what a thread may have before any of them asks
        assert fetcher <= at_start <= worker
    assert all(sizes.workers in (1, *flash_gpu.REGISTERS) for sizes in tune.FLASH["gpu"])


def test_auto_on_this_machine_is_the_reference_and_a_tpu_gets_the_kernel():
    case = block_cases.SMALL["plain"]
    q, k, v, segment, *_ = case.arguments()
    auto = jax.jit(functools.partial(block_causal_attention, window_frames=2, is_per_site=False))
    right = block_reference.block_causal_attention(q, k, v, segment, None, None, window_frames=2, is_per_site=False)
    np.testing.assert_allclose(auto(q, k, v, segment), right, atol=1e-6)
    assert "tpu_custom_call" not in jax.export.export(auto, platforms=["cpu"])(q, k, v, segment).mlir_module()
    with use_abstract_mesh(A_TPU):
        assert "tpu_custom_call" in jax.export.export(auto, platforms=["tpu"])(q, k, v, segment).mlir_module()


def test_the_kernel_asked_for_by_name_refuses_what_it_cannot_do():
    q, k, v, segment, *_ = block_cases.Case((1, 2, 24, 2, 2, 12), window_frames=1).arguments()
    for platform, why in (("tpu", "a multiple of 8"), ("gpu", "64 or 128")):
        with pytest.raises(ValueError, match=f"'{platform}' was asked for, but heads have 12 channels, it needs {why}"):
            block_causal_attention(q, k, v, segment, window_frames=1, is_per_site=False, implementation=platform)
    ring = cached_cases.SMALL["one frame"].arguments()
    with pytest.raises(ValueError, match="'tpu' was asked for, but it attends whole frames"):
        cached_attention(*ring, window_frames=3, is_per_site=True, implementation="tpu")
    x, shift, scale, *_ = norm_cases.Case((1, 1, 4, 96), modulated=(1, 1)).arguments()
    with pytest.raises(
        ValueError, match="'gpu' was asked for, but tokens have 96 channels, it needs a multiple of 128"
    ):
        norm_modulate(x, shift, scale, implementation="gpu")
    with pytest.raises(ValueError, match="'tpu' was asked for, but the stream is float16"):
        norm_modulate(*(a.astype(np.float16) for a in (x, shift, scale)), implementation="tpu")
