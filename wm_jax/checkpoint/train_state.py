"""Checkpoints of a run: the whole train state, the loader's position, config and versions; the one file that knows Orbax.

`checkpoints/<step>/` holds `state/` (Orbax), `saved.json` and, written last, an empty `done`: a folder without it was
never finished and does not count.
"""

import base64
import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from wm_jax import config as config_lib
from wm_jax.checkpoint.folder import replacing, scan
from wm_jax.checkpoint.tree import CheckpointError, check_tree, flatten_tree, shorten

StateT = TypeVar("StateT")

STATE_FOLDER = "state"
SAVED_FILE = "saved.json"
DONE_FILE = "done"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True)
class Saved:
    """What stands beside a train state.

    Attributes:
      step: Training steps done.
      config: The run's config as JSON.
      loader: Where the loader goes on, as it gave it.
      versions: Package -> version that wrote this.
      keys: Leaf -> implementation of each random key.
      files: Every file of the state -> its size in bytes.
    """

    step: int
    config: dict[str, Any]
    loader: Any
    versions: dict[str, str]
    keys: dict[str, str]
    files: dict[str, int]


def save_state(root: str | Path, step: int, state: Any, config: Any, loader: Any = None, keep: int = 3) -> Path:
    """Writes `root/<step>/` and then removes all but the newest `keep` checkpoints.

    Args:
      root: The run's folder of checkpoints.
      step: Training steps done.
      state: A pytree of arrays; typed random keys are welcome.
      config: The run's config: a dataclass, or its JSON.
      loader: The loader's position: bytes, or anything JSON holds.
      keep: How many to keep, at least 1.

    Raises:
      CheckpointError: it could not be written (a full disk); earlier checkpoints are intact.
    """
    import orbax.checkpoint as ocp

    folder = Path(root).absolute() / str(step)
    arrays, keys = _storable(flatten_tree(state))
    with replacing(folder, f"checkpoint of step {step}") as made:
        for left_over in folder.parent.glob(".*.tmp"):
            if left_over != made:
                shutil.rmtree(left_over, ignore_errors=True)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(made / STATE_FOLDER, args=ocp.args.StandardSave(arrays))
        as_json = config if isinstance(config, dict) else config_lib.to_json(config)
        saved = Saved(step, as_json, _loader_to_json(loader), versions(), keys, _files(made / STATE_FOLDER))
        (made / SAVED_FILE).write_text(json.dumps(dataclasses.asdict(saved), indent=1) + "\n")
        (made / DONE_FILE).touch()
    for old in checkpoints(root)[: -max(keep, 1)]:
        (old / DONE_FILE).unlink()  # first, so that a half-removed folder does not count
        shutil.rmtree(old, ignore_errors=True)
    return folder


