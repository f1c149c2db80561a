"""Named shapes of quantized_matmul: what the tests check; the large ones are for compilers and benchmarks only."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.quantized_matmul.quantize import quantize

DTYPES: tuple[Literal["int8", "float8_e4m3fn"], ...] = ("int8", "float8_e4m3fn")


@dataclasses.dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
      shape: (m, i, o): rows, channels in, channels out.
      weight: What the weight is kept in.
      dtype: Of x and the result.
      has_zeros: Whether a row and a channel are all zero.
    """

    shape: tuple[int, int, int]
    weight: Literal["int8", "float8_e4m3fn"] = "int8"
    dtype: str = "bfloat16"
    has_zeros: bool = False

    moving = 0
    """How many of the first arguments have gradients."""

    @property
    def static(self) -> dict[str, Any]:
        """The op's arguments that are no arrays."""
        return {}

    def plain(self, seed: int = 0) -> tuple[Any, Any]:
        """Fresh random x and weight, before it is quantised, both of the case's dtype."""
        m, i, o = self.shape
        rng = np.random.default_rng(seed)
        # Rows and channels of different sizes, so that a scale in the wrong place shows.
        x = rng.standard_normal((m, i), np.float32) * np.exp(rng.standard_normal((m, 1), np.float32))
        weight = rng.standard_normal((i, o), np.float32) * np.exp(rng.standard_normal((1, o), np.float32))
        if self.has_zeros:
            x[m // 2], weight[:, o // 2] = 0.0, 0.0
        return jnp.asarray(x, self.dtype), jnp.asarray(weight, self.dtype)

    def arguments(self, seed: int = 0) -> tuple[Any, ...]:
        """Fresh random arrays: x and the weight."""
        x, weight = self.plain(seed)
        return x, quantize(weight, self.weight)

    def shapes(self) -> tuple[Any, ...]:
        """The same as shapes."""
        return jax.eval_shape(self.arguments)


SMALL = {
    "bfloat16": Case((32, 128, 128)),
    "float32": Case((64, 128, 256), dtype="float32"),
    "several blocks of rows and columns": Case((300, 4096, 700), dtype="float32"),
    "odd sizes": Case((5, 192, 72), dtype="float32"),
    "a zero row and a zero channel": Case((40, 192, 128), dtype="float32", has_zeros=True),
    "float8": Case((40, 192, 128), "float8_e4m3fn", "float32", has_zeros=True),
    "bfloat16, float8": Case((264, 256, 192), "float8_e4m3fn"),
}
LARGE = {
    f"{name}, {dtype}": Case(shape, dtype)
    for name, shape in {
        "8 x 264 rows, 768 to 4096": (8 * 264, 768, 4096),
        "264 rows, 2048 to 768": (264, 2048, 768),
        "8 x 144 rows, 1024 to 4096": (8 * 144, 1024, 4096),
    }.items()
    for dtype in DTYPES
}
