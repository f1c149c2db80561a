"""CoinRun, the procedurally generated platformer of Procgen (MIT), as it comes: 64x64, hard levels, backgrounds.

Each reset builds the level from its number alone. Held-out levels are 0..9,999, training has all from 100,000 on.
"""

import contextlib
import io
from typing import Any, ClassVar

import gymnasium
import numpy as np

from wm_jax.envs.base import Frame, Game, Keys, Policy, Split, keys_of

LEVELS: dict[str, tuple[int, int]] = {"train": (100_000, 2**31 - 2), "held_out": (0, 10_000)}
_STANDING = 4


class CoinRun(Game):
    """Run right, jump over what would kill you, reach the coin. An episode ends by coin, death or after 1000 frames."""

    controls = keys_of(("ArrowLeft", "left"), ("ArrowRight", "right"), ("ArrowUp", "jump"), ("ArrowDown", "down"))
    combos: ClassVar[dict[tuple[str, ...], float]] = {
        (): 1.0,
        ("ArrowRight",): 3.0,
        ("ArrowRight", "ArrowUp"): 4.0,
        ("ArrowLeft",): 1.5,
        ("ArrowLeft", "ArrowUp"): 1.5,
        ("ArrowUp",): 1.0,
        ("ArrowDown",): 0.4,
        ("ArrowRight", "ArrowDown"): 0.3,
        ("ArrowLeft", "ArrowDown"): 0.3,
    }

    def __init__(self, *, split: Split = "train", render_mode: str | None = None):
        super().__init__((64, 64), 30.0, split, render_mode)
        # Procgen imports the unmaintained gym, which prints an advertisement on stderr.
        with contextlib.redirect_stderr(io.StringIO()):
            import procgen

        self._make = procgen.ProcgenGym3Env
        self._game: Any = None
        self._level = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        gymnasium.Env.reset(self, seed=seed)
        self._level = self.choose_level(options, *LEVELS[self.split])
        self.close()
        # One level only, so that the level's number alone decides all that happens in it.
        self._game = self._make(
            num=1, env_name="coinrun", distribution_mode="hard", start_level=self._level, num_levels=1, rand_seed=0,
            num_threads=0,
        )  # fmt: skip
        self._frame = self._observe()[1]
        return self._frame, {"level": self._level}

    def step(self, action: Keys) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        held = self.held(action)
        if self._game is None:
            raise gymnasium.error.ResetNeeded("the CoinRun level has ended or was never started: call reset()")
        self._game.act(np.array([self._movement(held)]))
        reward, frame, ended = self._observe()
        info: dict[str, Any] = {"level": self._level, "stale": ended}
        if ended:
            # Procgen never shows the last frame of a level: what it shows is already the first of the next.
            self.close()
            assert self._frame is not None
            return self._frame, reward, True, False, info
        self._frame = frame
        return frame, reward, False, False, info

    def close(self) -> None:
        if self._game is not None:
            self._game.close()
            self._game = None

    def foresee(self, keys: Keys, count: int, coast: int) -> tuple[int, float]:
        """Tries holding `keys` for `count` frames and nothing for `coast` more, then takes it all back.

        Returns:
          How many frames the level would go on (all of them if nothing ends it), and the reward on the way.
        """
        saved = self._game.get_state()
        plan = [self._movement(self.held(keys))] * count + [_STANDING] * coast
        for done, movement in enumerate(plan):
            self._game.act(np.array([movement]))
            reward, _, ended = self._observe()
            if ended:
                self._game.set_state(saved)
                return done, reward
        self._game.set_state(saved)
        return len(plan), 0.0

    def runner(self, rng: np.random.Generator) -> Policy:
        """Runs right and jumps, looks ahead so as not to die; sometimes pauses or turns back."""
        return _Runner(self, rng)

    @staticmethod
    def _movement(held: set[str]) -> int:
        """Procgen's nine movements: left-down, left, left-up, down, nothing, up, right-down, right, right-up."""
        right = ("ArrowRight" in held) - ("ArrowLeft" in held)
        up = ("ArrowUp" in held) - ("ArrowDown" in held)
        return _STANDING + 3 * right + up

    def _observe(self) -> tuple[float, np.ndarray, bool]:
        reward, seen, first = self._game.observe()
        return float(reward[0]), np.array(seen["rgb"][0]), bool(first[0])


class _Runner:
    """Holds one combination for a few frames, then thinks again; takes the first of several ideas that it survives."""

    ideas = 8
    coast = 14

    def __init__(self, game: CoinRun, rng: np.random.Generator):
        self.game, self.rng = game, rng
        self.keys, self.left = game.hold(), 0
        self.jump_rate = rng.uniform(0.3, 0.8)
        self.before: np.ndarray | None = None
        self.still = 0

    def __call__(self, frame: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        if self.before is not None:
            moved = np.abs(frame.astype(np.int16) - self.before).mean()
            self.still = self.still + 1 if moved < 1.5 else 0
        self.before = frame.astype(np.int16)
        if self.left <= 0 or self.still > 6:
            self.keys, self.left = self._decide()
            self.still = 0
        self.left -= 1
        return self.keys

    def _decide(self) -> tuple[np.ndarray, int]:
        best, best_score = (self.game.hold(), 1), -1.0
        for _ in range(self.ideas):
            keys, count = self._idea()
            survived, reward = self.game.foresee(keys, count, self.coast)
            if survived == count + self.coast or reward > 0:
                return keys, count
            if survived > best_score:
                best, best_score = (keys, count), survived
        return best

    def _idea(self) -> tuple[np.ndarray, int]:
        rng, hold = self.rng, self.game.hold
        if self.still > 6:
            # Something is in the way: jump over it, or step back to take a run at it.
            if rng.random() < 0.3:
                return hold("ArrowLeft"), int(rng.integers(4, 12))
            return hold("ArrowRight", "ArrowUp"), int(rng.integers(6, 20))
        dice = rng.random()
        if dice < 0.05:
            return hold(), int(rng.integers(3, 12))
        if dice < 0.12:
            return hold("ArrowLeft", *(["ArrowUp"] if rng.random() < 0.3 else [])), int(rng.integers(4, 16))
        if dice < 0.15:
            return hold("ArrowUp"), int(rng.integers(4, 12))
        if rng.random() < self.jump_rate:
            return hold("ArrowRight", "ArrowUp"), int(rng.integers(3, 16))
        return hold("ArrowRight"), int(rng.integers(3, 14))
