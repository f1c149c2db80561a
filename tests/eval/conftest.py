"""What the tests of the evaluation share: a tiny world in a folder, recordings of the ball, an untrained judge."""

from pathlib import Path

import jax
import pytest

import wm_jax as wm
from wm_jax import checkpoint
from wm_jax.data.record import RecordConfig, record
from wm_jax.eval import inverse


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen short episodes of the ball on held-out levels."""
    out = tmp_path_factory.mktemp("episodes") / "bouncing_ball_held_out"
    return record(RecordConfig("bouncing_ball", out, frames=500, split="held_out", max_length=40), quiet=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random world, with an untrained inverse-dynamics model beside it."""
    folder = tmp_path_factory.mktemp("worlds") / "tiny"
    world, params = wm.tiny_world()
    checkpoint.save_world(folder, world.config, jax.device_get(params))
    inverse.save(judge(), folder / "idm.safetensors")
    return folder


def judge() -> inverse.Inverse:
    """An inverse-dynamics model that has learned nothing, but has opinions."""
    controls = wm.tiny_world()[0].config.controls
    params = inverse.init(inverse.heads_of(controls), (32, 32), jax.random.key(0))
    answer = params["answer"]["kernel"]
    params["answer"]["kernel"] = jax.random.normal(jax.random.key(1), answer.shape, answer.dtype)
    return inverse.Inverse(controls, (32, 32), jax.device_get(params), {"steps": 0})
