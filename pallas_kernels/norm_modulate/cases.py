"""Named shapes of norm_modulate: what the tests check; the large ones are for compilers and benchmarks only."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
      shape: (b, t, s, d): rows, frames, tokens of a frame, channels.
      modulated: (rows, frames) that have modulation of their own; one that is 1 is shared.
      has_branch: Whether a branch is joined first.
      has_gate: Whether that branch has a gate.
      is_centred: See the op.
      dtype: Of all arrays.
    """

    shape: tuple[int, int, int, int]
    modulated: tuple[int, int]
    has_branch: bool = False
    has_gate: bool = False
    is_centred: bool = False
    dtype: str = "float32"

    moving: ClassVar[int] = 5
    """So many of the first arguments have gradients."""

    @property
    def static(self) -> dict[str, Any]:
        """The op's arguments that are no arrays."""
        return {"is_centred": self.is_centred, "epsilon": 1e-6}

    def arguments(self, seed: int = 0) -> tuple[Any, ...]:
        """Fresh random arrays: x, shift, scale, branch, gate."""
        rng, rows = np.random.default_rng(seed), (*self.modulated, self.shape[3])

        def draw(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32)

        x, shift, scale = draw(*self.shape), draw(*rows), draw(*rows)
        return x, shift, scale, draw(*self.shape) if self.has_branch else None, draw(*rows) if self.has_gate else None

    def shapes(self) -> tuple[Any, ...]:
        """The same as shapes of the case's dtype; nothing is computed."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(self.dtype)), jax.eval_shape(self.arguments)
        )


SMALL = {
    "plain": Case((1, 2, 24, 128), modulated=(1, 2)),
    "branch and gate": Case((2, 2, 16, 128), modulated=(2, 2), has_branch=True, has_gate=True),
    "branch without gate": Case((1, 1, 16, 128), modulated=(1, 1), has_branch=True),
    "centred": Case((1, 2, 16, 128), modulated=(1, 2), has_branch=True, has_gate=True, is_centred=True),
    "no multiple of a tile": Case((1, 2, 22, 96), modulated=(1, 2), has_branch=True, has_gate=True),
    "one modulation for all rows": Case((2, 3, 8, 128), modulated=(1, 3), has_branch=True, has_gate=True),
    "one modulation for all frames": Case((2, 3, 8, 128), modulated=(2, 1), has_branch=True, has_gate=True),
    "bfloat16": Case((1, 2, 24, 256), modulated=(1, 2), has_branch=True, has_gate=True, dtype="bfloat16"),
}
LARGE = {
    "base, 8 rows": Case((8, 1, 264, 768), modulated=(8, 1), has_branch=True, has_gate=True, dtype="bfloat16"),
    "base, training": Case((4, 32, 264, 768), modulated=(4, 32), has_branch=True, has_gate=True, dtype="bfloat16"),
    "centred, 144 tokens": Case(
        (1, 32, 144, 1024), modulated=(1, 32), has_branch=True, has_gate=True, is_centred=True, dtype="bfloat16"
    ),
}
