"""The small random model in the released format, and what the published program computes with it."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from safetensors.numpy import load_file

from wm_jax.ports.open_oasis import OasisConfig, OasisWorld
from wm_jax.types import Params


@pytest.fixture(scope="session")
def folder(oasis_folder: Path) -> Path:
    return oasis_folder


@pytest.fixture(scope="session")
def small(small_oasis: tuple[OasisWorld, Params]) -> tuple[OasisWorld, Params]:
    return small_oasis


@pytest.fixture(scope="session")
def config(small: tuple[OasisWorld, Params]) -> OasisConfig:
    return small[0].config


@pytest.fixture(scope="session")
def expected(folder: Path) -> dict[str, Array]:
    """Pictures and latents with their channels last, as here."""
    raw = load_file(folder / "expected.safetensors")
    return {name: jnp.asarray(np.moveaxis(array, -3, -1) if array.ndim >= 4 else array) for name, array in raw.items()}
