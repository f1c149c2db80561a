"""Flash attention between frames: only pairs of frames that see each other are fetched, and no mask is in memory.

A frame's tokens see all tokens of another frame or none, so who sees whom is a small table `visible[b t u]`. Of it each
frame gets the list of the frames that it sees, and a platform's kernels (`flash_tpu`, `flash_gpu`) walk that list.

Source: FlashAttention-2, algorithms 1 and 2.
"""

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.softmax_attention import Kept, Worth, is_narrow, widened

NOTHING = -1e30
"""The logarithm of an empty sum, finite so that nothing becomes NaN."""


class Lists(NamedTuple):
    """Of each frame the frames that it sees, first to last, and how many; beyond them the last one is repeated."""

    order: Int[Array, "b t most"]
    count: Int[Array, "b t"]


class Saved(NamedTuple):
    """What the backward kernels read besides the lists."""

    q: Float[Array, "b t s n k"]
    k: Float[Array, "b u s g k"]
    v: Float[Array, "b u s g k"]
    d_out: Float[Array, "b t s n k"]
    lse: Float[Array, "b t n s"]
    delta: Float[Array, "b t n s"]


class Forward(Protocol):
    def __call__(
        self, q: Any, k: Any, v: Any, worth: Worth | None, lists: Lists, real: int, interpret: Any
    ) -> tuple[Float[Array, "b t s n k"], Float[Array, "b t n s"]]: ...


class Backward(Protocol):
    def __call__(self, saved: Saved, lists: Lists, real: int, interpret: Any) -> Any: ...


class Kernels(NamedTuple):
    """One platform's kernels.

    Attributes:
      tile: Frames come to them padded with zeros to a multiple of so many tokens.
      forward: (answers, logarithm of each query's sum of exponentials in float32; `NOTHING` where it sees nothing).
        Only the first `real` tokens of a frame are seen, here and in the gradients.
        Keys and values may be of 8 bits, with a worth or without, where the platform's `refusal` lets them pass.
      backward_queries: Gradient of q, by the frames that each frame sees.
      backward_keys: Gradients of k and v, by the frames that see each frame.
    """

    tile: int
    forward: Forward
    backward_queries: Backward
    backward_keys: Backward


def frame_flash(
    kernels: Kernels,
    q: Float[Array, "b t s n k"],
    k: Kept,
    v: Kept,
    visible: Bool[Array, "b t u"],
    *,
    most_seen: int,
    most_seen_by: int,
    worth: Worth | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "b t s n k"], Float[Array, "b t n s"]]:
    """Every token of frame t against every token of the frames it sees; differentiable in q, k and v.

    `most_seen` bounds the frames that one frame sees, `most_seen_by` the frames that see one. A frame that sees
    nothing answers zero. Keys and values of 8 bits count times their `worth`, and get no gradient.

    Returns:
      The answers, and the logarithm of each query's sum of exponentials (float32), by which `join` joins several calls.
    """
    sizes = (min(most_seen, k.shape[1]), min(most_seen_by, q.shape[1]))
    tokens, real = q.shape[2], k.shape[2]
    q, k, v, worth = jax.tree.map(functools.partial(_padded, tile=kernels.tile), (q, k, v, worth))
    out, lse = _attend(kernels, sizes, real, interpret, q, k, v, worth, visible)
    return out[:, :, :tokens], lse[..., :tokens]


def _padded(a: Any, tile: int) -> Any:
    missing = -a.shape[2] % tile
    return jnp.pad(a, ((0, 0), (0, 0), (0, missing), *((0, 0),) * (a.ndim - 3))) if missing else a


def join(parts: list[tuple[Any, Any]]) -> Any:
    """One softmax out of several: the answers of `frame_flash` to the same queries, weighted by their sums."""
    best = functools.reduce(jnp.maximum, [lse for _, lse in parts])
    weights = [jnp.exp(lse - best) for _, lse in parts]
    total = sum(weights[1:], weights[0])
    mixed = [
        jnp.swapaxes(weight / total, 2, 3)[..., None] * out.astype(jnp.float32)
        for weight, (out, _) in zip(weights, parts, strict=True)
    ]
    return functools.reduce(jnp.add, mixed).astype(parts[0][0].dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _attend(
    kernels: Kernels, sizes: tuple[int, int], real: int, interpret: Any,
    q: Any, k: Any, v: Any, worth: Any, visible: Any,
) -> Any:  # fmt: skip
    return kernels.forward(q, k, v, worth, _lists(visible, sizes[0]), real, interpret)


def _attend_forward(kernels, sizes, real, interpret, q, k, v, worth, visible):
    out, lse = _attend(kernels, sizes, real, interpret, q, k, v, worth, visible)
    return (out, lse), (q, k, v, worth, visible, out, lse)


def _attend_backward(kernels, sizes, real, interpret, kept, given):
    q, k, v, worth, visible, out, lse = kept
    d_out, d_lse = given
    delta = jnp.einsum("btsnk,btsnk->btns", out, d_out, preferred_element_type=jnp.float32) - d_lse
    wide_k, wide_v = widened(k, v, worth, q.dtype) if is_narrow(k) else (k, v)
    saved = Saved(q, wide_k, wide_v, d_out, lse, delta)
    d_q = kernels.backward_queries(saved, _lists(visible, sizes[0]), real, interpret)
    if is_narrow(k):
        return d_q, None, None, None, None
    d_k, d_v = kernels.backward_keys(saved, _lists(jnp.swapaxes(visible, 1, 2), sizes[1]), real, interpret)
    return d_q, d_k, d_v, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _lists(visible: Any, most: int) -> Lists:
    count = visible.sum(-1).astype(jnp.int32)
    order = jnp.argsort(~visible, axis=-1, stable=True)[..., :most]
    place = jnp.minimum(jnp.arange(most), jnp.maximum(count - 1, 0)[..., None])
    return Lists(jnp.take_along_axis(order, place, axis=-1).astype(jnp.int32), count)
