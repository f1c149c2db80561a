"""Laws of every game: Gymnasium's own checker passes, levels decide what is seen, keys decide what follows."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from wm_jax import envs
from wm_jax.envs.base import Game


def play(game: Game, level: int, keys: np.ndarray) -> np.ndarray:
    """The frames of a level under fixed keys, to its end at most."""
    frame, _ = game.reset(options={"level": level})
    frames = [frame]
    for held in keys:
        frame, _, ended, _, _ = game.step(held)
        frames.append(frame)
        if ended:
            break
    return np.stack(frames)


def random_keys(game: Game, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    combos = [game.hold(*codes) for codes in game.combos]
    return np.repeat([combos[i] for i in rng.integers(len(combos), size=count // 6 + 1)], 6, axis=0)[:count]


@pytest.fixture(scope="module", params=envs.NAMES)
def game(request: pytest.FixtureRequest):
    made = envs.make(request.param, render_mode="rgb_array")
    yield made
    made.close()


@pytest.mark.filterwarnings("ignore:.*alternative render modes:UserWarning")
def test_gymnasium_finds_nothing_wrong(game: Game):
    check_env(game)


def test_spaces_and_clock_fit_the_controls(game: Game):
    assert isinstance(game.action_space, gymnasium.spaces.MultiBinary)
    assert game.action_space.n == len(game.controls.keys)
    assert game.observation_space.dtype == np.uint8
    assert 10 <= game.metadata["render_fps"] <= 60
    frame, info = game.reset(seed=1)
    assert game.observation_space.contains(frame) and isinstance(info["level"], int)
    assert np.array_equal(game.render(), frame)


def test_a_level_and_keys_decide_every_frame(game: Game):
    keys = random_keys(game, 24)
    level = 100_001
    first = play(game, level, keys)
    play(game, level + 2, keys)
    assert np.array_equal(play(game, level, keys), first)


def test_levels_differ(game: Game):
    assert len({game.reset(seed=seed)[0].tobytes() for seed in range(4)}) > 1


def test_the_same_seed_starts_the_same_level(game: Game):
    assert game.reset(seed=7)[1]["level"] == game.reset(seed=7)[1]["level"] != game.reset(seed=8)[1]["level"]


def test_keys_change_what_is_seen(game: Game):
    left, right = (np.repeat([game.hold(code)], 12, axis=0) for code in ("ArrowLeft", "ArrowRight"))
    assert not np.array_equal(play(game, 100_001, left)[-1], play(game, 100_001, right)[-1])


def test_held_out_levels_are_never_training_levels(game: Game, request: pytest.FixtureRequest):
    name = request.node.callspec.params["game"]
    held_out = envs.make(name, split="held_out")
    theirs = {held_out.reset(seed=seed)[1]["level"] for seed in range(3)}
    for level in theirs:
        with pytest.raises(ValueError, match="is not one of the train levels"):
            game.reset(options={"level": level})
    held_out.close()


def test_a_wrong_number_of_keys_is_refused_with_both_numbers(game: Game):
    game.reset(seed=0)
    with pytest.raises(ValueError, match=rf"\(17,\).*{len(game.controls.keys)} keys"):
        game.step(np.zeros(17, bool))


def test_an_unknown_key_is_refused_by_name(game: Game):
    with pytest.raises(ValueError, match=r"unknown keys \['F13'\]"):
        game.hold("F13")


def test_the_runner_plays_legal_keys_and_gets_somewhere(game: Game):
    frame, info = game.reset(seed=3)
    policy, first = game.runner(np.random.default_rng(0)), frame.astype(int)
    for _ in range(40):
        keys = policy(frame, info)
        assert game.action_space.contains(keys.astype(np.int8))
        frame, _, ended, _, info = game.step(keys)
        if ended:
            break
    assert np.abs(frame - first).mean() > 0
