"""Named shapes of block_causal_attention: what the tests check; the large ones are for compilers and benchmarks only."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
      shape: (b, t, s, n, g, k): rows, frames, tokens of a frame, heads, key-value heads, channels of a head.
      window_frames: See the op.
      drafts: See the op.
      sinks: First frames that stay visible.
      is_per_site: See the op.
      segments: The frame at which each row's second episode starts; none where 0.
      dtype: Of queries, keys and values.
    """

    shape: tuple[int, int, int, int, int, int]
    window_frames: int
    drafts: int = 0
    sinks: int = 0
    segments: tuple[int, ...] = ()
    is_per_site: bool = False
    dtype: str = "float32"

    moving: ClassVar[int] = 3
    """So many of the first arguments have gradients."""

    @property
    def static(self) -> dict[str, Any]:
        """The op's arguments that are no arrays."""
        return {"window_frames": self.window_frames, "is_per_site": self.is_per_site, "drafts": self.drafts}

    def arguments(self, seed: int = 0) -> tuple[Any, ...]:
        """Fresh random arrays: q, k, v, segment, q_sink, k_sink."""
        b, t, s, n, g, k = self.shape
        rng = np.random.default_rng(seed)

        def draw(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32)

        segment = np.zeros((b, t), np.int32)
        for row, start in enumerate(self.segments):
            segment[row, start or t :] = 1
        if self.drafts:
            segment[:, t // 2 :] = segment[:, : t // 2]
        sink = (draw(b, t, s, n, k), draw(b, self.sinks, s, g, k)) if self.sinks else (None, None)
        return draw(b, t, s, n, k), draw(b, t, s, g, k), draw(b, t, s, g, k), segment, *sink

    def shapes(self) -> tuple[Any, ...]:
        """The same as shapes, floating-point ones of the case's dtype; nothing is computed."""

        def shape(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            is_floating = jnp.issubdtype(leaf.dtype, jnp.floating)
            return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(self.dtype) if is_floating else leaf.dtype)

        return jax.tree.map(shape, jax.eval_shape(self.arguments))


SMALL = {
    "plain": Case((1, 3, 128, 2, 2, 16), window_frames=1),
    "grouped heads, episodes": Case((2, 3, 128, 4, 2, 16), window_frames=2, segments=(0, 2)),
    "window beyond the clip": Case((1, 2, 128, 2, 1, 32), window_frames=16),
    "drafts": Case((1, 6, 128, 2, 1, 16), window_frames=1, drafts=3, segments=(2,)),
    "sinks": Case((1, 4, 128, 2, 1, 16), window_frames=1, sinks=1, segments=(3,)),
    "several blocks a frame": Case((1, 2, 640, 2, 1, 16), window_frames=1),
    "frames padded to tiles": Case((1, 3, 70, 2, 1, 16), window_frames=1, sinks=1),
    "bfloat16": Case((1, 2, 128, 4, 2, 64), window_frames=2, dtype="bfloat16"),
    "frames alone": Case((2, 1, 70, 4, 2, 64), window_frames=0, dtype="bfloat16"),
}
LARGE = {
    "space, 264 tokens": Case((32, 1, 264, 12, 4, 64), window_frames=0, dtype="bfloat16"),
    "32 frames x 256 tokens": Case((1, 32, 256, 16, 16, 64), window_frames=16, dtype="bfloat16"),
    "16 frames x 1024 tokens, grouped": Case((1, 16, 1024, 16, 4, 128), window_frames=8, dtype="bfloat16"),
}
