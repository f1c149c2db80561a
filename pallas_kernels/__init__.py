"""Attention, modulated norms and 8-bit layers: arrays in, arrays out, one folder an op, chosen by the platform compiled for.

Never knows a model, a cache object or a config of `wm_jax`. Imports jax only.
"""

from pallas_kernels.block_causal_attention.dispatch import block_causal_attention
from pallas_kernels.cached_attention.dispatch import cached_attention
from pallas_kernels.implementation import Implementation
from pallas_kernels.norm_modulate.dispatch import norm_modulate
from pallas_kernels.quantized_matmul.dispatch import quantized_matmul
from pallas_kernels.quantized_matmul.quantize import QuantizedWeight, quantize

__all__ = [
    "Implementation",
    "QuantizedWeight",
    "block_causal_attention",
    "cached_attention",
    "norm_modulate",
    "quantize",
    "quantized_matmul",
]
