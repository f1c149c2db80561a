"""Laws of the attention ops against the definition written out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import block_causal_attention, cached_attention

B, T, S, N, G, K, WINDOW = 2, 6, 3, 4, 2, 8, 2


def arrays(frames, heads, seed):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((B, frames, S, heads, K)), jnp.float32)


def by_hand(q, k, v, allowed, is_per_site):
    """Softmax over what `allowed[b, t, u]` lets a token see, one query at a time, in float64."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.zeros_like(q)
    for b, t, s, n in np.ndindex(*q.shape[:4]):
        seen = [(u, z) for u in range(k.shape[1]) for z in range(S) if allowed[b, t, u] and (z == s or not is_per_site)]
        logits = np.array([q[b, t, s, n] @ k[b, u, z, n // (N // G)] for u, z in seen]) * K**-0.5
        weights = np.exp(logits - logits.max())
        out[b, t, s, n] = sum(w * v[b, u, z, n // (N // G)] for w, (u, z) in zip(weights / weights.sum(), seen))
    return out


@pytest.mark.parametrize("is_per_site", [True, False])
def test_block_causal_attention_is_its_definition(is_per_site):
    q, k, v = arrays(T, N, 0), arrays(T, G, 1), arrays(T, G, 2)
    segment = np.array([[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]])
    age = np.arange(T)[:, None] - np.arange(T)[None]
    allowed = ((age >= 0) & (age <= WINDOW))[None] & (segment[:, :, None] == segment[:, None])
    found = block_causal_attention(q, k, v, jnp.asarray(segment), window_frames=WINDOW, is_per_site=is_per_site)
    np.testing.assert_allclose(found, by_hand(q, k, v, allowed, is_per_site), atol=1e-5)


@pytest.mark.parametrize("is_per_site", [True, False])
def test_cached_attention_is_its_definition_whatever_lies_in_unused_entries(is_per_site):
    q, k, v = arrays(2, N, 0), arrays(2, G, 1), arrays(2, G, 2)
    ring_k, ring_v = arrays(4, G, 3), arrays(4, G, 4)
    age = np.array([[3, 1, 2, 0], [0, 0, 1, 0]])  # rows at different times, in any order
    allowed = np.zeros((B, 2, 6), bool)
    for b, i in np.ndindex(B, 2):
        allowed[b, i, :4] = (age[b] > 0) & (age[b] + i <= WINDOW)
        allowed[b, i, 4 : 5 + i] = True
    expected = by_hand(q, jnp.concatenate([ring_k, k], 1), jnp.concatenate([ring_v, v], 1), allowed, is_per_site)
    seen = jnp.ones((B, 2), bool)
    found = cached_attention(
        q, k, v, ring_k, ring_v, jnp.asarray(age), seen, window_frames=WINDOW, is_per_site=is_per_site
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("is_per_site", [True, False])
def test_a_ring_of_8_bits_counts_its_numbers_times_its_scale(is_per_site, dtype):
    q, k, v = arrays(1, N, 0), arrays(1, G, 1), arrays(1, G, 2)
    ring_k, ring_v = ((30 * arrays(3, G, seed)).astype(dtype) for seed in (3, 4))
    k_scale, v_scale = (jnp.exp(arrays(3, G, seed)[..., 0]) / 30 for seed in (5, 6))
    age, seen = jnp.asarray([[1, 2, 3]] * B), jnp.ones((B, 1), bool)
    keys = jnp.concatenate([ring_k.astype(jnp.float32) * k_scale[..., None], k], 1)
    values = jnp.concatenate([ring_v.astype(jnp.float32) * v_scale[..., None], v], 1)
    found = cached_attention(
        q, k, v, ring_k, ring_v, age, seen, None, (k_scale, v_scale), window_frames=3, is_per_site=is_per_site
    )
    np.testing.assert_allclose(found, by_hand(q, keys, values, np.ones((B, 1, 4), bool), is_per_site), atol=1e-5)


def test_a_scale_needs_a_ring_of_8_bits():
    q, k, v, ring = arrays(1, N, 0), arrays(1, G, 1), arrays(1, G, 2), arrays(3, G, 3)
    age, seen, scale = jnp.ones((B, 3), jnp.int32), jnp.ones((B, 1), bool), jnp.ones((B, 3, S, G))

    def attend(ring_k, ring_v, by):
        return cached_attention(q, k, v, ring_k, ring_v, age, seen, None, (by, by), window_frames=3, is_per_site=False)

    with pytest.raises(ValueError, match="a ring of float32 keys, float32 values and a scale is not kept so"):
        attend(ring, ring, scale)
    with pytest.raises(ValueError, match="a ring of int8 keys, float32 values and a scale is not kept so"):
        attend(ring.astype(jnp.int8), ring, scale)
    with pytest.raises(ValueError, match=r"scales \[\(2, 3, 3\), \(2, 3, 3\)\] do not fit ring keys \(2, 3, 3, 2, 8\)"):
        attend(ring.astype(jnp.int8), ring.astype(jnp.int8), scale[..., 0])


def test_shapes_that_do_not_fit_are_refused_with_both_sides():
    q, k, v = arrays(T, N, 0), arrays(T, G, 1), arrays(T, G, 2)
    segment = jnp.zeros((B, T), jnp.int32)
    with pytest.raises(ValueError, match=r"q \(2, 6, 3, 4, 8\) does not fit k \(2, 5, 3, 2, 8\)"):
        block_causal_attention(q, k[:, :5], v[:, :5], segment, window_frames=1, is_per_site=True)
    with pytest.raises(ValueError, match="3 heads are no multiple of 2"):
        block_causal_attention(q[:, :, :, :3], k, v, segment, window_frames=1, is_per_site=True)
    with pytest.raises(ValueError, match=r"ring \(2, 4, 2, 2, 8\) do not fit"):
        ring, age, seen = arrays(4, G, 3)[:, :, :2], jnp.zeros((B, 4), jnp.int32), jnp.ones((B, T), bool)
        cached_attention(q, k, v, ring, ring, age, seen, window_frames=1, is_per_site=True)


def test_an_unknown_implementation_is_refused_by_name():
    q, k, v = arrays(T, N, 0), arrays(T, G, 1), arrays(T, G, 2)
    segment, unknown = jnp.zeros((B, T), jnp.int32), "magic"
    with pytest.raises(
        ValueError, match="block_causal_attention has no implementation 'magic'; it has auto, reference"
    ):
        block_causal_attention(
            q, k, v, segment, window_frames=1, is_per_site=True, implementation=unknown  # pyright: ignore
        )  # fmt: skip
