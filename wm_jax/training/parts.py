"""What the loop drives, put together for a stage of a world: state, batches, step, pictures, the world that comes out."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from wm_jax import checkpoint
from wm_jax.data.loader import make_loader
from wm_jax.training.config import TrainConfig
from wm_jax.training.picture import PROMPT_FRAMES, draw
from wm_jax.training.source import make_source, open_episodes
from wm_jax.training.state import TrainState, init_state, world_params
from wm_jax.training.step import make_train_step

PROMPTS = 16
PICTURE_CLIPS = 4
PICTURE_FRAMES = 48


class Loader(Protocol):
    """Batches of host arrays, and a position that can be kept."""

    def __next__(self) -> Any: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the loop drives: one stage of training.

    Attributes:
      init: `is_resumed -> state`: a fresh train state with the weights in its field `params`. When resumed, all its
        leaves are overwritten: only structure and shapes matter then.
      make_loader: `state -> loader`.
      step: `(state, batch) -> (state, metrics)`, compiled, the state donated; metrics hold `loss`.
      draw: `state -> uint8 [h w 3]`.
      export: `(state, folder)` writes the world as it is now.
      frames_per_step: Frames in a batch.
    """

    init: Callable[[bool], Any]
    make_loader: Callable[[Any], Loader]
    step: Callable[[Any, Any], tuple[Any, Mapping[str, jax.Array]]]
    draw: Callable[[Any], np.ndarray]
    export: Callable[[Any, Path], None]
    frames_per_step: int


def make_parts(config: TrainConfig) -> Parts:
    """The parts of a real run: recordings in, a world out.

    Raises:
      EpisodeError: the held-out recording is not sound.
      ValueError: it does not fit the world.
    """
    held_out = open_episodes(config, config.data.held_out)
    clips = _first_frames(held_out, PICTURE_CLIPS, PICTURE_FRAMES)
    prompts = _first_frames(held_out, PROMPTS, PROMPT_FRAMES)

    def init(is_resumed: bool) -> TrainState:
        # A checkpoint holds the weights of other runs too: those may be gone by now.
        return init_state(dataclasses.replace(config, init_from=None, autoencoder_from=None) if is_resumed else config)

    def loader(state: TrainState) -> Loader:
        source = make_source(config, {**state.frozen, **state.params})
        return make_loader(source, config.data.clip_frames, config.data.batch, config.data.seed, config.data.workers)

    def export(state: TrainState, folder: Path) -> None:
        params = jax.device_get(world_params(config, state))
        card = None if (folder / "README.md").exists() else _card(config)
        checkpoint.save_world(folder, config.world, params, prompts=prompts, card=card)

    return Parts(
        init=init,
        make_loader=loader,
        step=make_train_step(config),
        draw=lambda state: draw(config, state, clips),
        export=export,
        frames_per_step=config.data.batch * config.data.clip_frames,
    )


def _first_frames(episodes: Any, count: int, length: int) -> dict[str, np.ndarray]:
    """The first frames of episodes spread over a recording, with what led to them: `[n t h w 3]` and `[n t keys]`."""
    whole = [index for index, episode in enumerate(episodes.episodes) if episode.length >= length]
    if not whole:
        longest = max(episode.length for episode in episodes.episodes)
        return _first_frames(episodes, count, longest)
    chosen = [whole[i] for i in np.unique(np.linspace(0, len(whole) - 1, count).round().astype(int))]
    frames = np.stack([episodes.frames(index, 0, length) for index in chosen])
    return {"frames": frames, "keys": np.stack([episodes.keys(index, 0, length) for index in chosen])}


def _card(config: TrainConfig) -> str:
    objective = type(config.objective).__name__
    return f"""# {config.world.name}

A world of wm_jax in the middle or at the end of its training: run `{config.name}`, objective {objective},
{config.steps} updates on `{config.data.episodes}`. Its numbers: `python -m wm_jax.eval <this folder>`.
"""
