"""The measure of Oasis-500M measures what it says: every part, and as many products as a frame has."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import jax
import pytest

from wm_jax.eval import latency
from wm_jax.eval.oasis_latency import Spent, aged, drafts, matrix_products, measure, median
from wm_jax.eval.oasis_world import SMALL, OasisChoice
from wm_jax.eval.progress import progress
from wm_jax.ports import open_oasis
from wm_jax.ports.open_oasis import RELEASED, OasisWorld, ring

pytestmark = pytest.mark.oasis
FOLDER = Path(__file__).parents[1] / "ports" / "open_oasis"


def test_every_part_of_a_frame_is_told():
    world = OasisWorld(dataclasses.replace(SMALL, steps=2))
    found = measure(world, world.init(jax.random.key(0)), 2, 1, price=3.0)
    parts = (found.compiled, found.first, found.steady, found.products, found.all_products, found.decode)
    assert all(0 < spent.clock < 600 and spent.cpu > 0 for spent in parts)
    assert found.fps == pytest.approx(2 / found.steady.clock) and found.fps == pytest.approx(20 * found.streams)
    assert found.stream_hour * found.streams == pytest.approx(3.0)
    weights = sum(leaf.size for leaf in jax.tree.leaves(world.shapes()))
    assert found.weights_mb == pytest.approx(4e-6 * weights) and found.peak_mb > found.weights_mb + found.state_mb
    entries = 2 * 2 * 3 * 12 * 64  # keys and values, layers, frames, tokens, channels
    assert found.state_mb == pytest.approx(4e-6 * (entries + 6 * 8 * 16 + 25 + 1))


def test_the_command_takes_the_published_world(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys):
    told = tmp_path / "speed.json"
    words = ["oasis-500m", "--weights", str(FOLDER), "--geometry", "small", "--steps", "1", "--repeats", "1"]
    monkeypatch.setattr(
        sys, "argv", ["latency", *words, "--eight-bits", "int8", "--price-per-hour", "4", "--json", str(told)]
    )
    assert latency.main() == 0
    shown, (row,) = capsys.readouterr().out, json.loads(told.read_text())
    assert "weights int8" in shown and "$ a stream-hour at $ 4 a device-hour" in shown
    assert (row["steps"], row["batch"]) == (1, 1)
    assert row["stream_hour"] * row["streams"] == pytest.approx(4.0)


@pytest.mark.parametrize("words", [[], ["--random-weights", "--weights", "nowhere"]])
def test_where_the_weights_are_from_must_be_said(words, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["latency", "oasis-500m", *words])
    assert latency.main() == 1
    assert "oasis-500m needs its weights: --weights DIR" in capsys.readouterr().err


def test_the_small_geometry_is_that_of_the_small_model():
    told = dataclasses.replace(SMALL, transformer=dataclasses.replace(SMALL.transformer, depth=7, hidden=8))
    assert open_oasis.geometry(FOLDER, told) == SMALL
    assert OasisChoice(random_weights=True, dtype="bfloat16").config().autoencoder.dtype == "bfloat16"


@pytest.mark.full
def test_an_old_dream_is_finite_and_costs_what_a_young_one_costs():
    world = OasisWorld(dataclasses.replace(SMALL, steps=1))
    with progress(quiet=True) as bar:
        found = aged(world, world.init(jax.random.key(0)), 1, 1_000, bar)
    assert found.old_frames == 1_000 and found.old_not_finite == 0
    assert 0.5 < found.old_over_young < 2.0 and found.grown_mb < 64


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


@pytest.mark.parametrize(("has_attention", "least"), [(False, 0.95), (True, 0.99)])
def test_the_products_are_those_of_a_frame_of_the_released_world(has_attention, least):
    """1.29 TFLOP for ten passes and a commit and 0.19 for the decoder, as counted from the geometry."""
    config = dataclasses.replace(RELEASED, steps=10)
    given = jax.eval_shape(lambda: (ring.init(config, 1), drafts(config, 1)))
    traced = jax.make_jaxpr(lambda *given: matrix_products(10, has_attention, *given))(
        OasisWorld(config).shapes(), *given
    )
    assert least * 1.48e12 < operations(traced.jaxpr) < 1.01 * 1.48e12


def test_the_median_is_taken_of_each_clock():
    assert median([Spent(1, 30), Spent(2, 10), Spent(9, 20)]) == Spent(2, 20)
