"""Would neuronx-cc take this program? Exports it for the `neuron` platform and checks it against the documented limits.

There is no Neuron compiler outside AWS's own package repository, but `jax.export` lowers for the platform on any machine.
A program without findings has passed a necessary condition, no proof: nothing here has met a Trainium chip.

Source: AWS Neuron documentation, JAX NeuronX known issues and the error codes NCC_EVRF*.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
from jax.interpreters import mlir
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

# Custom calls that the compiler knows: partitioning marks, and Neuron's own, by prefix.
KNOWN_CALLS = frozenset({"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "annotate_device_placement"})
KNOWN_CALL_PREFIXES = ("AwsNeuron", "xla.sdy.", "ResizeNearest", "ResizeBilinear")
FOREIGN_FLOAT8 = re.compile(r"f8E(4M3FNUZ|4M3B11FNUZ|5M2FNUZ|4M3FN)\b")
HERE = AbstractMesh((1,), ("_",), (AxisType.Auto,), abstract_device=AbstractDevice("trainium", None, "neuron"))
"""Where the program is to run: what is chosen by the platform is not chosen for this host."""
INTEGER = re.compile(r"(?:x|<)(?:u|s)?i(\d+)>")


class ExportRefusal(ValueError):
    """The program has a part that cannot even be lowered for the platform; the message is JAX's."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that the compiler refuses, or that is not documented to work.

    Attributes:
      rule: Short name of the limit.
      what: The operation, and what to write instead where that is known.
      is_fatal: Documented as unsupported; otherwise to be tried on the device.
      count: How often it stands in the program.
    """

    rule: str
    what: str
    is_fatal: bool
    count: int


def export_for_neuron(
    function: Callable[..., Any], *args: Any, allowed_calls: Collection[str] = ()
) -> jax.export.Exported:
    """The program lowered for Neuron; `function` may be jitted, `args` may be shapes.

    `allowed_calls` are custom calls that it may contain, by target: those of NKI kernels.

    Raises:
      ExportRefusal: a Pallas kernel, a host callback or another part that has no lowering there.
    """
    jitted = _jitted(function)
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in allowed_calls]
    with use_abstract_mesh(HERE):
        jitted.trace(*args)  # what is wrong with the program itself is not the platform's refusal
        try:
            return jax.export.export(jitted, platforms=["neuron"], disabled_checks=checks)(*args)
        except (NotImplementedError, ValueError) as error:
            raise ExportRefusal(f"cannot be lowered for neuron: {' '.join(str(error).split())[:400]}") from error


def lint(exported: jax.export.Exported) -> list[Finding]:
    """What stands against this program on Trainium, the fatal first; empty if nothing is known to."""
    with mlir.make_ir_context():
        module = mlir.ir.Module.parse(exported.mlir_module())
        found = collections.Counter(hit for op in _walk(module.operation) for rule in RULES for hit in rule(op))
    findings = [Finding(rule, what, is_fatal, count) for (rule, what, is_fatal), count in found.items()]
    return sorted(findings, key=lambda finding: (not finding.is_fatal, finding.rule, finding.what))


Hit = tuple[str, str, bool]


def _jitted(function: Any) -> Any:
    return function if hasattr(function, "lower") else jax.jit(function)


def _walk(op: Any) -> Iterator[Any]:
    op = getattr(op, "operation", op)
    yield op
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield from _walk(inner)


def _types(op: Any) -> list[str]:
    return [str(value.type) for value in [*op.operands, *op.results]]


def _is_many(op: Any, name: str) -> bool:
    """Whether an attribute of the op holds a number other than 1."""
    return name in op.attributes and any(number != 1 for number in op.attributes[name])


def _integer_bits(kind: str) -> int | None:
    found = INTEGER.search(kind)
    return None if found is None else int(found.group(1))


def _dtypes(op: Any) -> Iterator[Hit]:
    for kind in set(_types(op)):
        if "complex<" in kind:
            yield "dtype", "complex numbers", True
        if "?" in kind:
            yield "shape", f"{op.name} with a shape that is known only at run time", True
        if re.search(r"(x|<)f64>", kind):
            yield "dtype", "float64", True
        foreign = FOREIGN_FLOAT8.search(kind)
        if foreign is not None:
            yield "dtype", f"{foreign.group()}: only f8E4M3 and f8E5M2 are known on Trn1 and Trn2", True


def _control_flow(op: Any) -> Iterator[Hit]:
    if op.name in ("stablehlo.case", "stablehlo.if"):
        yield "cond", "lax.cond or lax.switch: compute both and select (jnp.where)", True
    if op.name == "stablehlo.while" and not _is_counted(op):
        yield "while", "a while loop whose number of turns is known only at run time: lax.scan", True


def _is_counted(loop: Any) -> bool:
    """A scan: the condition is one comparison of an integer, the counter, with a constant."""
    condition = [inner.operation for inner in loop.regions[0].blocks[0].operations]
    comparisons = [inner for inner in condition if inner.name == "stablehlo.compare"]
    kinds = {"stablehlo.compare", "stablehlo.constant", "stablehlo.return"}
    if len(comparisons) != 1 or not {inner.name for inner in condition} <= kinds:
        return False
    operands = list(comparisons[0].operands)
    return any(map(_is_constant, operands)) and all(INTEGER.search(str(value.type)) for value in operands)


def _is_constant(value: Any) -> bool:
    owner = getattr(value.owner, "operation", value.owner)
    return getattr(owner, "name", "") == "stablehlo.constant"


def _calls(op: Any) -> Iterator[Hit]:
    if op.name == "stablehlo.custom_call":
        target = op.attributes["call_target_name"].value
        if "callback" in target:
            yield "callback", f"{target}: the host cannot be called", True
        elif target not in KNOWN_CALLS and not target.startswith(KNOWN_CALL_PREFIXES):
            yield "custom_call", f"{target}: not a call that the compiler knows", True
    if op.name == "func.func":
        name = op.attributes["sym_name"].value
        if "threefry" in name:
            yield "threefry", "the threefry generator is incomplete: draw outside, or use rbg", True
        if "randint" in name:
            yield "randint", "jax.random.randint has a wrong distribution there", True


def _unsupported(op: Any) -> Iterator[Hit]:
    short = op.name.removeprefix("stablehlo.")
    if short in ("triangular_solve", "cholesky", "fft", "reduce_precision"):
        yield short, f"{short} is not supported", True
    if op.name == "stablehlo.reduce" and len(op.results) > 1:
        yield "variadic_reduce", "a reduction of several arrays at once (argmax, argmin)", True
    if op.name == "stablehlo.dot_general" and _integer_bits(_types(op)[0]) is not None:
        yield "integer_dot", "a matrix product of integers", True
    if op.name == "stablehlo.scatter" and _integer_bits(_types(op)[0]) is not None:
        yield "integer_scatter", "a scatter of integers or booleans: select by position (jnp.where)", True
    if op.name == "stablehlo.shift_right_arithmetic" and _integer_bits(_types(op)[0]) != 32:
        yield "shift", "an arithmetic shift of other than 32 bits", True
    if op.name == "stablehlo.rng_bit_generator" and "DEFAULT" not in str(op.attributes["rng_algorithm"]):
        yield "rng", f"{op.attributes['rng_algorithm']}: only the default generator", True
    if op.name == "stablehlo.sort":
        yield "sort", "comparators other than <, <=, >, >= are refused, and total order is untested", False


def _windows(op: Any) -> Iterator[Hit]:
    if op.name == "stablehlo.convolution":
        is_stretched, is_strided = _is_many(op, "lhs_dilation"), _is_many(op, "window_strides")
        if is_stretched and _is_many(op, "rhs_dilation"):
            yield "convolution", "input and kernel dilated at once (EVRF010)", True
        if is_stretched and is_strided:
            yield "convolution", "a stride over a dilated input (EVRF011)", True
    if op.name == "stablehlo.reduce_window":
        if _is_many(op, "base_dilations") or _is_many(op, "window_dilations"):
            yield "reduce_window", "dilation (EVRF017, EVRF018)", True
        if len(op.operands) != 2:
            yield "reduce_window", "several arrays at once (EVRF019)", True


def _to_try(op: Any) -> Iterator[Hit]:
    if op.name in ("stablehlo.gather", "stablehlo.scatter"):
        yield "bounds", f"{op.name}: an index out of bounds faults instead of being clamped", False
    if op.name in ("stablehlo.dynamic_slice", "stablehlo.dynamic_update_slice"):
        yield "dynamic_index", f"{op.name}: no statement found for an index known only at run time", False


RULES: tuple[Callable[[Any], Iterator[Hit]], ...] = (_dtypes, _control_flow, _calls, _unsupported, _windows, _to_try)
