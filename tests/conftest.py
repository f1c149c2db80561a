"""What every test runs under: the CPU, strict dtypes, one compile cache; warnings are errors by pyproject.toml."""

import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ("autoencoder", "checkpoint", "conditioning", "dynamics", "nn", "pallas_kernels", "samplers", "world")
# What the model does not call on the devices of that JAX: ops that wait for a measurement, and the port's attention on a CPU.
NOT_CORE = ("test_cached_attention_cpu.py", "test_norm_modulate.py", "test_quantized_matmul.py")
NOT_CORE_TESTS = ("test_norm_modulate[", "test_quantized_matmul[")
CORE_FILES = ("test_checkpoint.py", "test_config.py")
# Of the kernels in their interpreters enough to see that they speak that JAX; every case runs under the newest one.
CORE_CASES = ("[tpu-plain]", "[tpu-one frame]", "[tpu-int8 ring]")

# In the environment and not only in jax.config, so that the processes which tests start compile into the same cache.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / "build" / "jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # after the environment above, which it reads

from wm_jax.ports import open_oasis
from wm_jax.ports.open_oasis import AutoencoderConfig, OasisConfig, OasisWorld, TransformerConfig
from wm_jax.types import Params


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Strict dtype promotion around each test and its fixtures; not in training, where optax itself promotes int32."""
    in_training = "training" in item.path.relative_to(ROOT / "tests").parts
    with jax.numpy_dtype_promotion("standard" if in_training else "strict"):
        return (yield)


@pytest.fixture(autouse=True)
def _forget_programs() -> Generator[None, None, None]:
    """Lets go of compiled programs before they are too many: each holds memory maps, of which a process may have 65,530
    on Linux (vm.max_map_count); past that LLVM ends in a segmentation fault. One test file can make 40,000."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks `core` what a Python 3.11 with JAX 0.10 must pass too: the model, its layers, its files on disk. Puts the files
    with the most slow tests first: begun last, one of them would leave the other worker without work. The cluster is the last of
    those: its servers would each compile what the tests of one server leave in the cache."""
    for item in items:
        where = item.path.relative_to(ROOT / "tests")
        if where.name in NOT_CORE or item.name.startswith(NOT_CORE_TESTS):
            continue
        if where.name == "test_against_reference.py" and not item.name.endswith(CORE_CASES):
            continue
        if where.parts[0] in CORE or where.name in CORE_FILES:
            item.add_marker(pytest.mark.core)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    for path in slow:
        slow[path] = 1 if path.name == "test_cluster.py" else slow[path]
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (-slow[item.path], -tests[item.path]))  # stable: a file's own order stays


@pytest.fixture(scope="session")
def oasis_folder() -> Path:
    """A small random model in the format of Oasis-500M's released files."""
    return ROOT / "tests" / "ports" / "open_oasis"


@pytest.fixture(scope="session")
def small_oasis(oasis_folder: Path) -> tuple[OasisWorld, Params]:
    """That model; what no tensor tells is said here, the rest is read from the files."""
    told = OasisConfig(
        name="small",
        transformer=TransformerConfig(window_frames=3),
        autoencoder=AutoencoderConfig(image=(24, 32), patch=4, width=64, heads=4),
        steps=4,
    )
    return open_oasis.load(oasis_folder, open_oasis.geometry(oasis_folder, told))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT
