"""Who plays while we record: random players, the game's own scripted runner, and one that changes between the two."""

from typing import Any

import numpy as np

from wm_jax.envs.base import Game, Policy

MIX = {"uniform": 0.08, "sticky": 0.27, "runner": 0.35, "mixed": 0.30}
"""Share of the episodes each policy plays (of the frames it depends: who plays well may play long). Random play alone
never gets far enough to show what a game is; a runner alone never shows what happens when the wrong key is held there."""

_MEAN_HOLD = 8
_MEAN_TURN = 40


def make_policy(name: str, game: Game, rng: np.random.Generator) -> Policy:
    """A fresh player for one episode: "uniform", "sticky", "runner" or "mixed"."""
    if name == "uniform":
        return _uniform(game, rng)
    if name == "sticky":
        return _Sticky(game, rng)
    if name == "runner":
        return _runner(game, rng)
    if name == "mixed":
        return _Mixed(game, rng)
    raise ValueError(f"no policy is called {name!r}; there are {', '.join(MIX)}")


def _uniform(game: Game, rng: np.random.Generator) -> Policy:
    combos = [game.hold(*codes) for codes in game.combos]
    return lambda frame, info: combos[int(rng.integers(len(combos)))]


def _runner(game: Game, rng: np.random.Generator) -> Policy:
    """The game's own; of a game that brings none, the sticky player."""
    return _Sticky(game, rng) if type(game).runner is Game.runner else game.runner(rng)


class _Sticky:
    """Holds a random combination for a while (8 frames on average), then another."""

    def __init__(self, game: Game, rng: np.random.Generator):
        self.rng = rng
        self.combos = [game.hold(*codes) for codes in game.combos]
        weights = np.array(list(game.combos.values()))
        self.chances = weights / weights.sum()
        self.keys, self.left = self.combos[0], 0

    def __call__(self, frame: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        if self.left <= 0:
            self.keys = self.combos[int(self.rng.choice(len(self.combos), p=self.chances))]
            self.left = int(self.rng.geometric(1 / _MEAN_HOLD))
        self.left -= 1
        return self.keys


class _Mixed:
    """The runner and the sticky player take turns (40 frames on average), so that random keys are held everywhere."""

    def __init__(self, game: Game, rng: np.random.Generator):
        self.rng = rng
        self.players = [_runner(game, rng), _Sticky(game, rng)]
        self.now, self.left = 1, 0

    def __call__(self, frame: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        if self.left <= 0:
            self.now, self.left = 1 - self.now, int(self.rng.geometric(1 / _MEAN_TURN))
        self.left -= 1
        return self.players[self.now](frame, info)
