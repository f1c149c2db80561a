"""Published worlds by name, as `serve.py` and the benchmarks take them."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from wm_jax.ports import open_oasis
from wm_jax.types import Params
from wm_jax.world import Playable

NAMES = ("oasis-500m",)


@dataclasses.dataclass(frozen=True)
class Published:
    """How a published world is played; of no meaning to a world in a folder.

    Attributes:
      weights: Folder of its released files: `python -m wm_jax.ports.open_oasis download` fetches them.
      random_weights: Weights of its shapes drawn at random instead: noise to look at, but as fast.
      passes: Denoising passes a frame; by default as published.
      dtype: What it computes in; by default float32 on a CPU and bfloat16 elsewhere.
    """

    weights: Path | None = None
    random_weights: bool = False
    passes: int | None = None
    dtype: str | None = None


def load(name: str, asked: Published) -> tuple[Playable[Any], Params]:
    """The world and its weights.

    Raises:
      ValueError: no such world, neither weights nor random ones were asked for (or both), or a setting it cannot have.
      CheckpointError: the files are missing, broken, or not the released ones.
    """
    if name not in NAMES:
        raise ValueError(f"no published world is called {name!r}; there are {', '.join(NAMES)}")
    if (asked.weights is None) != asked.random_weights:
        raise ValueError(
            f"{name} needs its weights: --weights DIR (python -m wm_jax.ports.open_oasis download fetches them), "
            "or --random-weights to see how fast it is; not both"
        )
    config = configured(open_oasis.RELEASED, asked)
    if asked.weights is not None:
        return open_oasis.load(asked.weights, config)
    world = open_oasis.OasisWorld(config)
    return world, world.init(jax.random.key(0))


def configured(config: open_oasis.OasisConfig, asked: Published) -> open_oasis.OasisConfig:
    """The published world as it was asked for.

    Raises:
      ValueError: a number of passes or a dtype that it cannot have.
    """
    dtype = asked.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {dtype}; a published world computes in float32 or bfloat16")
    return dataclasses.replace(
        config,
        steps=config.steps if asked.passes is None else asked.passes,
        transformer=dataclasses.replace(config.transformer, dtype=dtype),
        autoencoder=dataclasses.replace(config.autoencoder, dtype=dtype),
    )
