"""The film of an evaluation plays at the world's own speed."""

import fractions
from pathlib import Path

import av
import numpy as np
import pytest

from wm_jax.eval import film
from wm_jax.eval.clips import Clips
from wm_jax.types import ControlSpace, KeyBinding


@pytest.mark.parametrize("fps", [30.0, 17.5])
def test_a_film_plays_at_the_speed_of_the_world(tmp_path: Path, fps: float) -> None:
    rng = np.random.default_rng(0)
    clips = Clips(
        frames=rng.integers(0, 256, (1, 6, 32, 32, 3), dtype=np.uint8),
        keys=np.zeros((1, 6, 1), bool),
        lengths=np.array([6]),
        prompt_frames=2,
    )
    film.write(tmp_path / "film.mp4", clips, clips.truth, ControlSpace((KeyBinding("KeyW", "up"),)), fps)
    with av.open(str(tmp_path / "film.mp4")) as file:
        assert file.streams.video[0].average_rate == fractions.Fraction(fps)
        assert sum(1 for _ in file.decode(video=0)) == 6
