"""Laws of CoinRun: the nine movements, the missing last frame, looking ahead without moving."""

import gymnasium
import numpy as np
import pytest

from wm_jax import envs
from wm_jax.envs.coinrun import CoinRun


@pytest.fixture(scope="module")
def game():
    made = envs.make("coinrun")
    assert isinstance(made, CoinRun)
    yield made
    made.close()


def test_opposite_keys_cancel():
    both = CoinRun._movement({"ArrowLeft", "ArrowRight"})
    assert both == CoinRun._movement(set()) == CoinRun._movement({"ArrowUp", "ArrowDown"}) == 4


def test_every_movement_of_procgen_can_be_held():
    held = [{x, y} for x in ("ArrowLeft", "", "ArrowRight") for y in ("ArrowDown", "", "ArrowUp")]
    assert [CoinRun._movement(keys) for keys in held] == list(range(9))


def test_the_end_of_a_level_repeats_its_last_frame_and_says_so(game: CoinRun):
    frame, info = game.reset(options={"level": 100_007})
    policy = game.runner(np.random.default_rng(1))
    ended = False
    for _ in range(1100):
        before = frame
        frame, _, ended, _, info = game.step(policy(frame, info))
        assert info["stale"] == ended and info["level"] == 100_007
        if ended:
            assert np.array_equal(frame, before)
            break
    assert ended
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        game.step(game.hold())


def test_looking_ahead_changes_nothing(game: CoinRun):
    keys = [game.hold("ArrowRight"), game.hold("ArrowRight", "ArrowUp")] * 6
    seen = []
    for look in (False, True):
        game.reset(options={"level": 100_003})
        frames = []
        for held in keys:
            if look:
                game.foresee(game.hold("ArrowLeft"), 5, 5)
            frames.append(game.step(held)[0])
        seen.append(np.stack(frames))
    assert np.array_equal(*seen)
