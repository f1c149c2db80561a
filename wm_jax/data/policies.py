"""Who plays while we record: a uniform random player, a sticky one, and the game's own scripted runner."""

from typing import Any

import numpy as np

from wm_jax.envs import Game, Policy

MIX = {"uniform": 0.2, "sticky": 0.5, "runner": 0.3}
"""Share of the episodes each policy plays. Random play alone never gets far enough to show what the keys do."""

_MEAN_HOLD = 8


def make_policy(name: str, game: Game, rng: np.random.Generator) -> Policy:
    """A fresh player for one episode: "uniform", "sticky" or "runner"."""
    if name == "uniform":
        return _uniform(game, rng)
    if name == "sticky":
        return _Sticky(game, rng)
    if name == "runner":
        return game.runner(rng)
    raise ValueError(f"no policy is called {name!r}; there are {', '.join(MIX)}")


def _uniform(game: Game, rng: np.random.Generator) -> Policy:
    combos = [game.hold(*codes) for codes in game.combos]
    return lambda frame, info: combos[int(rng.integers(len(combos)))]


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
