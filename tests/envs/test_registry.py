"""Laws of finding a game by name."""

import subprocess
import sys

import pytest

from wm_jax import envs
from wm_jax.envs import registry


def test_an_unknown_game_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no game is called 'pong'; there are coinrun, doom"):
        envs.make("pong")


def test_a_missing_library_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry._GAMES, "coinrun", ("wm_jax.envs.coinrun", "CoinRun", "no_such_library"))
    assert not envs.is_installed("coinrun")
    with pytest.raises(envs.MissingGameError, match=r"no_such_library.*pip install -e '.\[games\]'"):
        envs.make("coinrun")


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'test'"):
        envs.make("bouncing_ball", split="test")  # type: ignore[arg-type]


def test_asking_what_is_installed_imports_no_game():
    code = ("import sys; from wm_jax import envs; print([envs.is_installed(name) for name in envs.NAMES]); "
            "print(sorted({'procgen', 'vizdoom', 'ale_py', 'gym'} & set(sys.modules)))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[True, True, True, True]", "[]"]
