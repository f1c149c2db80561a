"""Breakout of the Atari 2600, through ale-py. That library is GPL-2: an optional extra, imported only for this game.

The play field (without the score) is averaged to 64x64; one frame is two of the console's, 30 a second. Chance is off:
a level is how long the console waits before the first frame, and where the paddle goes meanwhile.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from PIL import Image

from wm_jax.envs.base import Frame, Game, Keys, Policy, Split, keys_of

LEVELS: dict[str, tuple[int, int]] = {"train": (100_000, 2**31 - 2), "held_out": (0, 10_000)}
CONSOLE_FRAMES = 2
_FIELD = slice(32, 196)
_PADDLE, _BALL_X, _BALL_Y = 72, 99, 101


class Breakout(Game):
    """Keep the ball in play and break the wall. Space serves; an episode ends when five balls are lost."""

    controls = keys_of(("ArrowLeft", "left"), ("ArrowRight", "right"), ("Space", "serve"))
    combos: ClassVar[dict[tuple[str, ...], float]] = {
        (): 1.5,
        ("ArrowLeft",): 2.0,
        ("ArrowRight",): 2.0,
        ("Space",): 1.0,
    }

    def __init__(self, *, split: Split = "train", render_mode: str | None = None):
        super().__init__((64, 64), 60 / CONSOLE_FRAMES, split, render_mode)
        import ale_py
        from ale_py import roms

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._console = ale_py.ALEInterface()
        self._console.setFloat("repeat_action_probability", 0.0)
        self._console.loadROM(str(roms.get_rom_path("breakout")))
        action = ale_py.Action
        self._still, self._serve, self._left, self._right = action.NOOP, action.FIRE, action.LEFT, action.RIGHT
        self._level = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        gymnasium.Env.reset(self, seed=seed)
        self._level = self.choose_level(options, *LEVELS[self.split])
        self._console.reset_game()
        chance = np.random.default_rng(self._level)
        way = self._left if chance.random() < 0.5 else self._right
        for button, count in ((self._still, chance.integers(0, 60)), (way, chance.integers(0, 30))):
            for _ in range(int(count)):
                self._console.act(button)
        self._frame = self._see()
        return self._frame, self._info()

    def step(self, action: Keys) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        held = self.held(action)
        if self._level < 0:
            raise gymnasium.error.ResetNeeded("no game is being played: call reset()")
        # The console has no button for serving and steering at once that does both: serving comes first.
        button = self._serve if "Space" in held else self._steer(held)
        reward = sum(self._console.act(button) for _ in range(CONSOLE_FRAMES))
        self._frame = self._see()
        return self._frame, float(reward), bool(self._console.game_over()), False, self._info()

    def runner(self, rng: np.random.Generator) -> Policy:
        """Follows the ball, not quite exactly, and serves when there is none."""
        aim = float(rng.uniform(-6, 6))

        def follow(frame: np.ndarray, info: dict[str, Any]) -> np.ndarray:
            nonlocal aim
            if rng.random() < 0.05:
                aim = float(rng.uniform(-9, 9))
            if info["ball"][1] == 0:
                return self.hold("Space") if rng.random() < 0.2 else self.hold()
            gap = info["ball"][0] - info["paddle"] - 8 + aim
            return self.hold("ArrowLeft") if gap < -4 else self.hold("ArrowRight") if gap > 4 else self.hold()

        return follow

    def _steer(self, held: set[str]) -> Any:
        way = ("ArrowRight" in held) - ("ArrowLeft" in held)
        return (self._left, self._still, self._right)[way + 1]

    def _see(self) -> np.ndarray:
        field = Image.fromarray(self._console.getScreenRGB()[_FIELD])
        return np.array(field.resize((64, 64), Image.Resampling.BOX))

    def _info(self) -> dict[str, Any]:
        memory = self._console.getRAM()
        ball = (int(memory[_BALL_X]), int(memory[_BALL_Y]))
        return {"level": self._level, "lives": int(self._console.lives()), "ball": ball, "paddle": int(memory[_PADDLE])}
