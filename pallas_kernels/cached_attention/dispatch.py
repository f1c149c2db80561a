"""The public function of this room: shape checks, then the choice of implementation."""

from typing import Any

from jaxtyping import Array, Bool, Float, Int, Int8

from pallas_kernels.implementation import Implementation, choose
from pallas_kernels.softmax_attention import is_narrow


def cached_attention(
    q: Float[Array, "b f s n k"],
    k: Float[Array, "b f s g k"],
    v: Float[Array, "b f s g k"],
    ring_k: Float[Array, "b r s g k"] | Int8[Array, "b r s g k"],
    ring_v: Float[Array, "b r s g k"] | Int8[Array, "b r s g k"],
    ring_age: Int[Array, "b r"],
    is_block_seen: Bool[Array, "b f"],
    sink: tuple[Any, Any, Any, Any] | None = None,
    ring_scale: tuple[Float[Array, "b r s g"], Float[Array, "b r s g"]] | None = None,
    *,
    window_frames: int,
    is_per_site: bool,
    implementation: Implementation = "auto",
) -> Float[Array, "b f s n k"]:
    """Attention of f frames in flight to the ring of past frames and to themselves; nothing is written.

    `q`, `k` and `ring_k` come rotated to a common origin. `ring_age` is each entry's age in frames seen from the
    first frame in flight, 0 or less where the entry was never written; the order of entries does not matter and rows
    may be at different times. A frame in flight whose `is_block_seen` is False is seen by itself only. `sink` is
    (q, k, v, Bool[b f z]) of frames that stay visible beyond the window.

    The ring may be kept in 8 bits, float8 or int8; `ring_scale` then says what its keys and its values are worth, one
    number an entry, token and key-value head. Such a ring gets no gradient.

    Raises:
      ValueError: shapes of block and ring disagree, heads are no multiple of key-value heads, only one of ring keys and
        values is of 8 bits, there is a scale and neither is, or the implementation named cannot take them.
    """
    if k.shape != v.shape or q.shape[:3] != k.shape[:3] or ring_k.shape[2:] != k.shape[2:]:
        raise ValueError(f"cached_attention: q {q.shape}, k {k.shape} and ring {ring_k.shape} do not fit")
    if ring_k.shape != ring_v.shape or ring_age.shape != ring_k.shape[:2]:
        raise ValueError(f"cached_attention: ring keys {ring_k.shape}, values {ring_v.shape}, ages {ring_age.shape}")
    if q.shape[3] % k.shape[3]:
        raise ValueError(f"cached_attention: {q.shape[3]} heads are no multiple of {k.shape[3]} key-value heads")
    if is_narrow(ring_k) != is_narrow(ring_v) or (ring_scale is not None and not is_narrow(ring_k)):
        scaled = "" if ring_scale is None else " and a scale"
        raise ValueError(
            f"cached_attention: a ring of {ring_k.dtype} keys, {ring_v.dtype} values{scaled} is not kept so"
        )
    if ring_scale is not None and any(scale.shape != ring_k.shape[:4] for scale in ring_scale):
        raise ValueError(
            f"cached_attention: scales {[a.shape for a in ring_scale]} do not fit ring keys {ring_k.shape}"
        )
    arguments = (q, k, v, ring_k, ring_v, ring_age, is_block_seen, sink, ring_scale)
    return choose(
        "cached_attention", implementation, arguments, {"window_frames": window_frames, "is_per_site": is_per_site}
    )
