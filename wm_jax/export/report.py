"""Compiles the programs of a world for every accelerator, each in a process of its own, and tells what came out."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax.sharding import AbstractDevice

from pallas_kernels.implementation import ACCELERATORS
from wm_jax.export.targets import TARGETS, Target

PROGRAMS = (
    "start", "step", "rollout", "train",
    "block_causal_attention", "cached_attention", "norm_modulate", "quantized_matmul",
)  # fmt: skip
ROLLOUT_FRAMES = 8
COMPILERS = Path(sys.prefix) / "aot"
"""Where `make test-aot` puts the compilers, beside the environment: the workers alone look there."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One program on one target.

    Attributes:
      target: Name of the target.
      program: Name of the program.
      error: Why it did not compile; None where it did.
      facts: What the compiler said of it (`Compiled`), or the lint's findings; empty where it did not compile.
    """

    target: str
    program: str
    error: str | None
    facts: dict[str, Any]


def report(
    world: Path, config: Path, targets: tuple[str, ...], programs: tuple[str, ...], slots: int, timeout_s: float
) -> Iterator[Row]:
    """A row for each target and program, as they come; `config` is the run whose update is "train"."""
    for target in targets:
        for program in programs:
            if program in PROGRAMS[4:] and not _has_kernels(TARGETS[target]):
                continue
            yield _row(config if program == "train" else world, target, program, slots, timeout_s)


def _has_kernels(target: Target) -> bool:
    """Whether `pallas_kernels` has some of its own for such devices."""
    device = AbstractDevice(target.kinds[0], 1, target.backend) if target.kinds else None
    return device is not None and any(platform.takes(device) for platform in ACCELERATORS)


def _row(source: Path, target: str, program: str, slots: int, timeout_s: float) -> Row:
    command = [sys.executable, "-m", "wm_jax.export.worker", str(source), target, program, str(slots)]
    paths = [str(COMPILERS), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Of the devices only the host is asked for: before the worker's own first line JAX would look for all of them.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return Row(target, program, f"the compiler did not come back within {timeout_s:g} s", {})
    answer = done.stdout.strip().splitlines()[-1:] if done.returncode == 0 else []
    if not answer:
        last = done.stderr.strip().splitlines()[-1:]
        return Row(target, program, f"the compiler ended with status {done.returncode}: {''.join(last)}", {})
    facts = json.loads(answer[0])
    return Row(target, program, facts.pop("error"), facts)


def work(source: str, target_name: str, program_name: str, slots: int) -> dict[str, Any]:
    """What the worker process prints: the facts of one program on one target, or its error."""
    from wm_jax.export.compile import CompileError, compile_for
    from wm_jax.export.neuron import ExportRefusal

    program, target = _program(Path(source), program_name, slots), TARGETS[target_name]
    try:
        facts = _linted(program) if target.platform == "neuron" else dataclasses.asdict(compile_for(target, program))
    except (CompileError, ExportRefusal) as error:
        return {"error": str(error)}
    return {"error": None, **facts}


def _program(source: Path, name: str, slots: int) -> Any:
    if name == "train":
        # The right wing must not know the left: only this worker, which lives for one compilation, asks it by name.
        program, config = (importlib.import_module(f"wm_jax.training.{part}") for part in ("program", "config"))
        return program.train_program(config.load_config(source))
    from wm_jax.export.programs import KERNELS, kernel_program, playing, rollout_program

    if name in KERNELS:
        return kernel_program(name)
    world, prompt = _world(source)
    if name == "rollout":
        return rollout_program(world, slots, ROLLOUT_FRAMES)
    return getattr(playing(world, slots, prompt, is_noise_given=True), name)


def _world(source: Path) -> tuple[Any, Any]:
    """The world in a folder and a prompt of its own, or that of a run's config file, which nobody has trained yet."""
    from wm_jax import config
    from wm_jax.export.artifact import one_prompt
    from wm_jax.types import Prompt
    from wm_jax.world import World, load, load_prompts

    if source.suffix == ".py":
        return World(config.load(source).world), Prompt()
    return load(source)[0], one_prompt(load_prompts(source))


def _linted(program: Any) -> dict[str, Any]:
    import time

    from wm_jax.export.neuron import ExportRefusal, export_for_neuron, lint

    began = time.perf_counter()
    findings = lint(export_for_neuron(program.function, *program.shapes))
    fatal = [finding for finding in findings if finding.is_fatal]
    if fatal:
        raise ExportRefusal("; ".join(f"{finding.rule}: {finding.what} (x{finding.count})" for finding in fatal))
    return {"seconds": time.perf_counter() - began, "to_try": [f"{f.what} (x{f.count})" for f in findings]}


def markdown(rows: list[Row]) -> str:
    """The report as a table."""
    lines = [
        "| target | program | verdict | seconds | memory, MiB | of it donated, MiB | GFLOP | custom calls |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_line(row) for row in rows)])


def _line(row: Row) -> str:
    if row.error is not None:
        return f"| {row.target} | {row.program} | **NO**: {row.error} | | | | | |"
    facts = row.facts
    if "to_try" in facts:
        kinds = len(facts["to_try"])
        return f"| {row.target} | {row.program} | lint clean, {kinds} kinds to try | {facts['seconds']:.1f} | | | | |"
    memory = facts["arguments"] + facts["temporary"] + facts["outputs"] - facts["donated"]
    flops = "" if facts["flops"] is None or facts["flops"] <= 0 else f"{facts['flops'] / 1e9:.2f}"
    calls = ", ".join(facts["custom_calls"]) or "none"
    return (
        f"| {row.target} | {row.program} | compiled | {facts['seconds']:.1f} | {memory / 2**20:.1f} | "
        f"{facts['donated'] / 2**20:.1f} | {flops} | {calls} |"
    )
