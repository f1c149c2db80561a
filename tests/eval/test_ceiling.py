"""What copying could reach: what was seen can be had at any place, what was not cannot."""

import numpy as np

from wm_jax.eval.ceiling import CeilingConfig, copied_error, measure


def test_what_the_prompt_shows_elsewhere_is_copied_without_error() -> None:
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    prompt = np.stack([wide[:, 3:35], wide[:, 9:41]])
    assert float(copied_error(prompt, wide[:, 6:38], 8)) < 1.0  # each block is inside one of the two
    new = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert float(copied_error(prompt, new, 8)) > 1000.0


def test_it_is_never_below_repeating_the_last_frame(tiny, held_out) -> None:
    rows = measure(CeilingConfig(tiny, episodes=held_out, clips=6, horizons=(1, 4), blocks=(8, 16)))
    assert [row[0] for row in rows] == ["1", "4"]
    for _, clips, repeat, small, large in rows:
        assert int(clips) == 6 and float(repeat) <= float(large) + 1e-3 <= float(small) + 2e-3
