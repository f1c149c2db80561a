"""Noise drawn on the host, for accelerators whose compiler has no generator."""

import numpy as np
from jaxtyping import Bool

from wm_jax.world.step import Noise


class HostNoise:
    """Each slot's own stream, begun anew with each session: a session does not depend on its neighbours.

    The same seed gives the same dream, another one than the noise that a device draws itself.
    """

    def __init__(self, slots: int, latent: tuple[int, ...]) -> None:
        self._latent = latent
        self._streams = [np.random.default_rng(0) for _ in range(slots)]

    def seat(self, slot: int, seed: int, frames: int) -> np.ndarray | None:
        """Begins a session; the noise of its prompt, `[1 p y x c]`, None where it has no frames."""
        self._streams[slot] = np.random.default_rng(seed)
        return None if not frames else self._streams[slot].standard_normal((1, frames, *self._latent), np.float32)

    def draw(self, active: Bool[np.ndarray, " b"]) -> Noise:
        """The noise of one frame; zeros for slots that are not active, whose streams stand still."""
        drawn = np.zeros((2, len(active), *self._latent), np.float32)
        for slot in np.flatnonzero(active):
            drawn[:, slot] = self._streams[slot].standard_normal((2, *self._latent), np.float32)
        return Noise(context=drawn[0], frame=drawn[1])  # pyright: ignore[reportArgumentType]
