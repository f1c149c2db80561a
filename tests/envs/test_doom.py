"""Laws of Doom: walking moves, turning turns by the stated angle, nothing is left where the game was started."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest

from wm_jax import envs
from wm_jax.envs.doom import LEVELS, TICS_PER_FRAME, TURN_PER_TIC, Doom


@pytest.fixture(scope="module")
def game():
    made = envs.make("doom")
    assert isinstance(made, Doom)
    yield made
    made.close()


def test_stepping_before_a_reset_is_refused():
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        envs.make("doom").step(np.zeros(7, bool))


def test_turning_turns_by_the_stated_angle(game: Doom):
    for code, sign in (("ArrowRight", -1), ("ArrowLeft", 1)):
        _, info = game.reset(options={"level": 100_001})
        before = info["position"][2]
        _, _, _, _, info = game.step(game.hold(code))
        turned = (info["position"][2] - before + 180) % 360 - 180
        assert turned == pytest.approx(sign * TURN_PER_TIC * TICS_PER_FRAME, abs=0.1)


def test_forward_and_back_go_opposite_ways(game: Doom):
    ways = []
    for code in ("KeyW", "KeyS"):
        _, info = game.reset(options={"level": 100_001})
        start = np.array(info["position"][:2])
        for _ in range(8):
            _, _, _, _, info = game.step(game.hold(code))
        ways.append(np.array(info["position"][:2]) - start)
    assert np.linalg.norm(ways[0]) > 10 and float(ways[0] @ ways[1]) < 0


def test_held_out_levels_are_other_walks_through_the_same_arena(game: Doom):
    (low, high), (held_low, held_high) = LEVELS["train"], LEVELS["held_out"]
    assert held_high < low or high < held_low
    starts = [game.reset(options={"level": level})[1]["position"] for level in range(low, low + 12)]
    assert len(set(starts)) == 12 and len({place[:2] for place in starts}) > 3


def test_a_level_is_the_same_whatever_was_played_before(game: Doom):
    def walk() -> np.ndarray:
        first, _ = game.reset(options={"level": 100_003})
        return np.stack([first, *(game.step(game.hold("KeyW", "ArrowLeft", "Space"))[0] for _ in range(30))])

    before = walk()
    game.reset(options={"level": 100_004})
    game.step(game.hold("Space"))
    np.testing.assert_array_equal(walk(), before)


def test_nothing_is_left_where_the_game_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    made = envs.make("doom")
    for seed in range(2):
        made.reset(seed=seed)
    made.close()
    assert list(tmp_path.iterdir()) == []


def test_nothing_ends_a_walk(game: Doom):
    frame, _ = game.reset(options={"level": 762567951})
    chance = np.random.default_rng(0)
    combos = [game.hold(*codes) for codes in game.combos]
    for _ in range(600):
        frame, _, ended, _, _ = game.step(combos[int(chance.integers(len(combos)))])
        assert not ended
    assert game.observation_space.contains(frame)
