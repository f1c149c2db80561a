"""Machine code for accelerators that are not here, each compilation in a process of its own: `make test-aot`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wm_jax.export.report import PROGRAMS, Row, markdown, report
from wm_jax.export.targets import TARGETS

pytestmark = pytest.mark.aot

WORLD, RUN = Path("worlds/coinrun"), Path("configs/toy/dynamics.py")
SECONDS = 540.0
TPUS = [name for name, target in TARGETS.items() if target.platform == "tpu"]
GPUS = [name for name, target in TARGETS.items() if target.platform == "cuda"]
KERNELS = PROGRAMS[4:]
LEFT_TO_XLA = [("tpu_v4", "quantized_matmul"), ("h100", "quantized_matmul")]


def row(target: str, program: str) -> Row:
    (found,) = report(WORLD, RUN, (target,), (program,), 1, SECONDS)
    return found


# The start of a session is the mathematics of its steps, on GPUs rollout and update go to the same XLA, and both Trainiums take the
# same programs: one device of a kind is enough for every commit. `python -m wm_jax.export --report` compiles them all. An update
# takes the TPUs' compiler a minute and more: the oldest and a newer one on every commit, the others with -m full.
SPOKESMEN = ("tpu_v6e", "h100", "trn2")
SELDOM = [(target, "train") for target in TPUS if target not in ("tpu_v4", "tpu_v6e")]
PLAYED = [
    pytest.param(target, program, marks=[pytest.mark.full] if (target, program) in SELDOM else [])
    for target in (*TPUS, *GPUS, "trn2") for program in PROGRAMS[:4]
    if target in SPOKESMEN or program == "step" or (program in ("rollout", "train") and target in TPUS)
]  # fmt: skip


@pytest.mark.parametrize(("target", "program"), PLAYED)
def test_what_we_play_and_train_compiles(target: str, program: str):
    found = row(target, program)
    assert found.error is None
    assert target in markdown([found]) and "**NO**" not in markdown([found])
    if not target.startswith("trn") and program != "start":
        assert found.facts["donated"] > 0


@pytest.mark.parametrize(
    ("target", "program"),
    [("tpu_v6e", "step"), ("h100", "step"), pytest.param("h100", "train", marks=pytest.mark.full)],
)
def test_a_large_world_runs_on_our_kernels(target: str, program: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("PYTHONPATH", "JAX_PLATFORMS"):  # as a user's shell is: the report finds the compilers itself
        monkeypatch.delenv(name, raising=False)
    base = Path("configs/base/dynamics.py")
    (found,) = report(base, base, (target,), (program,), 1, SECONDS)
    assert found.error is None
    kernel = "tpu_custom_call" if target in TPUS else "mosaic_gpu"
    assert any(kernel in call for call in found.facts["custom_calls"]), found.facts["custom_calls"]


@pytest.mark.parametrize("op", KERNELS)
@pytest.mark.parametrize("target", [*TPUS, "h100"])
def test_kernels_compile_with_the_gradients_they_have(target: str, op: str):
    found = row(target, op)
    assert found.error is None
    kernel = "tpu_custom_call" if target in TPUS else "mosaic_gpu"
    is_ours = any(kernel in call for call in found.facts["custom_calls"])
    assert is_ours == ((target, op) not in LEFT_TO_XLA), found.facts["custom_calls"]


def compile_in_another_process(code: str) -> subprocess.CompletedProcess[str]:
    head = (
        "import jax\nfrom pallas_kernels.block_causal_attention import cases\n"
        "from wm_jax.export.compile import compile_for\nfrom wm_jax.export.programs import Program\n"
        "from wm_jax.export.targets import TARGETS\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", head + code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS, env=environment)


ATTEND = """
import dataclasses, functools
from pallas_kernels import block_causal_attention
from pallas_kernels.block_sizes import Sizes, trying
case = dataclasses.replace(cases.SMALL["bfloat16"], shape=(1, 2, {tokens}, 4, 2, 64))
attend = functools.partial(block_causal_attention, window_frames=2, is_per_site=False, implementation="{name}")
with trying(Sizes(rows={rows})):
    compile_for(TARGETS["{target}"], Program("attend", jax.jit(attend), case.shapes()))
print("compiled")
"""


TOO_MUCH = """
x = jax.ShapeDtypeStruct((200, 2**30), "int8")
compile_for(TARGETS["h100"], Program("sum", jax.jit(lambda x: x.sum()), (x,)))
print("compiled")
"""


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        ("none", ATTEND.format(tokens=512, name="tpu", rows=512, target="tpu_v6e"), ""),
        ("blocks beyond a TPU's vector memory", ATTEND.format(tokens=8192, name="tpu", rows=8192, target="tpu_v6e"), "RESOURCE_EXHAUSTED|vmem"),
        ("a Hopper kernel on an A100", ATTEND.format(tokens=512, name="gpu", rows=512, target="a100"), "attend for a100"),
        (
            "arrays beyond a GPU's memory",
            TOO_MUCH,
            "the device has 80 GiB",
        ),
    ],
)  # fmt: skip
def test_what_must_not_compile_does_not(fault: str, code: str, message: str):
    done = compile_in_another_process(code)
    if fault == "none":
        assert done.stdout == "compiled\n", done.stderr
    else:
        assert "compiled" not in done.stdout and re.search(message, done.stderr), done.stderr[-2000:]


SHARDED = """
import dataclasses
from jax.experimental import topologies
from wm_jax.sharding import make_mesh
from wm_jax.training.config import load_config
from wm_jax.training.program import train_program
devices = topologies.get_topology_desc(platform="tpu", topology_name="{topology}").devices
config = load_config("configs/toy/dynamics.py")
config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch=len(devices)))
program = train_program(config, make_mesh(devices))
with jax.default_device(devices[0]):
    compiled = program.function.lower(*program.shapes).compile()
text = compiled.as_text()
print(len(devices), "all-reduce" in text, "tpu_custom_call" in text, compiled.memory_analysis().alias_size_in_bytes > 0)
"""


@pytest.mark.parametrize(("topology", "count"), [("v5e:2x2", 4), ("v5e:4x4", 16)])
def test_an_update_over_many_devices_compiles(topology: str, count: int):
    done = compile_in_another_process(
        "import os\nos.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'\n" + SHARDED.format(topology=topology)
    )
    assert done.stdout == f"{count} True True True\n", done.stderr[-2000:]
