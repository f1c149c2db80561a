"""Noise drawn on the host, for accelerators whose compiler has no generator."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from wm_jax.types import Prompt
from wm_jax.world import Playable


class HostNoise:
    """Each slot's own stream, begun anew with each session: a session does not depend on its neighbours.

    The same seed gives the same dream, another one than the noise that a device draws itself.
    """

    def __init__(self, world: Playable[Any], slots: int) -> None:
        self._world = world
        self._streams = [np.random.default_rng(0) for _ in range(slots)]

    def seat(self, slot: int, seed: int, prompt: Prompt) -> Float32[np.ndarray, "1 p y x c"] | None:
        """Begins a session; the noise that blurs its prompt, None where nothing is blurred."""
        self._streams[slot] = np.random.default_rng(seed)
        if prompt.frames is None or not self._world.is_prompt_blurred:
            return None
        return self._normal(slot, 1, prompt.frames.shape[1])

    def stream(self, slot: int) -> Any:
        """Where a session's noise stands."""
        return self._streams[slot].bit_generator.state

    def resume(self, slot: int, stream: Any) -> None:
        """Goes on from there."""
        self._streams[slot] = np.random.default_rng(0)
        self._streams[slot].bit_generator.state = stream

    def draw(self, chosen: Sequence[int], active: Bool[np.ndarray, " b"]) -> Float32[np.ndarray, "b m y x c"]:
        """The noise of one frame of these slots; zeros for those that are not active, whose streams stand still."""
        drawn = np.zeros((len(active), self._world.noises, *self._world.config.latent_shape), np.float32)
        for row in np.flatnonzero(active).tolist():
            drawn[row] = self._normal(chosen[row], self._world.noises)
        return drawn

    def _normal(self, slot: int, *count: int) -> Float32[np.ndarray, "*n y x c"]:
        return self._streams[slot].standard_normal((*count, *self._world.config.latent_shape), np.float32)
