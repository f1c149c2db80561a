"""Trees of arrays by the names of their leaves: flatten, nest, compare, name what differs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

LISTED_NAMES = 12


class CheckpointError(ValueError):
    """Weights or a checkpoint that cannot be used; the message names the files, the leaves and both sides."""


def flatten_tree(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their path, joined by `/`."""
    flat = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        parts = [str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path]
        flat["/".join(parts)] = leaf
    return flat


def nest_tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from leaves by path: the opposite of `flatten_tree` for a tree of dicts.

    Raises:
      CheckpointError: a name is that of a leaf and that of a folder of leaves.
    """
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *folders, last = name.split("/")
        above = next((path for i in range(1, len(folders) + 1) if (path := "/".join(folders[:i])) in flat), None)
        if above is not None:
            raise CheckpointError(f"{above} is an array and holds {name}: a name can be only one of both")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return tree


def check_tree(expected: Any, found: Any, source: str | Path) -> None:
    """Passes when both trees have the same leaves of the same shapes.

    Args:
      expected: What the config asks for: arrays or `jax.ShapeDtypeStruct`s.
      found: What was read.
      source: Where it was read, for messages.

    Raises:
      CheckpointError: leaves are missing, extra or mis-shaped; all three are listed by name.
    """
    want, have = flatten_tree(expected), flatten_tree(found)
    wrong = [
        f"{name} is {list(np.shape(have[name]))}, the config needs {list(np.shape(leaf))}"
        for name, leaf in want.items()
        if name in have and np.shape(have[name]) != np.shape(leaf)
    ]
    complaints = {
        "missing": [name for name in want if name not in have],
        "not in this config": [name for name in have if name not in want],
        "of another shape": wrong,
    }
    lines = [f"{len(names)} {what}: {shorten(names)}" for what, names in complaints.items() if names]
    if lines:
        raise CheckpointError(f"{source}: these weights do not belong to this config; " + "; ".join(lines))


def shorten(names: list[str]) -> str:
    more = f", and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else ""
    return ", ".join(names[:LISTED_NAMES]) + more
