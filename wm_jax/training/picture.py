"""Pictures of a run: reconstructions, or free-running rollouts, beside the truth."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from wm_jax import checkpoint
from wm_jax.data.episode import EpisodeFolder
from wm_jax.eval import clips
from wm_jax.eval import film as video
from wm_jax.training.config import TrainConfig
from wm_jax.training.objectives.reconstruction import Reconstruction
from wm_jax.training.state import TrainState, world_params
from wm_jax.types import Controls, Params, Prompt
from wm_jax.world import World, rollout, start
from wm_jax.world.world import reconstruct

PROMPT_FRAMES = 4
FILM_CLIPS = 6
FILM_FRAMES = 90


def draw(config: TrainConfig, state: TrainState, batch: Any) -> UInt8[np.ndarray, "h w 3"]:
    """For each of a few raw clips (`frames`, `keys`) a strip of truth above a strip of what the world makes of it."""
    world, params = World(config.world), world_params(config, state)
    frames = np.asarray(batch["frames"])
    if isinstance(config.objective, Reconstruction):
        seen = np.asarray(reconstruct(world, params, frames))
    else:
        prompt = Prompt(frames[:, :PROMPT_FRAMES], Controls(batch["keys"][:, :PROMPT_FRAMES]))
        session = start(world, params, prompt, jax.random.key(0))
        _, dream = rollout(world, params, session, Controls(batch["keys"][:, PROMPT_FRAMES:]))
        seen = np.concatenate([frames[:, :PROMPT_FRAMES], np.asarray(dream)], axis=1)
    return tile(frames, seen)


def film(config: TrainConfig, params: Params, held_out: EpisodeFolder, path: Path) -> None:
    """An MP4 of held-out clips beside what the finished world dreams from their first frames and the same keys.

    Without a video library it says how to get the film afterwards: a finished run must not fail for want of it.
    """
    if importlib.util.find_spec("av") is None:
        print(f"{path}: left out, films need PyAV; pip install -e '.[serve]' and give the same command again for it")
        return
    whole = clips.Recording(held_out, held_out.episodes)
    chosen = clips.choose_clips(whole, FILM_CLIPS, PROMPT_FRAMES, FILM_FRAMES, seed=config.seed)
    session = start(World(config.world), params, chosen.prompt, jax.random.key(config.seed))
    _, dreams = rollout(World(config.world), params, session, Controls(keys=chosen.held))
    with checkpoint.writing(path):
        video.write(path, chosen, np.asarray(dreams), config.world.controls, config.world.fps)


def tile(truth: Any, seen: Any, columns: int = 16) -> UInt8[np.ndarray, "h w 3"]:
    """Strips of at most `columns` frames spread over the clip: truth, then seen, a white line between clips."""
    chosen = np.unique(np.linspace(0, truth.shape[1] - 1, columns).round().astype(int))
    rows = []
    for real, dream in zip(truth[:, chosen], seen[:, chosen], strict=True):
        strip = [np.concatenate(list(part), axis=1) for part in (real, dream)]
        rows += [*strip, np.full((2, strip[0].shape[1], 3), 255, np.uint8)]
    return np.concatenate(rows, axis=0)
