"""What a world is, as numbers: written beside its weights, enough to serve it."""

import dataclasses
import math

from wm_jax.autoencoder import AutoencoderConfig
from wm_jax.conditioning import ConditioningConfig
from wm_jax.dynamics import DynamicsConfig
from wm_jax.types import ControlSpace


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How a frame is denoised when playing.

    Attributes:
      steps: Denoising passes a frame; a power of two, at most `dynamics.levels`.
    """

    steps: int = 4


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """A whole world.

    Attributes:
      name: For people and for the model list.
      env: The real game it was recorded from, a name of `wm_jax.envs`.
      image: Height and width of a frame in pixels.
      fps: Frames a second at which it is played.
      controls: The keys a player has.
      autoencoder: Pixels to latents.
      dynamics: What happens next.
      sampler: Noise to latent.
    """

    name: str
    env: str
    image: tuple[int, int]
    fps: float
    controls: ControlSpace
    autoencoder: AutoencoderConfig
    dynamics: DynamicsConfig
    sampler: SamplerConfig = SamplerConfig()

    def __post_init__(self):
        cell = self.autoencoder.downscale * self.dynamics.patch
        if self.image[0] % cell or self.image[1] % cell:
            raise ValueError(f"image {self.image} cannot be cut into cells of {cell} pixels (autoencoder x patch)")
        steps, levels = self.sampler.steps, self.dynamics.levels
        if steps < 1 or steps & (steps - 1) or steps > levels:
            raise ValueError(f"sampler.steps {steps} is no power of two up to dynamics.levels ({levels})")
        if not 0 < self.fps < math.inf:
            raise ValueError(f"fps is {self.fps}, it must be a number above 0")
        if not self.controls.keys:
            raise ValueError(f"world {self.name!r} has no keys: nobody could play it")

    @property
    def grid(self) -> tuple[int, int]:
        """Latent cells down and across."""
        return self.image[0] // self.autoencoder.downscale, self.image[1] // self.autoencoder.downscale

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return *self.grid, self.autoencoder.channels

    @property
    def longest_prompt(self) -> int:
        """Frames that a prompt may have: those that the next one sees."""
        return self.dynamics.window_frames + 1

    @property
    def conditioning(self) -> ConditioningConfig:
        return ConditioningConfig(keys=len(self.controls.keys))