def checkpoints(root: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    folders = Path(root).glob("*/" + DONE_FILE)
    return sorted((f.parent for f in folders if f.parent.name.isdigit()), key=lambda folder: int(folder.name))


def read_saved(folder: str | Path) -> Saved:
    """What stands beside the train state of a checkpoint.

    Raises:
      CheckpointError: the folder holds a file that may not be there (see `scan`), or not every file it should; names
        the checkpoint before it, to go on from.
    """
    try:
        return _read_saved(Path(folder))
    except (CheckpointError, config_lib.ConfigError) as error:
        raise CheckpointError(f"{error}. {_way_out(Path(folder))}") from error


def _read_saved(folder: Path) -> Saved:
    if not (folder / DONE_FILE).is_file():
        raise CheckpointError(f"{folder}: is no complete checkpoint, it has no file '{DONE_FILE}'")
    scan(folder)
    saved = config_lib.from_json(Saved, config_lib.read_json(folder / SAVED_FILE), str(folder / SAVED_FILE))
    outside = [name for name in saved.files if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if outside:
        raise CheckpointError(f"{folder / SAVED_FILE}: refused, names outside the folder: {shorten(outside)}")
    found = _files(folder / STATE_FOLDER)
    wrong = [
        f"{name} ({found.get(name, 'missing')}, must be {saved.files.get(name, 'absent')})"
        for name in sorted(found | saved.files)
        if found.get(name) != saved.files.get(name)
    ]
    if wrong:
        raise CheckpointError(f"{folder}: broken, files with other sizes in bytes than were saved: {shorten(wrong)}")
    return dataclasses.replace(saved, loader=_loader_from_json(saved.loader))


def _way_out(folder: Path) -> str:
    """What to delete so that a run goes on although this checkpoint of it cannot be used."""
    older = [path for path in checkpoints(folder.parent) if folder.name.isdigit() and int(path.name) < int(folder.name)]
    sound = next((path for path in reversed(older) if _is_sound(path)), None)
    rest = f"goes on from {sound}" if sound else "starts anew: there is no older whole one"
    return f"Delete it (rm -r {folder}), and the run {rest}"


def _is_sound(folder: Path) -> bool:
    try:
        _read_saved(folder)
    except (CheckpointError, config_lib.ConfigError):
        return False
    return True


def restore_state(folder: str | Path, template: StateT) -> StateT:
    """The train state of a checkpoint, laid out as the template is.

    Args:
      folder: `checkpoints/<step>`.
      template: A state of the same structure: arrays, or `jax.ShapeDtypeStruct`s with shardings.

    Raises:
      CheckpointError: the folder is not sound (see `read_saved`), or leaves are missing, extra, of another shape or type.
    """
    import orbax.checkpoint as ocp

    saved = read_saved(folder)
    want = flatten_tree(template)
    arrays = jax.eval_shape(lambda tree: _storable(tree)[0], want)
    shardings = {name: getattr(want[name], "sharding", None) for name in arrays}
    path = Path(folder).absolute() / STATE_FOLDER
    with _readable(Path(folder)), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        found = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in _metadata(checkpointer, path)}
        check_tree(arrays, found, path)
        _check_types(arrays, found, path)
        targets = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=shardings[n]) for n, a in arrays.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Orbax warns where no sharding is given: one device
            flat = checkpointer.restore(path, args=ocp.args.StandardRestore(targets))
    for name, implementation in saved.keys.items():
        flat[name] = jax.random.wrap_key_data(flat[name], impl=implementation)
    empty = {name: leaf for name, leaf in want.items() if name not in flat}
    leaves = [(flat | empty)[name] for name in want]
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(template), leaves)


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Orbax raises a dozen kinds for files of the right size with other bytes in them; ours say what to do."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = f"{folder}: the state cannot be read, {type(error).__name__}: {error}"
        raise CheckpointError(f"{reason}. {_way_out(folder)}") from error


def versions() -> dict[str, str]:
    """Package -> version of everything that decides the bits of a run."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES if _is_installed(name)}
    return {"python": platform.python_version()} | found


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _storable(flat: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The leaves as plain arrays, and which of them are random keys. Empty arrays are left out: Orbax refuses them."""
    keys = {n: leaf for n, leaf in flat.items() if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)}
    arrays = {n: jax.random.key_data(leaf) if n in keys else leaf for n, leaf in flat.items() if np.size(leaf)}
    return arrays, {name: str(jax.random.key_impl(leaf)) for name, leaf in keys.items()}


def _metadata(checkpointer: Any, path: Path) -> Any:
    return checkpointer.metadata(path).item_metadata.tree.items()


def _check_types(want: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    wrong = [
        f"{n} is {found[n].dtype}, must be {leaf.dtype}" for n, leaf in want.items() if found[n].dtype != leaf.dtype
    ]
    if wrong:
        raise CheckpointError(f"{path}: leaves of another type: {shorten(wrong)}")


def _files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def _loader_to_json(position: Any) -> Any:
    if isinstance(position, bytes):
        return {"bytes": base64.b64encode(position).decode()}
    return {"json": position}


def _loader_from_json(position: Any) -> Any:
    try:
        return base64.b64decode(position["bytes"]) if "bytes" in position else position["json"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the loader's position is {position!r}, not what was saved") from error
