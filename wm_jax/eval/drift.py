"""Does a long dream stay in its world? Colour and motion over thousands of free-running frames, against the recording.

Sessions start from held-out prompts and are driven by the keys of recorded play. In windows of 100 frames we take, pooled
over sessions: the mean of each colour channel, its variance within a frame, and the motion, mean |x_t - x_{t-1}| in grey
levels. Colour is compared with the episodes that the prompts were taken from (a level keeps its colours), motion with the
whole recording (the keys come from all of it). A window has drifted when any of the three is more than 25 % off.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress

from wm_jax.data import Episode
from wm_jax.eval.clips import Recording, long_sessions
from wm_jax.types import Controls, Params
from wm_jax.world import World, rollout, start

WINDOW_FRAMES = 100
TOLERANCE = 0.25


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of the frames of one window or one recording.

    Attributes:
      mean: Of each channel, `[... 3]` grey levels.
      variance: Of each channel within a frame, `[... 3]` grey levels squared.
      motion: Mean absolute change from one frame to the next, `[...]` grey levels.
    """

    mean: np.ndarray
    variance: np.ndarray
    motion: np.ndarray


@dataclasses.dataclass(frozen=True)
class Drift:
    """What became of the long dreams.

    Attributes:
      dreamed: One row a window.
      real: What is compared with.
      deviation: Largest relative deviation over windows (and channels), by measure.
      frames: Length of the dreams.
      sessions: How many.
      left_at: First frame of the first window that has drifted, or None.
    """

    dreamed: Statistics
    real: Statistics
    deviation: dict[str, float]
    frames: int
    sessions: int
    left_at: int | None

    @property
    def stays(self) -> bool:
        return self.left_at is None


def measure(world: World, params: Params, recording: Recording, *, sessions: int, frames: int, prompt_frames: int,
            seed: int, bar: rich.progress.Progress) -> Drift:  # fmt: skip
    """Dreams `sessions` side by side for `frames` frames and compares each window with the recording."""
    window = min(WINDOW_FRAMES, frames)
    prompt, keys, own = long_sessions(recording, sessions, prompt_frames, frames, seed)
    state = start(world, params, prompt, jax.random.fold_in(jax.random.key(seed), 5))
    before, rows = np.asarray(prompt.frames)[:, -1:], []
    task = bar.add_task("drift", total=frames // window * window)
    for first in range(0, frames - window + 1, window):
        held = Controls(keys=jnp.asarray(keys[:, first : first + window]))
        state, shown = rollout(world, params, state, held)
        shown = np.asarray(shown)
        rows.append(statistics(np.concatenate([before, shown], axis=1)))
        before = shown[:, -1:]
        bar.advance(task, window)
    dreamed = Statistics(*(np.stack([getattr(row, name) for row in rows]) for name in ("mean", "variance", "motion")))
    return judge(dreamed, _real(recording, own), frames // window * window, sessions, window)


def judge(dreamed: Statistics, real: Statistics, frames: int, sessions: int, window: int) -> Drift:
    """Compares each window with the recording."""
    off = {
        "colour mean": (np.abs(dreamed.mean - real.mean[None]) / real.mean[None]).max(-1),
        "colour variance": (np.abs(dreamed.variance - real.variance[None]) / real.variance[None]).max(-1),
        "motion": np.abs(dreamed.motion - real.motion) / real.motion,
    }
    left = np.flatnonzero(np.max(list(off.values()), axis=0) > TOLERANCE)
    deviation = {name: float(values.max()) for name, values in off.items()}
    return Drift(dreamed, real, deviation, frames, sessions, int(left[0]) * window if len(left) else None)


def statistics(frames: np.ndarray) -> Statistics:
    """Of `[b t h w 3]`; the first frame counts for motion only."""
    pixels = frames.astype(np.float32)
    inner = pixels[:, 1:]
    return Statistics(
        mean=inner.mean((0, 1, 2, 3)),
        variance=inner.var((2, 3)).mean((0, 1)),
        motion=np.asarray(np.abs(pixels[:, 1:] - pixels[:, :-1]).mean()),
    )


def _real(recording: Recording, own: list[Episode]) -> Statistics:
    """Colour of the sessions' own episodes, each episode alike; motion of the whole recording, each frame alike."""
    read = recording.folder.read_frames
    colours = [statistics(read(episode.start, episode.length)[None]) for episode in own]
    moves = [
        (statistics(read(episode.start, episode.length)[None]).motion, episode.length - 1)
        for episode in recording.episodes
        if episode.length > 1
    ]
    motion, weight = np.array(moves).T
    return Statistics(
        mean=np.mean([row.mean for row in colours], axis=0),
        variance=np.mean([row.variance for row in colours], axis=0),
        motion=np.asarray(np.average(motion, weights=weight)),
    )
