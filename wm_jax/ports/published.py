"""Published worlds by name, as `serve.py` and the benchmarks take them."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax

from wm_jax.ports import open_oasis
from wm_jax.ports.open_oasis.config import EightBits, Solver
from wm_jax.types import Params
from wm_jax.world import Playable

NAMES = ("oasis-500m",)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A published world's weights, and in which numbers they are played.

    Attributes:
      weights: Folder of its released files: `python -m wm_jax.ports.open_oasis download` fetches them.
      random_weights: Weights of its shapes drawn at random instead: noise to look at, but as fast.
      dtype: What it computes in; by default float32 on a CPU and bfloat16 elsewhere.
      eight_bits: What the transformer's large weights, and what meets them, are rounded to.
      solver: What brings a frame from noise to clean.
    """

    weights: Path | None = None
    random_weights: bool = False
    dtype: Literal["float32", "bfloat16"] | None = None
    eight_bits: EightBits | None = None
    solver: Solver = "ddim"


@dataclasses.dataclass(frozen=True)
class Published(Numbers):
    """How a published world is played; of no meaning to a world in a folder.

    Attributes:
      steps: Denoising passes a frame; by default as published.
    """

    steps: int | None = None


def load(name: str, asked: Published) -> tuple[Playable[Any], Params]:
    """The world, and its weights as playing reads them.

    Raises:
      ValueError: no such world, neither weights nor random ones were asked for (or both), or a setting it cannot have.
      CheckpointError: the files are missing, broken, or not the released ones.
    """
    if name not in NAMES:
        raise ValueError(f"no published world is called {name!r}; there are {', '.join(NAMES)}")
    config = configured(open_oasis.RELEASED, asked)
    if asked.steps is not None:
        config = dataclasses.replace(config, steps=asked.steps)
    return opened(config, asked)


def opened(config: open_oasis.OasisConfig, asked: Numbers) -> tuple[open_oasis.OasisWorld, Params]:
    """The world of this config, and its weights as playing reads them: those they were made of are let go.

    Raises:
      ValueError, CheckpointError: as `load`.
    """
    if (asked.weights is None) != asked.random_weights:
        raise ValueError(
            f"{config.name} needs its weights: --weights DIR (python -m wm_jax.ports.open_oasis download fetches them), "
            "or --random-weights to see how fast it is; not both"
        )
    world = open_oasis.OasisWorld(config)
    params = world.init(jax.random.key(0)) if asked.weights is None else open_oasis.load(asked.weights, config)[1]
    return world, world.for_playing(params)


def configured(config: open_oasis.OasisConfig, asked: Numbers) -> open_oasis.OasisConfig:
    """The published world in the numbers that were asked for."""
    dtype = asked.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    return dataclasses.replace(
        config,
        solver=asked.solver,
        transformer=dataclasses.replace(config.transformer, dtype=dtype, weights=asked.eight_bits),
        autoencoder=dataclasses.replace(config.autoencoder, dtype=dtype),
    )
