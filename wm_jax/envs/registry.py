"""Finds a game by its name, without importing the libraries of the others; naming them imports not even Gymnasium."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wm_jax.envs.base import Game, Split

_GAMES = {
    "coinrun": ("wm_jax.envs.coinrun", "CoinRun", "procgen"),
    "doom": ("wm_jax.envs.doom", "Doom", "vizdoom"),
    "breakout": ("wm_jax.envs.breakout", "Breakout", "ale_py"),
    "bouncing_ball": ("wm_jax.envs.bouncing_ball", "BouncingBall", "jax"),
}
NAMES = tuple(_GAMES)


class MissingGameError(ImportError):
    """The library of a game is not installed; the message says how to install it."""


def is_installed(name: str) -> bool:
    """Whether the library that the game `name` needs can be found. Imports nothing heavy."""
    return importlib.util.find_spec(_known(name)[2]) is not None


def make(name: str, *, split: "Split" = "train", **options: Any) -> "Game":
    """Makes the game `name`, playing the levels of `split`.

    Raises:
      ValueError: there is no such game, or no such split.
      MissingGameError: its library is not installed; says how to install it.
    """
    module, kind, library = _known(name)
    if not is_installed(name):
        raise MissingGameError(
            f"the game {name!r} needs the library {library!r}, which is not installed: "
            "run `make games`, or uv pip install -e '.[games]'"
        )
    return getattr(importlib.import_module(module), kind)(split=split, **options)


def held_out(name: str) -> str:
    """What the held-out levels of a game are, in words; imports the adaptor, not the game's library."""
    module, kind, _ = _known(name)
    return getattr(importlib.import_module(module), kind).held_out


def _known(name: str) -> tuple[str, str, str]:
    if name not in _GAMES:
        raise ValueError(f"no game is called {name!r}; there are {', '.join(NAMES)}")
    return _GAMES[name]
