"""Laws of Breakout: nothing flies before the serve, the paddle goes where it is told."""

import pytest

from wm_jax import envs
from wm_jax.envs.breakout import Breakout


@pytest.fixture(scope="module")
def game():
    made = envs.make("breakout")
    assert isinstance(made, Breakout)
    return made


def test_the_ball_waits_for_the_serve(game: Breakout):
    game.reset(options={"level": 100_001})
    for _ in range(10):
        *_, info = game.step(game.hold())
    assert info["ball"][1] == 0
    for _ in range(10):
        *_, info = game.step(game.hold("Space"))
    assert info["ball"][1] > 0


def test_the_paddle_goes_where_it_is_told(game: Breakout):
    for code, sign in (("ArrowLeft", -1), ("ArrowRight", 1)):
        _, info = game.reset(options={"level": 100_001})
        for _ in range(8):
            *_, start = game.step(game.hold("ArrowLeft" if sign > 0 else "ArrowRight"))
        for _ in range(8):
            *_, info = game.step(game.hold(code))
        assert (info["paddle"] - start["paddle"]) * sign > 0
