"""Compiles a program to machine code for a device that is not here.

The compilers come with the extra `aot`: libtpu for TPUs, the CUDA plugin of JAX for GPUs. No driver, no device is needed.
What compiles is not thereby correct or fast on the device.
"""

import dataclasses
import os
import re
import time
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from wm_jax.export.programs import Program
from wm_jax.export.targets import Target


class CompileError(RuntimeError):
    """The compiler refused the program, or the program does not fit the device."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What came out.

    Attributes:
      seconds: Tracing, lowering and compiling.
      arguments: Bytes of all inputs.
      temporary: Bytes needed beside inputs and outputs.
      donated: Bytes of outputs that take the place of inputs.
      outputs: Bytes of all outputs.
      flops: Floating-point operations by the compiler's count; None where it does not count.
      custom_calls: Kernels and library calls found, by target.
    """

    seconds: float
    arguments: int
    temporary: int
    donated: int
    outputs: int
    flops: float | None
    custom_calls: tuple[str, ...]

    @property
    def memory(self) -> int:
        """Bytes that the device must hold at once."""
        return self.arguments + self.temporary + self.outputs - self.donated


def compile_for(target: Target, program: Program) -> Compiled:
    """Compiles for one device of the target.

    A compiler may abort the process or not come back: callers that must survive that use a process of its own.

    Raises:
      CompileError: the compiler is not installed, refuses the program, or the program needs more memory than there is.
    """
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several processes may compile at once
    began = time.perf_counter()
    try:
        device = _device(target)
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=SingleDeviceSharding(device)),
            program.shapes,
        )
        with jax.default_device(device):
            compiled = program.function.lower(*shapes).compile()
    except Exception as error:  # compilers raise what they like
        first = " ".join(str(error).split())[:600]
        raise CompileError(f"{program.name} for {target.name}: {type(error).__name__}: {first}") from error
    result = _measure(compiled, time.perf_counter() - began)
    if result.memory > target.memory:
        raise CompileError(
            f"{program.name} for {target.name}: needs {result.memory / 2**30:.1f} GiB, "
            f"the device has {target.memory / 2**30:.0f} GiB"
        )
    return result


def _device(target: Target) -> Any:
    if target.platform == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name=target.topology).devices[0]
    return topologies.get_topology_desc(
        platform=target.platform, target_config=target.properties, topology=target.topology
    ).devices[0]


def _measure(compiled: Any, seconds: float) -> Compiled:
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    calls = re.findall(r'custom_call_target="([^"]+)"', compiled.as_text())
    return Compiled(
        seconds=seconds,
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        donated=memory.alias_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        flops=costs.get("flops"),
        custom_calls=tuple(sorted(set(calls))),
    )
