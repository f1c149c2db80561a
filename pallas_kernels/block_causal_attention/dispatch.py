"""The public function of this room: shape checks, then the choice of implementation."""

from jaxtyping import Array, Float, Int

from pallas_kernels.implementation import Implementation, choose


def block_causal_attention(
    q: Float[Array, "b t s n k"],
    k: Float[Array, "b t s g k"],
    v: Float[Array, "b t s g k"],
    segment: Int[Array, "b t"],
    q_sink: Float[Array, "b t s n k"] | None = None,
    k_sink: Float[Array, "b z s g k"] | None = None,
    *,
    window_frames: int,
    is_per_site: bool,
    drafts: int = 0,
    implementation: Implementation = "auto",
) -> Float[Array, "b t s n k"]:
    """Attention of a clip to itself: free inside a frame, causal between frames, at most `window_frames` back.

    `q` and `k` come rotated by their frame. Frames of different `segment` never see each other (episode boundaries).
    With `is_per_site` token s of a frame sees only token s of other frames (time-only attention), else all tokens.
    The first z frames stay visible once they left the window: `q_sink` is the query rotated by the sink's age and
    `k_sink` their keys unrotated. With `drafts` the last half of the frames are drafts of the first half: draft i sees
    the frames before frame i and itself, never frame i, and nobody sees a draft (teacher forcing in one pass).

    Raises:
      ValueError: the drafts are not as many as the frames before them, heads are no multiple of key-value heads, shapes
        of keys, values and queries disagree, or the implementation named cannot take them.
    """
    if k.shape != v.shape or q.shape[:3] != k.shape[:3] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"block_causal_attention: q {q.shape} does not fit k {k.shape} and v {v.shape}")
    if q.shape[3] % k.shape[3]:
        raise ValueError(f"block_causal_attention: {q.shape[3]} heads are no multiple of {k.shape[3]} key-value heads")
    if drafts and 2 * drafts != q.shape[1]:
        raise ValueError(f"block_causal_attention: {drafts} drafts are not half of {q.shape[1]} frames")
    static = {"window_frames": window_frames, "is_per_site": is_per_site, "drafts": drafts}
    return choose("block_causal_attention", implementation, (q, k, v, segment, q_sink, k_sink), static)
