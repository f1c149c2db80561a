"""bfloat16 and 8 bits against the published numbers; tolerances are twice what was measured, relative to the whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wm_jax as wm
from pallas_kernels import QuantizedWeight
from wm_jax.ports import open_oasis
from wm_jax.ports.open_oasis import OasisWorld, TransformerConfig, transformer
from wm_jax.ports.open_oasis.frame import next_latent, see_latents
from wm_jax.types import Params

pytestmark = pytest.mark.oasis
VARIANTS = {
    ("bfloat16", None): 0.03,
    ("float32", "int8"): 0.04,
    ("float32", "float8_e4m3fn"): 0.13,
    ("bfloat16", "int8"): 0.045,
    ("bfloat16", "float8_e4m3fn"): 0.14,
}


def played(small: tuple[OasisWorld, Params], dtype, weights) -> tuple[OasisWorld, Params]:
    config = small[0].config
    net = dataclasses.replace(config.transformer, dtype=dtype, weights=weights)
    world = OasisWorld(dataclasses.replace(config, transformer=net))
    return world, world.for_playing(small[1])


def error(found, right) -> float:
    return float(np.linalg.norm(np.asarray(found) - right) / np.linalg.norm(right))


@pytest.mark.parametrize(("dtype", "weights"), VARIANTS)
def test_a_pass_and_three_frames_are_near_the_published_ones(small, expected, dtype, weights):
    world, params = played(small, dtype, weights)
    inputs = (expected[f"forward.{name}"] for name in ("x", "t", "actions"))
    see = jax.jit(transformer.denoise_window, static_argnums=0)
    v = see(world.config, params["transformer"], *inputs, jnp.zeros((2, 4), jnp.int32))
    tolerance = VARIANTS[dtype, weights]
    assert 1e-3 < error(v, expected["forward.v"]) < tolerance
    actions, noise, latents = (expected[f"rollout.{name}"] for name in ("actions", "noise", "latents"))
    state, made = see_latents(world.config, params, latents[:, :1], actions[:, :1], wm.empty(world, 2)), []
    advance = jax.jit(next_latent, static_argnums=0)
    for i in range(1, 4):
        state = advance(world.config, params, state, actions[:, i], jnp.ones((2,), bool), noise[:, i])
        made.append(np.asarray(state.latent))
    assert 1e-3 < error(np.stack(made, axis=1), latents[:, 1:4]) < tolerance


@pytest.mark.parametrize("weights", ["int8", "float8_e4m3fn"])
def test_the_large_weights_of_the_layers_are_of_8_bits_and_no_others(small, weights):
    world, params = played(small, "bfloat16", weights)
    leaves = jax.tree_util.tree_leaves_with_path(
        params["transformer"], is_leaf=lambda x: isinstance(x, QuantizedWeight)
    )
    narrow = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in leaves
        if isinstance(leaf, QuantizedWeight)
    }
    names = ("qkv", "merge", "mlp/hidden", "mlp/out")
    assert narrow == {
        f"blocks/{i}/{half}/{name}/kernel" for i in range(2) for half in ("space", "time") for name in names
    }
    assert {leaf.values.dtype.name for _, leaf in leaves if isinstance(leaf, QuantizedWeight)} == {weights}
    assert {leaf.dtype.name for _, leaf in leaves if not isinstance(leaf, QuantizedWeight)} == {"bfloat16"}
    again = world.for_playing(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert jax.tree.map(np.shape, jax.eval_shape(world.for_playing, world.shapes())) == jax.tree.map(np.shape, params)


def test_other_weights_are_refused():
    with pytest.raises(ValueError, match="weights is 'int4': it must be None or one of int8, float8_e4m3fn"):
        TransformerConfig(weights="int4")  # pyright: ignore[reportArgumentType]
    assert open_oasis.RELEASED.transformer.weights is None
