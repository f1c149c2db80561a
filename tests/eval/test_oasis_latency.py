"""The measure of Oasis-500M measures what it says: every part, and as many products as a frame has."""

import dataclasses
import math

import jax
import pytest

from wm_jax.eval.oasis_latency import Spent, drafts, matrix_products, measure, median
from wm_jax.ports.open_oasis import RELEASED, AutoencoderConfig, OasisConfig, OasisWorld, TransformerConfig

pytestmark = pytest.mark.oasis


def test_every_part_of_a_frame_is_told():
    config = OasisConfig(
        transformer=TransformerConfig(depth=1, width=32, heads=2, hidden=32, window_frames=2, frequencies=8),
        autoencoder=AutoencoderConfig((8, 16), 4, 32, 2, 32, encoder_depth=1, decoder_depth=1),
        steps=2,
    )
    world, told = OasisWorld(config), {}
    measure(world, world.init(jax.random.key(0)), 2, 1, lambda what, spent: told.update({what: spent}))
    assert list(told) == [
        "compile start and step", "first frame", "steady frame, window full", "its matrix products alone", "its decode",
    ]  # fmt: skip
    assert all(0 < spent.clock < 600 and spent.cpu > 0 for spent in told.values())


def operations(jaxpr) -> int:
    """Multiplications and additions of all matrix products of a program."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [leaf for leaf in equation.params.values() if hasattr(leaf, "jaxpr")]
        total += equation.params.get("length", 1) * sum(operations(one.jaxpr) for one in inner)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval
            total += 2 * equation.outvars[0].aval.size * math.prod(left.shape[axis] for axis in contracted)
    return total


def test_the_products_are_those_of_a_frame_of_the_released_world():
    """1.29 TFLOP for ten passes and a commit and 0.19 for the decoder, as counted from the geometry, less attention's."""
    config, draft = dataclasses.replace(RELEASED, steps=10), jax.eval_shape(lambda: drafts(RELEASED, 1))
    traced = jax.make_jaxpr(lambda *given: matrix_products(config.steps, *given))(OasisWorld(config).shapes(), draft)
    assert 0.95 * 1.48e12 < operations(traced.jaxpr) < 1.48e12


def test_the_median_is_taken_of_each_clock():
    assert median([Spent(1, 30), Spent(2, 10), Spent(9, 20)]) == Spent(2, 20)
