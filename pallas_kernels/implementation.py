"""Which implementation of an op runs: the one place that knows their names."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax

Implementation = Literal["auto", "reference", "tpu"]
"""`auto` takes the best one for the platform compiled for; a named one runs or raises."""


def check_implementation(op: str, implementation: str) -> None:
    """Refuses a name that no implementation of this op has.

    Raises:
      ValueError: names the op, what was asked for and what there is.
    """
    known = get_args(Implementation)
    if implementation not in known:
        raise ValueError(f"{op} has no implementation {implementation!r}; it has {', '.join(known)}")


def choose(
    op: str,
    implementation: str,
    arguments: tuple[Any, ...],
    reference: Callable[..., Any],
    tpu: Callable[..., Any],
    tpu_refusal: str | None,
) -> Any:
    """Runs the implementation that was asked for; `auto` decides by the platform compiled for, not by the host's.

    Args:
      tpu_refusal: Why the TPU kernel cannot take these arguments; None where it can.

    Raises:
      ValueError: the kernel was asked for by name and cannot take them.
    """
    check_implementation(op, implementation)
    if implementation == "tpu" and tpu_refusal:
        raise ValueError(f"{op}: implementation 'tpu' was asked for, but {tpu_refusal}")
    if implementation == "reference" or tpu_refusal:
        return reference(*arguments)
    if implementation == "tpu":
        return tpu(*arguments)
    return jax.lax.platform_dependent(*arguments, tpu=tpu, default=reference)
