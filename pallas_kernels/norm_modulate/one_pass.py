"""norm_modulate in one pass over memory each way: the arithmetic of a block of rows, and the gradient, for any platform.

A row is one token's channels. Everything is float32 between reading and writing. The gradient computes the norm again
from the stream, which is cheaper than to read it.

Source: Layer Normalization, section 3, and its derivative; Scalable Diffusion Models with Transformers, section 3.2.
"""

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax


class Norm(NamedTuple):
    """Which norm: see the op."""

    is_centred: bool
    epsilon: float


class Forward(Protocol):
    def __call__(self, norm: Norm, x: Any, shift: Any, scale: Any, joined: Any, interpret: Any) -> tuple[Any, ...]: ...


class Backward(Protocol):
    def __call__(
        self, norm: Norm, stream: Any, scale: Any, d_h: Any, d_stream: Any, joined: Any, interpret: Any
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]: ...


class Kernels(NamedTuple):
    """One platform's kernels; `[b t s d]` arrays with rows of modulation `[b t d]`; `joined` is () or (branch, gate).

    Attributes:
      forward: What `forward_rows` gives, of all rows.
      backward: What `backward_rows` gives, of all rows: its first part, and of its second part, in float32, sums over
        some parts of each frame, `[b t parts d]`.
    """

    forward: Forward
    backward: Backward


def norm_modulate(
    kernels: Kernels, x: Any, shift: Any, scale: Any, branch: Any, gate: Any, *,
    is_centred: bool, epsilon: float, interpret: Any,
) -> Any:  # fmt: skip
    """The op by these kernels; differentiable in every array."""
    batch, frames, _, width = x.shape

    def one_a_frame(rows: Any) -> Any:
        return jnp.broadcast_to(rows, (batch, frames, width))

    joined = ()
    if branch is not None:
        joined = (branch, one_a_frame(jnp.ones((), x.dtype) if gate is None else gate))
    return _one_pass(kernels, Norm(is_centred, epsilon), interpret, x, one_a_frame(shift), one_a_frame(scale), joined)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _one_pass(kernels: Kernels, norm: Norm, interpret: Any, x: Any, shift: Any, scale: Any, joined: Any) -> Any:
    h, *stream = kernels.forward(norm, x, shift, scale, joined, interpret)
    return h, stream[0] if stream else x


def _one_pass_forward(kernels, norm, interpret, x, shift, scale, joined):
    h, stream = _one_pass(kernels, norm, interpret, x, shift, scale, joined)
    return (h, stream), (stream, scale, joined)


def _one_pass_backward(kernels, norm, interpret, kept, given):
    stream, scale, joined = kept
    d_rows, sums = kernels.backward(norm, stream, scale, *given, joined, interpret)
    d_x, *d_branch = d_rows
    d_shift, d_scale, *d_gate = (parts.sum(2).astype(scale.dtype) for parts in sums)
    return d_x, d_shift, d_scale, (*d_branch, *d_gate)


_one_pass.defvjp(_one_pass_forward, _one_pass_backward)


# ---- the arithmetic, inside a kernel: `[rows d]` with modulation `[1 d]`, or one row `[d]` with modulation `[d]`


def forward_rows(norm: Norm, x: Any, shift: Any, scale: Any, joined: tuple[Any, ...]) -> tuple[Any, ...]:
    """What goes into the sub-block, and with a branch the stream; of the dtype of x."""
    stream = x
    if joined:
        branch, gate = map(_wide, joined)
        stream = (_wide(x) + branch * gate).astype(x.dtype)
    normed, _ = _normalised(norm, _wide(stream))
    h = (normed * (1.0 + _wide(scale)) + _wide(shift)).astype(x.dtype)
    return (h, stream) if joined else (h,)


def backward_rows(
    norm: Norm, stream: Any, scale: Any, d_h: Any, d_stream: Any, joined: tuple[Any, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """(d_x, and with a branch d_branch), (what each row adds to d_shift, d_scale and with a branch d_gate)."""
    normed, spread = _normalised(norm, _wide(stream))
    d_h, dtype = _wide(d_h), stream.dtype
    d_normed = d_h * (1.0 + _wide(scale))
    along = d_normed - normed * _mean(d_normed * normed)
    if norm.is_centred:
        along = along - _mean(d_normed)
    d_x, added = _wide(d_stream) + spread * along, (d_h, d_h * normed)
    if not joined:
        return (d_x.astype(dtype),), added
    branch, gate = map(_wide, joined)
    return (d_x.astype(dtype), (d_x * gate).astype(dtype)), (*added, d_x * branch)


def _normalised(norm: Norm, x: Any) -> tuple[Any, Any]:
    """The rows at unit root mean square, and the factor that brought them there."""
    if norm.is_centred:
        x = x - _mean(x)
    spread = lax.rsqrt(_mean(x * x) + norm.epsilon)
    return x * spread, spread


def _mean(x: Any) -> Any:
    return jnp.sum(x, axis=-1, keepdims=x.ndim > 1) * (1.0 / x.shape[-1])


def _wide(a: Any) -> Any:
    return a.astype(jnp.float32)
