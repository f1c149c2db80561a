"""Masked grouped-query attention in plain jax.numpy: the arithmetic that every reference shares."""

from typing import Any

import jax.numpy as jnp
from einops import rearrange, repeat
from jax import lax, nn
from jaxtyping import Array, Bool, Float, Int8

MASKED = -1e30
Kept = Float[Array, "b u s g k"] | Int8[Array, "b u s g k"]
"""Keys or values as they lie in memory."""
Worth = tuple[Float[Array, "b u s g"], Float[Array, "b u s g"]]
"""What keys and values of 8 bits are worth: one number an entry, token and key-value head."""


def softmax_attention(
    q: Float[Array, "*b q n k"],
    k: Float[Array, "*b u g k"],
    v: Float[Array, "*b u g k"],
    mask: Bool[Array, "*#b q u"] | None,
    extra: tuple[Any, Any, Any, Any] | None = None,
) -> Float[Array, "*b q n k"]:
    """Attention of `n` query heads to `g` key-value heads (n a multiple of g), logits and softmax in float32.

    Without a mask all see all. A query that may see nothing answers zero, never NaN. `extra` is a second (q, k, v, mask) of the same heads that
    shares the softmax: sink frames are seen under another rotation than the rest.
    """
    parts = [(q, k, v, mask)] + ([extra] if extra is not None else [])
    logits = jnp.concatenate([_logits(*part) for part in parts], axis=-1)
    weights = nn.softmax(logits, axis=-1)
    if mask is not None:
        weights = jnp.where(logits <= 0.5 * MASKED, 0.0, weights)
    sizes, answers = [part[1].shape[-3] for part in parts], []
    start = 0
    for (_, _, values, _), size in zip(parts, sizes, strict=True):
        share = weights[..., start : start + size].astype(values.dtype)
        answers.append(jnp.einsum("...gmqu,...ugk->...qgmk", share, values))
        start += size
    answer = answers[0] if len(answers) == 1 else answers[0] + answers[1]
    return answer.reshape(q.shape)


def _logits(q: Any, k: Any, _v: Any, mask: Any) -> Any:
    groups = k.shape[-2]
    grouped = q.reshape(*q.shape[:-2], groups, q.shape[-2] // groups, q.shape[-1])
    logits = jnp.einsum("...qgmk,...ugk->...gmqu", grouped, k, preferred_element_type=jnp.float32)
    logits = logits * jnp.float32(q.shape[-1] ** -0.5)
    return logits if mask is None else jnp.where(mask[..., None, None, :, :], logits, jnp.float32(MASKED))


def attend_frames(q: Any, k: Any, v: Any, mask: Any, sink: tuple[Any, Any, Any, Any] | None, is_per_site: bool) -> Any:
    """Frames `[b t s n k]` to frames `[b u s g k]` as `mask[b t u]` allows: each token to its own site, or to all.

    `sink` is a second (q, k, v, mask) that shares the softmax.
    """
    if is_per_site:
        out = softmax_attention(*_by_site(q, k, v, mask), extra=None if sink is None else _by_site(*sink))
        return rearrange(out, "b s t n k -> b t s n k")
    out = softmax_attention(*_flat(q, k, v, mask), extra=None if sink is None else _flat(*sink))
    return rearrange(out, "b (t s) n k -> b t s n k", s=q.shape[2])


def attend_site(
    q: Float[Array, "b f s n k"], k: Float[Array, "b u s g k"], v: Float[Array, "b u s g k"], seen: Bool[Array, "b f u"]
) -> tuple[Float[Array, "b f s n k"], Float[Array, "b f n s"]]:
    """Each token to its own site of a few frames, as a part of a larger softmax: answers, and each query's log-sum of exponentials.

    Where a query sees nothing its answer means nothing and its sum is near `exp(MASKED)`.
    """
    groups = k.shape[3]
    grouped = q.reshape(*q.shape[:3], groups, q.shape[3] // groups, q.shape[4])
    logits = jnp.einsum("bfsgmk,busgk->bfsgmu", grouped, k, preferred_element_type=jnp.float32)
    logits = logits * jnp.float32(q.shape[-1] ** -0.5)
    logits = jnp.where(seen[:, :, None, None, None], logits, jnp.float32(MASKED))
    sums = nn.logsumexp(logits, axis=-1)
    weights = jnp.exp(logits - sums[..., None]).astype(v.dtype)
    answer = jnp.einsum("bfsgmu,busgk->bfsgmk", weights, v).reshape(q.shape)
    return answer, rearrange(sums, "b f s g m -> b f (g m) s")


def is_narrow(a: Any) -> bool:
    """Whether these are numbers of 8 bits."""
    return a.dtype.itemsize == 1


def widened(k: Any, v: Any, worth: Any, dtype: Any) -> Any:
    """Keys and values of 8 bits in the type that is computed in, times what they are worth; they get no gradient."""
    if worth is not None:
        k, v = (a.astype(jnp.float32) * by.astype(jnp.float32)[..., None] for a, by in zip((k, v), worth, strict=True))
    return lax.stop_gradient((k.astype(dtype), v.astype(dtype)))


def _by_site(q: Any, k: Any, v: Any, mask: Any) -> tuple[Any, Any, Any, Any]:
    q, k, v = (rearrange(a, "b t s n k -> b s t n k") for a in (q, k, v))
    return q, k, v, mask[:, None]


def _flat(q: Any, k: Any, v: Any, mask: Any) -> tuple[Any, Any, Any, Any]:
    s = q.shape[2]
    q, k, v = (rearrange(a, "b t s n k -> b (t s) n k") for a in (q, k, v))
    return q, k, v, repeat(mask, "b t u -> b (t s) (u z)", s=s, z=s)
