"""Laws of who plays: legal keys, held for a while, from the seed alone."""

import numpy as np
import pytest

from wm_jax.data.policies import MIX, make_policy
from wm_jax.envs import make

GAME = make("bouncing_ball")


def played(name: str, seed: int, count: int = 400) -> np.ndarray:
    frame, info = GAME.reset(options={"level": 1})
    policy = make_policy(name, GAME, np.random.default_rng(seed))
    return np.stack([policy(frame, info) for _ in range(count)])


@pytest.mark.parametrize("name", MIX)
def test_a_policy_plays_sensible_keys_from_its_seed_alone(name: str):
    sensible = {GAME.hold(*codes).tobytes() for codes in GAME.combos}
    keys = played(name, 0)
    assert {row.tobytes() for row in keys} <= sensible
    assert np.array_equal(keys, played(name, 0)) and not np.array_equal(keys, played(name, 1))


def test_sticky_keys_are_held_and_uniform_keys_are_not():
    changes = {name: (np.diff(played(name, 0, 2000).astype(int), axis=0) != 0).any(1).mean() for name in MIX}
    assert 0.07 < changes["sticky"] < 0.18 and changes["uniform"] > 0.8


def test_the_mix_is_a_distribution():
    assert np.isclose(sum(MIX.values()), 1)


def test_an_unknown_policy_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'expert'; there are uniform, sticky, runner, mixed"):
        make_policy("expert", GAME, np.random.default_rng(0))
