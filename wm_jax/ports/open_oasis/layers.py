"""The layers that transformer and autoencoder of Oasis share: weights in, arrays out."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from pallas_kernels import QuantizedWeight, block_causal_attention, quantized_matmul
from wm_jax.types import Params

FRAME_BITS = 31
TIME_BASE = 10_000.0


def linear(weights: Params, x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
    """`x @ kernel (+ bias)`, in the dtype of `x`; in 8 bits where the kernel is kept so."""
    kernel = weights["kernel"]
    # As one matrix: XLA on a CPU contracts three leading axes at half the speed of one.
    rows = x.reshape(-1, x.shape[-1])
    is_quantized = isinstance(kernel, QuantizedWeight)
    y = quantized_matmul(rows, kernel) if is_quantized else rows @ kernel.astype(x.dtype)
    y = y.reshape(*x.shape[:-1], y.shape[-1])
    return y + weights["bias"].astype(x.dtype) if "bias" in weights else y


def mlp(weights: Params, x: Float[Array, "*b d"], activation: Callable[[Any], Any]) -> Float[Array, "*b e"]:
    return linear(weights["out"], activation(linear(weights["hidden"], x)))


def in_order(layers: Params) -> list[Params]:
    """The layers of a room, the first one first. Each has arrays of its own: to read one out of a stack is to copy it."""
    return [layers[str(i)] for i in range(len(layers))]


def layer_norm(x: Float[Array, "*b d"], epsilon: float = 1e-6) -> Float[Array, "*b d"]:
    """`x` at mean 0 and variance 1 over the last axis, computed in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return (centred * jnp.reciprocal(jnp.sqrt(variance + epsilon))).astype(x.dtype)


def project(weights: Params, x: Float[Array, "*b s d"], heads: int):
    """Queries, keys and values `[*b s n k]` by one product."""
    merged = linear(weights["qkv"], x)
    return (part.reshape(*x.shape[:-1], heads, -1) for part in jnp.split(merged, 3, axis=-1))


def attend_in_frame(q: Float[Array, "b t s n k"], k: Any, v: Any, angle: Float[np.ndarray, "s a"]):
    """Attention of each frame to itself; to the op a clip of one frame, so that its kernels serve here too."""
    q, k = turn(q, jnp.asarray(angle)), turn(k, jnp.asarray(angle))
    alone_q, alone_k, alone_v = (rearrange(x, "b t s n k -> (b t) 1 s n k") for x in (q, k, v))
    segment = jnp.zeros((q.shape[0] * q.shape[1], 1), jnp.int32)
    out = block_causal_attention(alone_q, alone_k, alone_v, segment, window_frames=0, is_per_site=False)
    return out.reshape(q.shape)


def turn(x: Float[Array, "*b n k"], angle: Float[Array, "*#b a"]) -> Float[Array, "*b n k"]:
    """`x` with channels 2 i and 2 i + 1 turned by `angle[i]`; channels beyond the angles stay.

    Source: RoFormer, section 3.2, equation 15.
    """
    size = 2 * angle.shape[-1]
    cos, sin = (wave(angle)[..., None, :].astype(x.dtype) for wave in (jnp.cos, jnp.sin))
    even, odd = x[..., 0:size:2], x[..., 1:size:2]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(*x.shape[:-1], size)
    return jnp.concatenate([turned, x[..., size:]], axis=-1)


def grid_angles(height: int, width: int, rates: Float[np.ndarray, " a"]) -> Float[np.ndarray, "s 2*a"]:
    """Of the tokens of one frame, row by row: first those of y, then those of x, both from -1 to 1."""
    y, x = (_spaced(-1.0, 1.0, count)[:, None] * rates for count in (height, width))
    both = [np.broadcast_to(y[:, None], (height, width, len(rates))), np.broadcast_to(x, (height, width, len(rates)))]
    return np.concatenate(both, axis=-1).reshape(height * width, -1)


def pixel_rates(count: int, highest: float) -> Float[np.ndarray, " a"]:
    """Rates over a grid from -1 to 1: half turns from one to `highest`, evenly spaced."""
    return _spaced(1.0, highest, count) * np.float32(np.pi)


def frame_rates(head_size: int) -> Float[np.ndarray, " a"]:
    """Rates over frames, in radians a frame, rounded as published. Source: RoFormer, section 3.3."""
    share = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    return np.float32(1.0) / np.float32(TIME_BASE) ** share


def frame_angles(frame: Int[Array, "*b"], head_size: int) -> Float[Array, "*b a"]:
    """What the queries and keys of these frames are turned by, less whole turns; frames count from 0 to 2**31 - 1.

    The product of a large id and a rate is no exact float32: at frame 100,000 it is off by 0.004. The angle of an id is
    therefore the sum of the angles of its binary digits, each of them less its whole turns in float64. It is exact to
    1e-5 for ever, and so a key may be stored turned by its id, though the published rates have no common period.
    """
    rates = frame_rates(head_size).astype(np.float64)
    exact = 2.0 ** np.arange(FRAME_BITS)[:, None] * rates
    table = (exact - 2 * np.pi * np.round(exact / (2 * np.pi))).astype(np.float32)
    digits = (frame[..., None] >> jnp.arange(FRAME_BITS, dtype=jnp.int32)) & 1
    return jnp.sum(digits.astype(jnp.float32)[..., None] * jnp.asarray(table), axis=-2)


def _spaced(low: float, high: float, count: int) -> Float[np.ndarray, " n"]:
    """Evenly spaced in float32, counted from the nearer end: the rounding of the published buffers, which turn by hundreds
    of radians, so that one unit in the last place shows.
    """
    stride, index = np.float32(high - low) / np.float32(max(count - 1, 1)), np.arange(count, dtype=np.float32)
    rising, falling = np.float32(low) + stride * index, np.float32(high) - stride * index[::-1]
    return np.where(index < count // 2, rising, falling).astype(np.float32)
