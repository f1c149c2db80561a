"""A served world as a Gymnasium environment: what trains or tests a policy needs an address and no accelerator."""

from typing import Any

import gymnasium
import numpy as np
from jaxtyping import UInt8

from wm_jax.client.session import Session, connect


class RemoteWorldEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Held keys in, one frame out, over a stepped session.

    A world dreams pictures and nothing else: the reward is 0, nothing terminates, and an episode is truncated after
    `max_steps`. What a policy is rewarded for is up to a wrapper.

    Args:
      url: A server: `python serve.py worlds/coinrun`.
      max_steps: Length of an episode; None: no end.
      auth: The server's secret, if it has one.
      render_mode: "rgb_array" or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(
        self, url: str, max_steps: int | None = None, auth: str | None = None, render_mode: str | None = None
    ) -> None:
        self._session: Session = connect(url, auth=auth)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": self._session.fps}
        self.observation_space = gymnasium.spaces.Box(0, 255, self._session.shape, np.uint8)
        self.action_space = gymnasium.spaces.MultiBinary(len(self._session.codes))
        self._max_steps = max_steps
        self._steps = 0
        self._frame: UInt8[np.ndarray, "h w 3"] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first frame of a new dream: `seed`'s, or that of a random one."""
        super().reset(seed=seed)
        self._steps = 0
        self._session.reset(int(self.np_random.integers(2**32)) if seed is None else seed % 2**32)
        return self._show(())

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One frame under these keys, as booleans in the order of `Session.codes`."""
        held = [code for code, is_held in zip(self._session.codes, action, strict=True) if is_held]
        frame, info = self._show(held)
        self._steps += 1
        return frame, 0.0, False, self._max_steps is not None and self._steps >= self._max_steps, info

    def render(self) -> Any:
        """The newest frame."""
        return self._frame if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Ends the session."""
        self._session.close()

    def _show(self, held: Any) -> tuple[np.ndarray, dict[str, Any]]:
        frame = self._frame = self._session.step(held)[0]
        return frame, {}
