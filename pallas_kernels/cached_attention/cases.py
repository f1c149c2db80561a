"""Named shapes of cached_attention: what the tests check; the large ones are for compilers and benchmarks only."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
      shape: (b, f, r, s, n, g, k): rows, frames in flight, frames of the ring, tokens of a frame, heads, key-value
        heads, channels of a head.
      window_frames: See the op.
      written: How many entries of each row's ring hold a frame; the newest stands at a place of its own.
      is_block_seen: Whether a frame in flight is seen by those after it.
      sinks: Frames that stay visible.
      is_per_site: See the op.
      ring: What the ring is kept in, `int8` with scales or `float8_e4m3fn` without; the case's dtype where None.
      dtype: Of queries, keys and values.
    """

    shape: tuple[int, int, int, int, int, int, int]
    window_frames: int
    written: tuple[int, ...]
    is_block_seen: bool = True
    sinks: int = 0
    is_per_site: bool = False
    ring: str | None = None
    dtype: str = "float32"

    moving: ClassVar[int] = 3
    """So many of the first arguments have gradients."""

    @property
    def static(self) -> dict[str, Any]:
        """The op's arguments that are no arrays."""
        return {"window_frames": self.window_frames, "is_per_site": self.is_per_site}

    def arguments(self, seed: int = 0) -> tuple[Any, ...]:
        """Fresh random arrays: q, k, v, ring_k, ring_v, ring_age, is_block_seen, sink, ring_scale."""
        b, f, r, s, n, g, k = self.shape
        rng = np.random.default_rng(seed)

        def draw(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32)

        age = np.stack([np.roll(np.where(np.arange(r) < count, 1 + np.arange(r), 0), row + 1)
                        for row, count in enumerate(self.written)]).astype(np.int32)  # fmt: skip
        seen = np.full((b, f), self.is_block_seen)
        sink = None
        if self.sinks:
            sink = (draw(b, f, s, n, k), draw(b, self.sinks, s, g, k), draw(b, self.sinks, s, g, k),
                    rng.random((b, f, self.sinks)) < 0.5)  # fmt: skip
        queries = (draw(b, f, s, n, k), draw(b, f, s, g, k), draw(b, f, s, g, k))
        ring, scale = [draw(b, r, s, g, k), draw(b, r, s, g, k)], None
        if self.ring == "int8":
            scale = tuple(np.abs(a).max(-1) / 127 for a in ring)
            ring = [np.round(a / by[..., None]) for a, by in zip(ring, scale, strict=True)]
        if self.ring is not None:
            ring = [a.astype(jnp.dtype(self.ring)) for a in ring]
        return *queries, *ring, age, seen, sink, scale

    def shapes(self) -> tuple[Any, ...]:
        """The same as shapes, floating-point ones of the case's dtype; nothing is computed."""

        def shape(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, self.dtype if leaf.dtype == jnp.float32 else leaf.dtype)

        return jax.tree.map(shape, jax.eval_shape(self.arguments))


SMALL = {
    "one frame": Case((1, 1, 3, 128, 2, 2, 16), window_frames=3, written=(3,)),
    "rows at different times": Case((3, 1, 3, 128, 2, 1, 16), window_frames=2, written=(3, 1, 0)),
    "two frames in flight": Case((1, 2, 3, 128, 2, 1, 16), window_frames=2, written=(3,)),
    "a draft nobody sees": Case((1, 2, 2, 128, 2, 1, 16), window_frames=2, written=(1,), is_block_seen=False),
    "sinks": Case((2, 1, 2, 128, 2, 1, 16), window_frames=1, written=(2, 1), sinks=2),
    "frames padded to tiles": Case((1, 1, 2, 70, 2, 1, 16), window_frames=2, written=(1,)),
    "bfloat16": Case((1, 1, 2, 128, 4, 2, 64), window_frames=2, written=(2,), dtype="bfloat16"),
    "site by site": Case(
        (2, 2, 64, 3, 6, 2, 64), window_frames=40, written=(64, 3), sinks=1, is_per_site=True, dtype="bfloat16"
    ),
    "site by site, many frames": Case(
        (1, 1, 128, 2, 2, 2, 128), window_frames=128, written=(100,), is_per_site=True, dtype="bfloat16"
    ),
    "int8 ring": Case((2, 1, 2, 70, 4, 2, 16), window_frames=2, written=(2, 1), ring="int8"),
    "float8 ring": Case(
        (1, 1, 2, 128, 4, 2, 64), window_frames=2, written=(2,), ring="float8_e4m3fn", dtype="bfloat16"
    ),
}
LARGE = {
    "1 frame x 256 tokens, 64 frames": Case(
        (1, 1, 64, 256, 16, 16, 64), window_frames=64, written=(64,), dtype="bfloat16"
    ),
    "8 rows": Case((8, 1, 64, 256, 16, 16, 64), window_frames=64, written=(64,) * 8, dtype="bfloat16"),
    "264 sites, 64 frames": Case(
        (1, 1, 64, 264, 12, 4, 64), window_frames=64, written=(64,), is_per_site=True, dtype="bfloat16"
    ),
    "264 sites, 8 rows": Case(
        (8, 1, 64, 264, 12, 4, 64), window_frames=64, written=(64,) * 8, is_per_site=True, dtype="bfloat16"
    ),
    **{
        f"{ring} ring": Case((1, 1, 64, 256, 16, 16, 64), window_frames=64, written=(64,), ring=ring, dtype="bfloat16")
        for ring in ("int8", "float8_e4m3fn")
    },
}
