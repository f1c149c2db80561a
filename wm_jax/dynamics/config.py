"""The dial of the dynamics: its geometry, its window and its signal levels."""

import dataclasses
import math
from typing import Literal

LayerKind = Literal["space", "time", "full"]


@dataclasses.dataclass(frozen=True)
class DynamicsConfig:
    """A factored space-time transformer. Every layer is one attention and one gated MLP.

    Attributes:
      width: Channels of a token.
      heads: Query heads.
      kv_heads: Key-value heads, a divisor of `heads`.
      head_size: Channels of a head, a multiple of 4.
      hidden: Channels inside the MLP.
      pattern: Which tokens meet in each layer of a super-block: `space` those of one frame, `time` the same token of
        other frames, `full` all tokens of all frames in the window.
      repeats: How many super-blocks.
      patch: Latent cells a side that one token holds.
      recent_frames: How many frames just before are given as latents too, each token with its surroundings: the time
        layers remember, this shows where things were, to the pixel.
      registers: Learned tokens of each frame that hold no pixels.
      window_frames: How many past frames the model sees.
      sinks: First frames of a session that stay visible for ever, at the age of one frame beyond the window.
      levels: The grid of signal levels; a power of two.
      context_level: Signal level at which past frames are remembered.
      dtype: What activations are computed in; weights, norms and softmax stay float32.
    """

    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 32
    hidden: int = 384
    pattern: tuple[LayerKind, ...] = ("space", "time")
    repeats: int = 2
    patch: int = 1
    recent_frames: int = 2
    registers: int = 4
    window_frames: int = 16
    sinks: int = 0
    levels: int = 32
    context_level: float = 0.9
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for name in ("width", "heads", "kv_heads", "head_size", "hidden", "patch", "window_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"dynamics.{name} is {getattr(self, name)}, it must be at least 1")
        for name in ("recent_frames", "registers"):
            if getattr(self, name) < 0:
                raise ValueError(f"dynamics.{name} is {getattr(self, name)}, it must be at least 0")
        if not 0 <= self.context_level <= 1:
            raise ValueError(f"dynamics.context_level {self.context_level} is not in 0..1 (0 is noise, 1 is clean)")
        if self.heads % self.kv_heads:
            raise ValueError(f"dynamics.heads {self.heads} is no multiple of dynamics.kv_heads {self.kv_heads}")
        if self.head_size % 4:
            raise ValueError(f"dynamics.head_size {self.head_size} is no multiple of 4")
        if self.levels & (self.levels - 1) or self.levels < 2:
            raise ValueError(f"dynamics.levels {self.levels} is no power of two above 1")
        if not 0 <= self.sinks <= self.window_frames:
            raise ValueError(f"dynamics.sinks {self.sinks} is not in 0..window_frames ({self.window_frames})")
        if not self.pattern or self.repeats < 1:
            raise ValueError(f"dynamics has no layers: pattern {self.pattern}, repeats {self.repeats}")

    @property
    def depth(self) -> int:
        return len(self.pattern) * self.repeats

    @property
    def cached_layers(self) -> int:
        """Layers that look at other frames."""
        return sum(kind != "space" for kind in self.pattern) * self.repeats

    @property
    def stride_rows(self) -> int:
        """Rows of the stride table: strides 1, 1/2, ... 1/levels."""
        return int(math.log2(self.levels)) + 1

    @property
    def context_index(self) -> int:
        """Row of `context_level`; never the clean row, which training does not visit."""
        return min(round(self.context_level * self.levels), self.levels - 1)

    @classmethod
    def size(cls, name: str, **changes) -> "DynamicsConfig":
        """The ladder: `toy`, `nano`, `mini`, `small`, `base`; other fields by name."""
        ladder = {
            "toy": dict(width=64, heads=2, kv_heads=1, head_size=32, hidden=192, repeats=2),
            "nano": dict(width=128, heads=4, kv_heads=2, head_size=32, hidden=384, repeats=2),
            "mini": dict(width=192, heads=6, kv_heads=2, head_size=32, hidden=512, repeats=4),
            "small": dict(width=384, heads=6, kv_heads=2, head_size=64, hidden=1024, repeats=6, window_frames=32),
            "base": dict(width=768, heads=12, kv_heads=4, head_size=64, hidden=2048, repeats=8, window_frames=64),
        }
        if name not in ladder:
            raise ValueError(f"no dynamics size {name!r}; there are {', '.join(ladder)}")
        return cls(**{**ladder[name], **changes})
