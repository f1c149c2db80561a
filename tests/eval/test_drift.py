"""Drift: play judged against itself stays, a fading or freezing dream leaves."""

import numpy as np

from wm_jax.eval.drift import Statistics, judge, statistics

FRAMES = np.random.default_rng(0).integers(40, 200, (3, 41, 8, 8, 3)).astype(np.uint8)


def windows(frames: np.ndarray, length: int = 10) -> Statistics:
    parts = [statistics(frames[:, i : i + length + 1]) for i in range(0, frames.shape[1] - length, length)]
    return Statistics(*(np.stack([getattr(part, name) for part in parts]) for name in ("mean", "variance", "motion")))


def test_play_judged_against_itself_stays() -> None:
    found = judge(windows(FRAMES), statistics(FRAMES), 40, 3, 10)
    assert found.stays and max(found.deviation.values()) < 0.05


def test_a_fading_dream_leaves_when_its_window_does() -> None:
    fading = FRAMES.copy()
    fading[:, 21:] //= 2
    found = judge(windows(fading), statistics(FRAMES), 40, 3, 10)
    assert found.left_at == 20 and found.deviation["colour mean"] > 0.4


def test_a_frozen_dream_has_lost_its_motion_and_nothing_else() -> None:
    found = judge(windows(np.repeat(FRAMES[:, :1], 41, axis=1)), statistics(FRAMES), 40, 3, 10)
    assert found.deviation["motion"] == 1 and found.left_at == 0
    assert found.deviation["colour mean"] < 0.1
