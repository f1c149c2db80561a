"""A config made into the parts that the loop drives: state, loader, step, pictures, export."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from wm_jax import checkpoint
from wm_jax.data.episode import EpisodeError, EpisodeFolder
from wm_jax.data.loader import make_loader
from wm_jax.sharding import make_mesh
from wm_jax.training import loop
from wm_jax.training.config import TrainConfig
from wm_jax.training.objectives.reconstruction import Reconstruction
from wm_jax.training.picture import PROMPT_FRAMES, draw, film
from wm_jax.training.source import make_source, open_episodes
from wm_jax.training.state import TrainState, init_state, load_weights, world_params
from wm_jax.training.step import make_train_step

SHIPPED_PROMPTS = 16


def make_parts(config: TrainConfig) -> loop.Parts:
    """Everything one run needs, from its config.

    Raises:
      TrainingError: dynamics without a trained autoencoder, or a batch that the devices cannot share.
      EpisodeError: recordings that are damaged, of another world, or of the wrong levels.
    """
    is_first_stage = isinstance(config.objective, Reconstruction)
    if not is_first_stage and config.autoencoder_from is None and config.init_from is None:
        raise loop.TrainingError(
            f"{config.name}: dynamics need a trained autoencoder; give --autoencoder-from runs/<name>"
        )
    if config.data.batch % jax.device_count():
        raise loop.TrainingError(
            f"data.batch is {config.data.batch}, there are {jax.device_count()} devices: make it a multiple of them, "
            "or show fewer devices to JAX"
        )
    episodes, held_out = open_episodes(config, "train"), open_episodes(config, "held_out")
    data, shown = config.data, _shown_clips(held_out, 8 if is_first_stage else 4, 32)

    def init(is_resumed: bool) -> TrainState:
        if is_resumed:  # the checkpoint holds what came from other runs; those may be gone
            return init_state(dataclasses.replace(config, autoencoder_from=None))
        state = init_state(config)
        return state if config.init_from is None else load_weights(config, state, config.init_from)

    def loader(state: TrainState) -> loop.Loader:
        source = make_source(config, episodes, {**state.frozen, **state.params})
        return make_loader(source, data.clip_frames, data.batch, data.seed, data.workers)

    def export(state: TrainState, folder: Path) -> None:
        params = jax.device_get(world_params(config, state))
        checkpoint.save_world(folder, config.world, params, prompts=first_frames(held_out))
        if state.step >= config.steps and not is_first_stage:
            film(config, params, held_out, folder.parent / "rollout.mp4")

    return loop.Parts(
        init=init,
        make_loader=loader,
        step=make_train_step(config, make_mesh()),
        draw=lambda state: draw(config, state, shown),
        export=export,
        frames_per_step=data.batch * data.clip_frames,
    )


def first_frames(episodes: EpisodeFolder, count: int = SHIPPED_PROMPTS) -> dict[str, np.ndarray]:
    """Prompts for players: a few frames and what led to them, from the middle of different episodes."""
    length = PROMPT_FRAMES
    able = [i for i, episode in enumerate(episodes.episodes) if episode.length > 2 * length]
    chosen = [able[int(i)] for i in np.linspace(0, len(able) - 1, min(count, len(able)))]
    starts = [(episodes.episodes[e].length - length) // 2 for e in chosen]
    frames = [episodes.frames(e, s, length) for e, s in zip(chosen, starts, strict=True)]
    keys = [episodes.keys(e, s, length) for e, s in zip(chosen, starts, strict=True)]
    return {"frames": np.stack(frames), "keys": np.stack(keys)}


def _shown_clips(episodes: EpisodeFolder, count: int, length: int) -> dict[str, np.ndarray]:
    """Held-out clips for pictures: the same ones through a whole run."""
    able = [i for i, episode in enumerate(episodes.episodes) if episode.length > length]
    if not able:
        raise EpisodeError(f"{episodes.path} has no episode longer than {length} frames to draw pictures of")
    chosen = [able[int(i)] for i in np.linspace(0, len(able) - 1, count)]
    frames = np.stack([episodes.frames(e, episodes.episodes[e].length - length, length) for e in chosen])
    keys = np.stack([episodes.keys(e, episodes.episodes[e].length - length, length) for e in chosen])
    return {"frames": frames, "keys": keys}
