"""World folders: what is given away. Config, weights as safetensors shards, prompts, model card; no pickle."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wm_jax import config as config_lib
from wm_jax.checkpoint.folder import replacing, scan
from wm_jax.checkpoint.tree import CheckpointError, flatten_tree, nest_tree, shorten

CONFIG_FILE = "config.json"
PROMPTS_FILE = "prompts.npz"
CARD_FILE = "README.md"


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
      params: Nested dicts of arrays, none empty.
      prompts: Arrays by name, kept in `prompts.npz`.
      card: The text of `README.md`.
      max_shard_mb: No file of weights is larger than this, unless one array is.

    Raises:
      CheckpointError: it could not be written (a full disk); an older folder of that name is left as it was.
    """
    from safetensors.numpy import save_file

    folder, flat = Path(folder), flatten_tree(params)
    if jax.tree.structure(nest_tree(flat)) != jax.tree.structure(params):
        raise CheckpointError(f"{folder}: params must be nested dicts of arrays, none empty, no '/' in a name")
    with replacing(folder, "world") as made:
        shards = list(_shards({name: np.asarray(leaf) for name, leaf in flat.items()}, max_shard_mb))
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
    try:
        return config_lib.read_json(folder / CONFIG_FILE), nest_tree(flat)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: the weights are no tree, {error}") from error


def load_prompts(folder: str | Path) -> dict[str, np.ndarray] | None:
    """The arrays of `prompts.npz`, or None where a world has none.

    Raises:
      CheckpointError: the file is broken, or the folder holds one that may not be there (see `scan`).
    """
    path = Path(folder) / PROMPTS_FILE
    scan(folder)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds for bytes that they did not write
        raise CheckpointError(f"{path}: is broken or cut off ({error})") from error


def _keep_other_files(old: Path, made: Path) -> None:
    for path in old.iterdir() if old.is_dir() else ():
        is_plain = path.is_file() and not path.is_symlink() and not path.match("weights*.safetensors")
        if is_plain and not (made / path.name).exists():
            shutil.copy2(path, made)


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
        said = [f"{what}: {shorten(names)}" for what, names in (("missing", missing), ("extra", extra)) if names]
        raise CheckpointError(f"{folder}: the files of weights are not one set; {'; '.join(said)}")
    return [folder / name for name in wanted]
