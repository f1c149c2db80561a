"""The training benchmark: what it counts, and that it runs on both stages."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from wm_jax.training import bench

ROOT = Path(__file__).parents[2]


def test_products_are_counted_through_loops_calls_and_gradients():
    x, w = jnp.zeros((4, 8)), jnp.zeros((8, 8))

    def layers(x, w):
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, w), None), x, None, length=3)[0].sum()

    one = 2 * 4 * 8 * 8
    assert bench.product_flops(jax.make_jaxpr(layers)(x, w).jaxpr) == 3 * one
    assert bench.product_flops(jax.make_jaxpr(jax.grad(layers, argnums=(0, 1)))(x, w).jaxpr) == 9 * one


def test_a_grouped_convolution_counts_its_own_channels_only():
    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=2)

    traced = jax.make_jaxpr(conv)(jnp.zeros((1, 4, 6, 6)), jnp.zeros((8, 2, 3, 3)))
    assert bench.product_flops(traced.jaxpr) == 2 * (8 * 6 * 6) * (2 * 3 * 3)


@pytest.mark.parametrize("stage", ["autoencoder", pytest.param("dynamics", marks=pytest.mark.full)])
def test_the_command_reports_a_share_of_the_products_rate(stage, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", str(ROOT / f"configs/toy/{stage}.py"), "--rounds", "1", "--json"])
    assert bench.main() == 0
    report = json.loads(capsys.readouterr().out)
    assert report["frames/s"] > 0 and 0 < report["share of that rate"] < 1.5 and report["device"]


def test_a_missing_config_is_refused_by_name(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", "configs/no/such.py"])
    assert bench.main() == 1 and "configs/no/such.py" in capsys.readouterr().err
