"""Real games come and go while the device thread still holds their turns."""

import sys
import threading
import types
from typing import Any, cast

import numpy as np
import pytest

from wm_jax.serving import real
from wm_jax.serving.real import Arcade
from wm_jax.serving.session import Session, Turn

TURN = types.SimpleNamespace(keys=None, opening=None)


class Player:
    """What the arcade knows of a session."""

    failure = None

    def __init__(self, number: int):
        self.id = str(number)


class Still:
    """A game that counts how many of it are open."""

    open = 0

    def __init__(self, name: str):
        type(self).open += 1

    def play(self, keys: Any, opening: Any) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)

    def close(self) -> None:
        type(self).open -= 1


def test_a_turn_that_comes_late_neither_fails_nor_opens_a_game_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(real, "RealGame", Still)
    monkeypatch.setattr(real, "is_wanted", lambda session, turn: False)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    arcade, failures, turn = Arcade("still", lambda frames: None), [], cast(Turn, TURN)
    try:
        for number in range(200):
            player = cast(Session, Player(number))

            def device(player: Session = player) -> None:
                try:
                    for _ in range(20):
                        arcade.play(player, turn)
                except RuntimeError as error:
                    failures.append(error)

            arcade.play(player, turn)
            thread = threading.Thread(target=device)
            thread.start()
            arcade.leave(player)
            thread.join()
    finally:
        sys.setswitchinterval(interval)
        arcade.close()
    assert not failures and not arcade._seats


def test_one_session_keeps_its_game(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(real, "RealGame", Still)
    monkeypatch.setattr(real, "is_wanted", lambda session, turn: False)
    Still.open, player = 0, cast(Session, Player(1))
    arcade, turn = Arcade("still", lambda frames: None), cast(Turn, TURN)
    for _ in range(5):
        arcade.play(player, turn)
    assert Still.open == 1
    arcade.close()
    assert Still.open == 0
