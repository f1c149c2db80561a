"""Which implementation of an op runs: the one place that knows their names."""

from typing import Literal, get_args

Implementation = Literal["auto", "reference"]
"""`auto` takes the best one for the platform compiled for; a named one runs or raises."""


def check_implementation(op: str, implementation: str) -> None:
    """Refuses a name that no implementation of this op has.

    Raises:
      ValueError: names the op, what was asked for and what there is.
    """
    known = get_args(Implementation)
    if implementation not in known:
        raise ValueError(f"{op} has no implementation {implementation!r}; it has {', '.join(known)}")
