"""What a stage reads: raw clips for the autoencoder, latents encoded once for the dynamics."""

import dataclasses
import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import flax.struct
import jax
import numpy as np
from jaxtyping import Bool, Float
from rich.progress import track

from wm_jax.data.episode import EpisodeFolder
from wm_jax.training.config import TrainConfig
from wm_jax.training.objectives.reconstruction import Reconstruction
from wm_jax.types import Controls, Params
from wm_jax.world import World

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


def make_source(config: TrainConfig, params: Params) -> EpisodeFolder | LatentSource:
    """The recording a run learns from, refused if it is not of this world.

    Raises:
      ValueError: another image size or other keys than the world's.
    """
    episodes = open_episodes(config, config.data.episodes)
    if isinstance(config.objective, Reconstruction):
        return episodes
    return LatentSource(episodes, encode_once(config, episodes, params))


def open_episodes(config: TrainConfig, folder: str) -> EpisodeFolder:
    """An episode folder that fits the world.

    Raises:
      ValueError: another image size or other keys; names both sides.
    """
    episodes, world = EpisodeFolder.open(folder), config.world
    if tuple(episodes.image) != tuple(world.image):
        raise ValueError(f"{folder} has frames of {tuple(episodes.image)}, world {world.name!r} wants {world.image}")
    if episodes.controls.codes != world.controls.codes:
        raise ValueError(
            f"{folder} was played with {', '.join(episodes.controls.codes)}; "
            f"world {world.name!r} has {', '.join(world.controls.codes)}"
        )
    return episodes


def encode_once(config: TrainConfig, episodes: EpisodeFolder, params: Params, root: str = "runs/latents") -> Any:
    """Latents of every frame, from the cache under `root` or made now; the name says of which weights and frames."""
    path = Path(root) / f"{config.world.env}-{_fingerprint(config, episodes, params)}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
        shape = (episodes.num_frames, *config.world.latent_shape)
        out = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float16, shape=shape)
        for start in track(range(0, len(out), ENCODE_FRAMES), description="encoding frames to latents"):
            stop = min(start + ENCODE_FRAMES, len(out))
            frames = episodes.read_frames(start, stop - start)
            padded = np.concatenate([frames, np.zeros((ENCODE_FRAMES - len(frames), *frames.shape[1:]), np.uint8)])
            out[start:stop] = np.asarray(_encode(World(config.world), params["autoencoder"], padded))[: stop - start]
        out.flush()
        unfinished.rename(path)
    return np.load(path, mmap_mode="r")


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
