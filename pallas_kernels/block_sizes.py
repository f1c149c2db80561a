"""Block sizes that `python -m pallas_kernels.tune` found, by op and kind of device; a safe default that compiles everywhere elsewhere."""

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pallas_kernels.implementation import compiled_for

FOLDER = Path(__file__).parent


class Sizes(NamedTuple):
    """How a kernel is cut.

    Attributes:
      rows: The most rows in a block: TPU attention, queries, a multiple of 128; norms and 8-bit layers, tokens.
      workers: GPU: the most warpgroups that compute in one block, 64 queries each.
      stages: GPU: how many tiles of keys may be on their way.
    """

    rows: int = 512
    workers: int = 2
    stages: int = 2


GPUS = ("GH200", "H200", "H100", "B200", "A100")
_tried: list[Sizes] = []


def kind() -> str:
    """Of the device that is compiled for, as `tuned.json` names it: "NVIDIA H100 80GB HBM3" is an H100."""
    named = compiled_for().device_kind
    return next((gpu for gpu in GPUS if gpu in named), named)


def sizes_of(op: str) -> Sizes:
    """The sizes of this op on the device that is compiled for."""
    if _tried:
        return _tried[-1]
    found = read(op).get(kind(), {})
    return Sizes(**found)


def is_measured(op: str) -> bool:
    """Whether the op has sizes for the kind of device that is compiled for, found there or being tried."""
    return bool(_tried) or kind() in read(op)


@contextlib.contextmanager
def trying(sizes: Sizes) -> Iterator[None]:
    """Everything traced inside takes these sizes."""
    _tried.append(sizes)
    try:
        yield
    finally:
        _tried.pop()


@functools.cache
def read(op: str) -> dict[str, dict[str, int]]:
    """What was found for an op, by kind of device.

    Raises:
      ValueError: the file holds something else; names it.
    """
    path = FOLDER / op / "tuned.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    for kind, sizes in found.items():
        if unknown := set(sizes) - set(Sizes._fields):
            raise ValueError(
                f"{path} names {', '.join(sorted(unknown))} for {kind}; sizes are {', '.join(Sizes._fields)}"
            )
    return found


def write(op: str, kind: str, sizes: Sizes) -> Path:
    """Keeps what was found beside what is known of other devices."""
    path = FOLDER / op / "tuned.json"
    path.write_text(json.dumps({**read(op), kind: sizes._asdict()}, indent=2, sort_keys=True) + "\n")
    read.cache_clear()
    return path
