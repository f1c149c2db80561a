"""Folders that appear whole or not at all, and hold nothing but themselves."""

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from wm_jax.checkpoint.tree import CheckpointError, shorten
from wm_jax.config import ConfigError


def scan(folder: str | Path) -> None:
    """Passes when a folder and everything in it is a plain file or folder that belongs to it alone.

    Raises:
      CheckpointError: a symlink (also the folder itself), a hard link from outside, a device, socket or pipe; each is
        named.
    """
    folder = Path(folder)
    if folder.is_symlink():
        raise CheckpointError(f"{folder}: refused, it is a symlink to {os.readlink(folder)}; name that folder itself")
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
        raise CheckpointError(f"{folder}: refused, {shorten(refused)}; copy the files themselves (cp -rL)")


@contextlib.contextmanager
def replacing(folder: Path, what: str) -> Iterator[Path]:
    """A new folder under a temporary name that takes the place of `folder` when the block ends well.

    It is on the disk to the last byte before it appears: a power cut leaves it whole or leaves the older one.
    """
    made, old = None, folder.with_name(f".{folder.name}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not folder.exists():  # killed between the two renames below
            old.rename(folder)
        for left_over in folder.parent.glob(f".{folder.name}.*.tmp"):  # killed in the middle of a save
            shutil.rmtree(left_over, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        made.chmod(0o755)
        yield made
        for path in [*made.rglob("*"), made]:
            _to_disk(path)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        made.rename(folder)
        _to_disk(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        if not isinstance(error, Exception) or isinstance(error, CheckpointError | ConfigError):
            raise
        raise CheckpointError(f"{folder}: the {what} could not be saved, {_reason(error, folder)}") from error


@contextlib.contextmanager
def writing(path: Path, hint: str = "") -> Iterator[None]:
    """An `OSError` in the block becomes one that names the file, a full disk in words, and ends in `hint`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{path}: could not be written, {_reason(error, path)}{hint}") from error


def _reason(error: Exception, folder: Path) -> str:
    """Why a write below `folder` failed, in words; a full disk is told apart, also where a library wraps it."""
    text = str(error)
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if is_full or any(words in text for words in ("No space left", "quota exceeded", "File too large")):
        free_mb = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free / 1e6
        return f"the disk is full ({free_mb:.0f} MB free): make room and start again, what was saved before is intact"
    return f"{type(error).__name__}: {text}"


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
