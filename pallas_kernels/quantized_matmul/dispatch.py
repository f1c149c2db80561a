"""The public function of this room: shape checks, then the choice of implementation."""

from jaxtyping import Array, Float

from pallas_kernels.implementation import Implementation, choose
from pallas_kernels.quantized_matmul.quantize import LARGEST, QuantizedWeight, check_dtype

MOST_CHANNELS = 2**31 // int(LARGEST["int8"]) ** 2
"""The sum of so many products of int8 cannot pass int32."""


def quantized_matmul(
    x: Float[Array, "*m i"], weight: QuantizedWeight, *, implementation: Implementation = "auto"
) -> Float[Array, "*m o"]:
    """`x @ weight` in 8 bits, in the type of `x`; for inference, it has no gradient.

    The rows of `x` are rounded to the type of the weight (`quantize`), each by its own largest magnitude. Products of int8
    are summed in int32, exactly; those of float8 in float32. A sum times the scale of its row times that of its channel is
    the result. Source: LLM.int8 (Dettmers, Lewis, Belkada, Zettlemoyer, 2022), section 2.1, without its outliers.

    Raises:
      ValueError: `x` and the weight do not fit, the weight is not of 8 bits or its sums could pass int32, or the
        implementation named cannot take them.
    """
    if x.shape[-1:] != weight.values.shape[:1] or weight.scale.shape != weight.values.shape[1:]:
        raise ValueError(
            f"quantized_matmul: x {x.shape}, weight {weight.values.shape} and scale {weight.scale.shape} do not fit"
        )
    check_dtype(weight.values.dtype.name)
    if weight.values.shape[0] > MOST_CHANNELS:
        raise ValueError(
            f"quantized_matmul: {weight.values.shape[0]} channels are more than the {MOST_CHANNELS} of int32"
        )
    out = choose("quantized_matmul", implementation, (x.reshape(-1, x.shape[-1]), weight), {}, whole=(1,))
    return out.reshape(*x.shape[:-1], out.shape[1])
