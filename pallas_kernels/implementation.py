"""Which implementation of an op runs: the one place that knows the platforms.

An op is a folder: `reference.py` says what it computes, `<name>.py` computes it on the platform of that name. Such a file has
two functions of the same arguments: one with the name of the op, and `refusal`, which says why it cannot take them (None
where it can). Where it also says `NEEDS_MEASUREMENT = True`, `auto` takes it only on kinds of device that `tuned.json` names.
A platform is one line of `PLATFORMS`.
"""

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jax

# Pallas adds fields to what JAX compares before it takes a program that is compiled already. Imported only while the first
# program is traced, it would have the second call of that program traced and compiled again.
importlib.import_module("jax.experimental.pallas.tpu")

ROWS = "data"
"""The axis of a mesh over which the first axis of every argument of an op, the rows, is spread."""
Implementation = str
"""`auto` (the best one for the platform compiled for), `reference`, or the name of a platform: that one runs or raises."""


class Platform(NamedTuple):
    """What ops may have a file for.

    Attributes:
      name: Of the file, and what users ask for.
      lowering: The platform as JAX's lowering names it.
      takes: Whether its files are for this device.
      has_kernels: Whether they are kernels: to be tuned, and run by an interpreter elsewhere. Other files say in jax.numpy
        what XLA makes the better program of on that platform.
    """

    name: str
    lowering: str
    takes: Callable[[Any], bool]
    has_kernels: bool = True


def _is_hopper(device: Any) -> bool:
    """wgmma is of compute capability 9 alone: older GPUs have none, and newer ones no longer."""
    capability = getattr(device, "compute_capability", None)
    if capability is None:
        return any(name in device.device_kind for name in ("H100", "H200", "GH200", "H20"))
    return device.platform in ("gpu", "cuda") and str(capability).startswith("9.")


PLATFORMS = (
    Platform("tpu", "tpu", lambda device: device.platform == "tpu"),
    Platform("gpu", "cuda", _is_hopper),
    Platform("cpu", "cpu", lambda device: device.platform == "cpu", has_kernels=False),
)
ACCELERATORS = tuple(platform for platform in PLATFORMS if platform.has_kernels)


_used: list[Implementation] = []


@contextlib.contextmanager
def using(implementation: Implementation) -> Iterator[None]:
    """What is traced inside takes this one wherever it says `auto`: for a benchmark whose arms are whole programs."""
    _used.append(implementation)
    try:
        yield
    finally:
        _used.pop()


def platforms(op: str) -> list[Platform]:
    """Those that this op has a file for."""
    return [platform for platform in PLATFORMS if _module(op, platform.name)]


def check_implementation(op: str, implementation: str) -> None:
    """Refuses a name that no implementation of this op has.

    Raises:
      ValueError: names the op, what was asked for and what there is.
    """
    known = ["auto", "reference", *(platform.name for platform in platforms(op))]
    if implementation not in known:
        raise ValueError(f"{op} has no implementation {implementation!r}; it has {', '.join(known)}")


def choose(
    op: str,
    implementation: Implementation,
    arguments: tuple[Any, ...],
    static: dict[str, Any],
    whole: tuple[int, ...] = (),
) -> Any:
    """Runs the implementation that was asked for; `auto` decides by the platform compiled for, not by the host's.

    The first axis of every argument is the rows of a batch, but of those at the places `whole`, which all rows share.

    Raises:
      ValueError: the kernel was asked for by name and cannot take these arguments.
    """
    check_implementation(op, implementation)
    if implementation == "auto" and _used:
        implementation = _used[-1]
    reference = _function(op, "reference", static)
    if implementation == "reference":
        return reference(*arguments)
    if implementation != "auto":
        if reason := refusal(op, implementation, arguments, static):
            raise ValueError(f"{op}: implementation {implementation!r} was asked for, but {reason}")
        return _function(op, implementation, static)(*arguments)
    device = compiled_for()
    if not _has_whole_rows(arguments[0].shape[0]):
        return reference(*arguments)
    fitting = [platform for platform in platforms(op) if platform.takes(device)]
    if not fitting or refusal(op, fitting[0].name, arguments, static) or not _is_proven(op, fitting[0].name):
        return reference(*arguments)
    # A program for this device may still be lowered for another platform, such as the host of an accelerator.
    kernel = {fitting[0].lowering: _function(op, fitting[0].name, static)}
    run = functools.partial(jax.lax.platform_dependent, **kernel, default=reference)
    return _over_rows(run, len(arguments), whole)(*arguments)


def _row_devices() -> int:
    """Over how many devices the rows of a batch are spread, as far as the mesh that is traced for says."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    is_spread = kinds.get(ROWS, jax.sharding.AxisType.Manual) != jax.sharding.AxisType.Manual
    return mesh.shape[ROWS] if is_spread else 1


def _has_whole_rows(rows: int) -> bool:
    return rows % _row_devices() == 0


def _over_rows(run: Callable[..., Any], arguments: int, whole: tuple[int, ...]) -> Callable[..., Any]:
    """The same on a mesh: each device computes its own rows. XLA partitions what it knows; a kernel it would not split."""
    if _row_devices() == 1:
        return run
    rows, shared = jax.sharding.PartitionSpec(ROWS), jax.sharding.PartitionSpec()
    specs = tuple(shared if i in whole else rows for i in range(arguments))
    return jax.shard_map(run, in_specs=specs, out_specs=rows, axis_names={ROWS}, check_vma=False)


def compiled_for() -> Any:
    """The device that is compiled for, as far as JAX says: of the abstract mesh, the default device, or the first one."""
    abstract = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    default = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if abstract is not None:
        return abstract
    return jax.devices(default)[0] if default is None or isinstance(default, str) else default


def load(op: str, name: str) -> Callable[..., Any]:
    """The op as one platform computes it, unchecked.

    Raises:
      ValueError: there is no such implementation.
    """
    check_implementation(op, name)
    return getattr(_module(op, name), op)


def refusal(op: str, name: str, arguments: tuple[Any, ...], static: dict[str, Any]) -> str | None:
    """Why one platform's kernel of the op cannot take these arguments; None where it can."""
    module = _module(op, name)
    assert module is not None
    return module.refusal(*arguments, **static)


def needs_measurement(op: str, name: str) -> bool:
    """Whether one platform's kernel of the op must be measured before `auto` takes it."""
    return getattr(_module(op, name), "NEEDS_MEASUREMENT", False)


def _module(op: str, name: str) -> ModuleType | None:
    path = f"pallas_kernels.{op}.{name}"
    return importlib.import_module(path) if importlib.util.find_spec(path) else None


def _function(op: str, name: str, static: dict[str, Any]) -> Callable[..., Any]:
    return functools.partial(load(op, name), **static)


def _is_proven(op: str, name: str) -> bool:
    from pallas_kernels.block_sizes import is_measured  # which asks this file what is compiled for

    return not needs_measurement(op, name) or is_measured(op)
