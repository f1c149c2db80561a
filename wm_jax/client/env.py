"""A served world as a Gymnasium environment: what trains or tests a policy needs an address and no accelerator."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import UInt8

from wm_jax.client.session import Session, connect

STARTS = ("prompt", "image")
"""What `reset` takes as options."""


class RemoteWorldEnv(gymnasium.Env[np.ndarray, Any]):
    """Held keys in, one frame out, over a stepped session.

    A world dreams pictures and nothing else: the reward is 0, nothing terminates, and an episode is truncated after
    `max_steps`. What a policy is rewarded for is up to a wrapper.

    An action is `MultiBinary`, a boolean a key in the order of `Session.codes`. A world with a mouse takes a `Dict` of
    `keys`, the same, and `mouse`: how far it moves right and down in this frame, in heights of the frame, -1 to 1. An
    observation is a frame, uint8 `[h w 3]`. `info` has `frame_id`, counted from 0 at `reset`, so that equal episodes are
    equal, and `session_id`, by which the server knows it.

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
        self._url, self._auth = url, auth
        self._session: Session = connect(url, auth=auth)
        self._is_usual = True
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": self._session.fps}
        self.observation_space = spaces.Box(0, 255, self._session.shape, np.uint8)
        keys = spaces.MultiBinary(len(self._session.codes))
        mouse = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Dict(keys=keys, mouse=mouse) if self._session.has_mouse else keys
        self._max_steps = max_steps
        self._steps = 0
        self._frame: UInt8[np.ndarray, "h w 3"] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first frame of a new dream: `seed`'s, or that of a random one.

        Args:
          options: `prompt`, the number of a scene that ships with the world, or `image`, a first frame as uint8
            `[h w 3]`: this dream begins with it, in a session of its own.

        Raises:
          ValueError: another option.
          ServerError: the world has no such scene, or takes no such image.
        """
        super().reset(seed=seed)
        start = options or {}
        if unknown := set(start).difference(STARTS):
            raise ValueError(f"reset has no option {', '.join(sorted(unknown))}; there are {', '.join(STARTS)}")
        self._steps = 0
        self._begin(int(self.np_random.integers(2**32)) if seed is None else seed % 2**32, start)
        return self._show((), None)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One frame under this action."""
        keys, mouse = (action["keys"], action["mouse"]) if self._session.has_mouse else (action, None)
        held = [code for code, is_held in zip(self._session.codes, keys, strict=True) if is_held]
        self._steps += 1
        frame, info = self._show(held, None if mouse is None else (float(mouse[0]), float(mouse[1])))
        return frame, 0.0, False, self._max_steps is not None and self._steps >= self._max_steps, info

    def render(self) -> Any:
        """The newest frame."""
        return self._frame if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Ends the session."""
        self._session.close()

    def _begin(self, seed: int, start: dict[str, Any]) -> None:
        """A session knows one start: another one needs a session of its own, in the slot of this."""
        if self._is_usual and not start:
            self._session.reset(seed)
            return
        self._session.close()
        self._is_usual = False  # also where the server refuses the start: then there is no session
        self._session = connect(self._url, seed=seed, auth=self._auth, **start)
        self._is_usual = not start

    def _show(self, held: Any, mouse: tuple[float, float] | None) -> tuple[np.ndarray, dict[str, Any]]:
        frame = self._frame = self._session.step(held, mouse=mouse)[0]
        return frame, {"frame_id": self._steps, "session_id": self._session.id}
