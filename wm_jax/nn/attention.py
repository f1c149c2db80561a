"""The projections around an attention: grouped heads, normalised queries and keys."""

from flax import nnx

from wm_jax.nn.linear import Linear
from wm_jax.nn.norm import RMSNorm


class AttentionProjections(nnx.Module):
    """Weights of one attention: `project` before it, `merge` after it; which tokens meet is the caller's business.

    Queries and keys are RMS-normalised per head (QK-norm), so logits stay bounded by the gains.
    Source: Scaling Vision Transformers to 22 Billion Parameters, section 2 (with RMS in place of layer norm).
    """

    def __init__(self, width: int, heads: int, kv_heads: int, head_size: int, rngs: nnx.Rngs, *, out_scale: float):
        self.qkv = Linear(width, (heads + 2 * kv_heads) * head_size, rngs)
        self.out = Linear(heads * head_size, width, rngs, scale=out_scale)
        self.query_norm = RMSNorm(head_size)
        self.key_norm = RMSNorm(head_size)
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, head_size

    def project(self, x):
        """`[b t s d]` -> q `[b t s n k]`, k and v `[b t s g k]`, not yet rotated."""
        merged = self.qkv(x).reshape(*x.shape[:-1], self.heads + 2 * self.kv_heads, self.head_size)
        q = merged[..., : self.heads, :]
        k = merged[..., self.heads : self.heads + self.kv_heads, :]
        v = merged[..., self.heads + self.kv_heads :, :]
        return self.query_norm(q), self.key_norm(k), v

    def merge(self, heads):
        """`[b t s n k]` -> `[b t s d]`."""
        return self.out(heads.reshape(*heads.shape[:-2], -1))
