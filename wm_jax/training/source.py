"""What a stage reads: raw clips for the autoencoder, latents encoded once for the dynamics."""

import dataclasses
import errno
import functools
import hashlib
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import flax.struct
import jax
import numpy as np
from jaxtyping import Bool, Float
from rich.progress import Progress

from wm_jax import checkpoint
from wm_jax.data.episode import EpisodeError, EpisodeFolder
from wm_jax.training.config import TrainConfig
from wm_jax.training.objectives.reconstruction import Reconstruction
from wm_jax.types import Controls, Params
from wm_jax.world import World

Split = Literal["train", "held_out"]
SPLIT_OPTIONS: dict[Split, str] = {"train": "episodes", "held_out": "held_out"}
ENCODE_FRAMES = 256


@flax.struct.dataclass
class LatentClip:
    """A `Clip` with latents in place of frames.

    Attributes:
      latents: At unit variance per channel, float16 on the way.
      controls: `controls[t]` leads to frame t.
      is_first: Frame t starts an episode.
    """

    latents: Float[Any, "b t y x c"]
    controls: Controls
    is_first: Bool[Any, "b t"]


@dataclasses.dataclass(frozen=True)
class LatentSource:
    """An episode folder with latents in place of its frames; same addresses, same keys.

    Attributes:
      episodes: The recording.
      latents: `float16 [frames y x c]`, memory-mapped.
    """

    episodes: EpisodeFolder
    latents: Any

    @property
    def num_frames(self) -> int:
        return self.episodes.num_frames

    def read(self, start: int, length: int) -> LatentClip:
        """`length` frames from `start`, counted over the whole folder, without batch axis."""
        controls, is_first = self.episodes.read_controls(start, length)
        return LatentClip(np.array(self.latents[start : start + length]), controls, is_first)


def make_source(config: TrainConfig, episodes: EpisodeFolder, params: Params) -> EpisodeFolder | LatentSource:
    """What a run learns from: the recording for the autoencoder, its latents for the dynamics."""
    if isinstance(config.objective, Reconstruction):
        return episodes
    return LatentSource(episodes, encode_once(config, episodes, params))


def open_episodes(config: TrainConfig, split: Split) -> EpisodeFolder:
    """The recording of these levels that the config names, whole to the last frame and of this world.

    Raises:
      EpisodeError: it is broken, or of another game, other levels, another image size or other keys; names both sides.
    """
    world, option = config.world, SPLIT_OPTIONS[split]
    folder: str = getattr(config.data, option)
    way_out = f"name another with --data.{option.replace('_', '-')}, or record one: "
    way_out += f"python -m wm_jax.data.record --env {world.env} --split {split} --out"
    if not Path(folder).is_dir():
        raise EpisodeError(f"{folder} is no folder; {way_out} {folder}")
    episodes = EpisodeFolder.open(folder)
    for what, found, wanted in (
        ("game", episodes.meta.get("env"), world.env),
        ("split", episodes.meta.get("split"), split),
        ("image", tuple(episodes.image), tuple(world.image)),
        ("keys", episodes.controls.codes, world.controls.codes),
    ):
        if found != wanted:
            side = f"data.{option}" if what == "split" else f"world {world.name!r}"
            raise EpisodeError(f"{folder} has the {what} {found!r}, {side} needs {wanted!r}; {way_out} FOLDER")
    episodes.check_once()
    return episodes


def encode_once(config: TrainConfig, episodes: EpisodeFolder, params: Params, root: str = "runs/latents") -> Any:
    """Latents of every frame, from the cache under `root` or made now; the name says of which weights and frames.

    Raises:
      OSError: no room for them on the disk; says how many bytes they take and what may be deleted.
      EpisodeError: the file in the cache is broken.
    """
    path = Path(root) / f"{config.world.env}-{_fingerprint(config, episodes, params)}.npy"
    shape = (episodes.num_frames, *config.world.latent_shape)
    _remove_unfinished(path.parent)
    if not path.exists():
        _write_latents(path, shape, _latent_blocks(config, episodes, params))
    try:
        latents = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise EpisodeError(f"{path} is cut short or no .npy file ({error}); delete it, it is made again") from error
    if latents.shape != shape:
        raise EpisodeError(f"{path} holds {latents.shape}, this run needs {shape}; delete it, it is made again")
    return latents


def _latent_blocks(config: TrainConfig, episodes: EpisodeFolder, params: Params) -> Iterator[np.ndarray]:
    for start in range(0, episodes.num_frames, ENCODE_FRAMES):
        frames = episodes.read_frames(start, min(ENCODE_FRAMES, episodes.num_frames - start))
        padded = np.concatenate([frames, np.zeros((ENCODE_FRAMES - len(frames), *frames.shape[1:]), np.uint8)])
        yield np.asarray(_encode(World(config.world), params["autoencoder"], padded))[: len(frames)]


def _write_latents(path: Path, shape: tuple[int, ...], blocks: Iterator[np.ndarray]) -> None:
    """A .npy file by plain writes: a page of a memory map that finds no room kills the process without a word."""
    unfinished = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
    needs = 2 * math.prod(shape)
    told = functools.partial(
        checkpoint.writing,
        path,
        f"; the latents take {needs:,} bytes, and {path.parent} is only a cache: those of other runs may be deleted",
    )
    try:
        with told():
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < needs:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with unfinished.open("wb") as file:
                header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
        # Not `track`: an error would leave its thread behind, and with it a program that never ends.
        with Progress() as bar:
            task = bar.add_task("encoding frames to latents", total=shape[0])
            for block in blocks:
                with told(), unfinished.open("ab") as file:
                    file.write(np.ascontiguousarray(block).data)
                bar.advance(task, len(block))
        with told(), unfinished.open("ab") as file:
            os.fsync(file.fileno())
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _remove_unfinished(folder: Path) -> None:
    """Removes what processes that were killed left in the cache."""
    for path in folder.glob("*.tmp"):
        number = path.stem.rpartition(".")[2]
        if number.isdigit() and not _is_alive(int(number)):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


@functools.partial(jax.jit, static_argnums=0)
def _encode(world: World, autoencoder: Params, frames):
    params = {**jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), world.shapes()), "autoencoder": autoencoder}
    return world.model(params).autoencoder.encode(frames[None])[0].astype(np.float16)


def _fingerprint(config: TrainConfig, episodes: EpisodeFolder, params: Params) -> str:
    digest = hashlib.sha256()
    digest.update(repr((config.world.autoencoder, dict(episodes.meta))).encode())
    for leaf in jax.tree.leaves(params["autoencoder"]):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
