"""Save and restore trees with their config beside them; the one file that knows Orbax and safetensors.

Two kinds of folder. A *world* is what is given away: `config.json`, `weights*.safetensors`, `prompts.npz`, `README.md`.
A *checkpoint* is what a run goes on from: the whole train state, the loader's position, config and versions. Both are
made under a temporary name and renamed when complete, and neither holds a pickle.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from wm_jax import config as config_lib

TreeT = TypeVar("TreeT")

CONFIG_FILE = "config.json"
PROMPTS_FILE = "prompts.npz"
CARD_FILE = "README.md"
DONE_FILE = "done"
LISTED_NAMES = 12


class CheckpointError(ValueError):
    """Weights or a checkpoint that cannot be used; the message names the files, the leaves and both sides."""


def flatten_tree(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their path, joined by `/`."""
    flat = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        parts = [str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path]
        if any("/" in part or part in ("", ".", "..") for part in parts):
            raise CheckpointError(f"{parts} cannot name a leaf: parts are joined by '/' and may not be '.' or '..'")
        flat["/".join(parts)] = leaf
    return flat


def nest_tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from leaves by path: the opposite of `flatten_tree` for a tree of dicts."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *folders, last = name.split("/")
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
    lines = [f"{len(names)} {what}: {_shorten(names)}" for what, names in complaints.items() if names]
    if lines:
        raise CheckpointError(f"{source}: these weights do not belong to this config; " + "; ".join(lines))


def save_world(
    folder: str | Path,
    config: Any,
    params: Any,
    prompts: Mapping[str, np.ndarray] | None = None,
    card: str | None = None,
    max_shard_mb: float = 15.0,
) -> None:
    """Writes a world folder: config, weights as safetensors shards, prompts, model card.

    The folder appears whole or not at all. Files of an older folder of that name that are not written anew (a card, a
    video) stay.

    Args:
      folder: Where to; its parent is made.
      config: A config dataclass, or its JSON.
      params: Nested dicts of arrays.
      prompts: Arrays by name, kept in `prompts.npz`.
      card: The text of `README.md`.
      max_shard_mb: No file of weights is larger than this, unless one array is.

    Raises:
      CheckpointError: it could not be written (a full disk); an older folder of that name is left as it was.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    with _replacing(folder, "world") as made:
        shards = list(_shards({name: np.asarray(leaf) for name, leaf in flatten_tree(params).items()}, max_shard_mb))
        for index, shard in enumerate(shards):
            count = f"-{index + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            save_file(shard, made / f"weights{count}.safetensors")
        if prompts is not None:
            np.savez_compressed(made / PROMPTS_FILE, **prompts)  # pyright: ignore[reportArgumentType]
        if card is not None:
            (made / CARD_FILE).write_text(card)
        _keep_other_files(folder, made)
        # The config comes last: a folder without it is not a world.
        as_json = config if isinstance(config, dict) else config_lib.to_json(config)
        (made / CONFIG_FILE).write_text(json.dumps(as_json, indent=2) + "\n")


def load_world_files(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config as JSON and the weights as nested dicts of NumPy arrays.

    Raises:
      CheckpointError: not a world folder, a shard missing or broken, or a file that may not be there (see `scan`).
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder}: is no world, it has no {CONFIG_FILE}")
    scan(folder)
    flat: dict[str, Any] = {}
    for path in _shard_files(folder):
        try:
            flat |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: is broken or cut off ({error})") from error
    return config_lib.read_json(folder / CONFIG_FILE), nest_tree(flat)


def load_prompts(folder: str | Path) -> dict[str, np.ndarray] | None:
    """The arrays of `prompts.npz`, or None where a world has none."""
    path = Path(folder) / PROMPTS_FILE
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: is broken or cut off ({error})") from error


def scan(folder: str | Path) -> None:
    """Passes when everything in a folder is a plain file or folder that belongs to it alone.

    Raises:
      CheckpointError: a symlink, a hard link from outside, a device, socket or pipe; each is named.
    """
    folder = Path(folder)
    refused, links = [], {}
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root) / name
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                refused.append(f"{path.relative_to(folder)} is a symlink to {os.readlink(path)}")
            elif stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                links.setdefault((status.st_dev, status.st_ino), (status.st_nlink, []))[1].append(path)
            elif not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                refused.append(f"{path.relative_to(folder)} is a device, a pipe or a socket")
    for count, paths in links.values():
        if len(paths) < count:
            refused.append(f"{paths[0].relative_to(folder)} is a hard link to a file outside")
    if refused:
        raise CheckpointError(f"{folder}: refused, {_shorten(refused)}; copy the files themselves (cp -rL)")


@contextlib.contextmanager
def _replacing(folder: Path, what: str) -> Iterator[Path]:
    """A new folder under a temporary name that takes the place of `folder` when the block ends well."""
    made = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        made.chmod(0o755)
        yield made
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        made.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        if not isinstance(error, Exception) or isinstance(error, CheckpointError | config_lib.ConfigError):
            raise
        raise CheckpointError(f"{folder}: the {what} could not be saved, {_reason(error, folder)}") from error


def _reason(error: Exception, folder: Path) -> str:
    """Why a write failed, in words; a full disk is told apart, also where a library wraps it."""
    text = str(error)
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if is_full or any(words in text for words in ("No space left", "quota exceeded", "File too large")):
        free_mb = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free / 1e6
        return f"the disk is full ({free_mb:.0f} MB free): make room and start again, what was saved before is intact"
    return f"{type(error).__name__}: {text}"


def _keep_other_files(old: Path, made: Path) -> None:
    for path in old.iterdir() if old.is_dir() else ():
        is_plain = path.is_file() and not path.is_symlink() and path.suffix != ".safetensors"
        if is_plain and not (made / path.name).exists():
            shutil.copy2(path, made)


def _shorten(names: list[str]) -> str:
    more = f", and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else ""
    return ", ".join(names[:LISTED_NAMES]) + more


def _shards(flat: Mapping[str, np.ndarray], max_shard_mb: float) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, array in flat.items():
        if shard and size + array.nbytes > max_shard_mb * 1e6:
            yield shard
            shard, size = {}, 0
        shard[name] = np.ascontiguousarray(array).reshape(array.shape)
        size += array.nbytes
    yield shard


def _shard_files(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("weights*.safetensors"))
    counts = {match[1] for path in paths if (match := re.search(r"-of-(\d+)\.safetensors$", path.name))}
    wanted = [f"weights-{i + 1:05d}-of-{int(n):05d}.safetensors" for n in counts for i in range(int(n))]
    wanted = wanted or ["weights.safetensors"]
    missing = [name for name in wanted if not (folder / name).is_file()]
    extra = [path.name for path in paths if path.name not in wanted]
    if missing or extra:
        said = [f"{what}: {_shorten(names)}" for what, names in (("missing", missing), ("extra", extra)) if names]
        raise CheckpointError(f"{folder}: the files of weights are not one set; {'; '.join(said)}")
    return [folder / name for name in wanted]
