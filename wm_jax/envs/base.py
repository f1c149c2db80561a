"""What every game is here: a Gymnasium environment whose action is the set of held keys.

`step(keys)` shows the frame those keys led to. A game's levels are two disjoint sets, "train" and "held_out";
`info["level"]` names the level being played, and the same level with the same keys gives the same frames.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from jaxtyping import Bool, UInt8

from wm_jax.types import ControlSpace, KeyBinding

Split = Literal["train", "held_out"]
Frame = UInt8[np.ndarray, "h w 3"]
Keys = Bool[np.ndarray, "keys"]
Policy = Callable[[Frame, dict[str, Any]], Keys]
"""Chooses the keys for the next frame from the last frame and its info; may remember what it did."""


class Game(gymnasium.Env[np.ndarray, np.ndarray]):
    """A game played by holding keys.

    `reset(seed=..., options={"level": n})` starts a level: the one asked for, else one drawn from the split's.
    `step` may set `info["stale"]`: the game showed no frame for that step (it ended), the observation repeats the last.

    Attributes:
      controls: What can be held; column i of an action is `controls.keys[i]`.
      combos: Sensible sets of key codes to hold together, with how likely a sticky random player picks each.
      held_out: What the held-out levels are, in words, for the page of a world.
      split: Which levels are played.
    """

    controls: ClassVar[ControlSpace]
    combos: ClassVar[dict[tuple[str, ...], float]]
    held_out: ClassVar[str] = "levels that training never sees"
    split: Split

    def __init__(self, image: tuple[int, int], fps: float, split: Split, render_mode: str | None = None):
        if split not in ("train", "held_out"):
            raise ValueError(f'split is {split!r}; a game has the splits "train" and "held_out"')
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}
        self.render_mode = render_mode
        self.split = split
        self.observation_space = gymnasium.spaces.Box(0, 255, (*image, 3), np.uint8)
        self.action_space = gymnasium.spaces.MultiBinary(len(self.controls.keys))
        self._frame: np.ndarray | None = None

    def render(self) -> Any:
        """The current frame `[h w 3]`, if the game was made with `render_mode="rgb_array"`."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() without a render_mode shows nothing; make(..., render_mode='rgb_array')")
            return None
        return self._frame

    def hold(self, *codes: str) -> Keys:
        """The action that holds the keys with these codes."""
        known = self.controls.codes
        if strange := set(codes) - set(known):
            raise ValueError(f"unknown keys {sorted(strange)}; this game has {list(known)}")
        return np.array([code in codes for code in known])

    def held(self, keys: Any) -> set[str]:
        """The codes held in an action; refuses an action of another width."""
        keys = np.asarray(keys).astype(bool)
        if keys.shape != (len(self.controls.keys),):
            raise ValueError(
                f"keys have shape {keys.shape}, this game has {len(self.controls.keys)} keys: "
                f"{', '.join(self.controls.codes)}"
            )
        return {code for code, down in zip(self.controls.codes, keys, strict=True) if down}

    def choose_level(self, options: dict[str, Any] | None, low: int, high: int) -> int:
        """The level asked for in `options["level"]`, else one drawn from [low, high)."""
        if not options or "level" not in options:
            return int(self.np_random.integers(low, high))
        level = int(options["level"])
        if not low <= level < high:
            raise ValueError(f"level {level} is not one of the {self.split} levels {low}..{high - 1}")
        return level

    def runner(self, rng: np.random.Generator) -> Policy:
        """A scripted player that gets somewhere; a fresh one for each episode. Without one the sticky player takes its place."""
        raise NotImplementedError


def keys_of(*bindings: tuple[str, str]) -> ControlSpace:
    """A control space from (code, label) pairs."""
    return ControlSpace(tuple(KeyBinding(code, label) for code, label in bindings))
