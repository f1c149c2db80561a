"""The small random model in the released format, and what the published program computes with it."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from safetensors.numpy import load_file

from wm_jax.ports import open_oasis
from wm_jax.ports.open_oasis import AutoencoderConfig, OasisConfig, OasisWorld, TransformerConfig
from wm_jax.types import Params


@pytest.fixture(scope="session")
def folder() -> Path:
    return Path(__file__).parent / "open_oasis"


@pytest.fixture(scope="session")
def config(folder: Path) -> OasisConfig:
    """What no tensor tells is said here, the rest is read from the files."""
    told = OasisConfig(
        name="small",
        transformer=TransformerConfig(window_frames=3),
        autoencoder=AutoencoderConfig(image=(24, 32), patch=4, width=64, heads=4),
        steps=4,
    )
    return open_oasis.geometry(folder, told)


@pytest.fixture(scope="session")
def small(folder: Path, config: OasisConfig) -> tuple[OasisWorld, Params]:
    return open_oasis.load(folder, config)


@pytest.fixture(scope="session")
def expected(folder: Path) -> dict[str, Array]:
    """Pictures and latents with their channels last, as here."""
    raw = load_file(folder / "expected.safetensors")
    return {name: jnp.asarray(np.moveaxis(array, -3, -1) if array.ndim >= 4 else array) for name, array in raw.items()}
