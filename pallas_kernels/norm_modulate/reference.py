"""The meaning of norm_modulate, in plain jax.numpy."""

import jax.numpy as jnp


def normalised(x, is_centred, epsilon):
    """`x` at unit root mean square over the last axis, its mean taken away first where it is centred; in float32."""
    wide = x.astype(jnp.float32)
    if is_centred:
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    scale = jnp.reciprocal(jnp.sqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon))
    return (wide * scale).astype(x.dtype)


def norm_modulate(x, shift, scale, branch, gate, *, is_centred, epsilon):
    if branch is not None:
        x = x + (branch if gate is None else branch * gate[:, :, None])
    one = jnp.ones((), x.dtype)
    return normalised(x, is_centred, epsilon) * (one + scale[:, :, None]) + shift[:, :, None], x
