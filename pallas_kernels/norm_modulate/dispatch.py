"""The public function of this room: shape checks, then the choice of implementation."""

from typing import Any

from jaxtyping import Array, Float

from pallas_kernels.implementation import Implementation, choose


def norm_modulate(
    x: Float[Array, "b t s d"],
    shift: Float[Array, "#b #t d"],
    scale: Float[Array, "#b #t d"],
    branch: Float[Array, "b t s d"] | None = None,
    gate: Float[Array, "#b #t d"] | None = None,
    *,
    is_centred: bool = False,
    epsilon: float = 1e-6,
    implementation: Implementation = "auto",
) -> tuple[Float[Array, "b t s d"], Float[Array, "b t s d"]]:
    """What goes into a sub-block, and the residual stream it was taken from; all arrays are of one dtype.

    The stream is `x + gate * branch`: `branch` is what the last sub-block gave, `gate` one factor a frame (1 without).
    What goes in is `(1 + scale) * norm(stream) + shift`, where the norm divides by the root mean square of a token's
    channels (RMSNorm), with `is_centred` after taking away their mean (LayerNorm); float32 whatever the dtype.

    Raises:
      ValueError: shapes or dtypes do not fit, there is a gate but no branch, or the implementation named cannot take
        them.

    Source: Scalable Diffusion Models with Transformers, section 3.2 (adaLN).
    """
    if x.ndim != 4 or (branch is not None and branch.shape != x.shape):
        given = "no branch" if branch is None else f"branch {branch.shape}"
        raise ValueError(f"norm_modulate: x {x.shape} with {given}; both are [b t s d]")
    if gate is not None and branch is None:
        raise ValueError("norm_modulate: a gate without a branch to be its factor")
    batch, frames, _, width = x.shape
    for name, rows in (("shift", shift), ("scale", scale), ("gate", gate)):
        if rows is not None and not _is_a_row_a_frame(rows.shape, (batch, frames, width)):
            raise ValueError(f"norm_modulate: {name} {rows.shape} is no row a frame of x {x.shape}")
    arguments = (x, shift, scale, branch, gate)
    if dtypes := {str(a.dtype) for a in arguments if a is not None} - {str(x.dtype)}:
        raise ValueError(f"norm_modulate: x is {x.dtype}, other arrays are {', '.join(sorted(dtypes))}")
    static = {"is_centred": is_centred, "epsilon": epsilon}
    shared = tuple(i for i, a in enumerate(arguments) if a is not None and a.shape[0] != batch)
    return choose("norm_modulate", implementation, arguments, static, whole=shared)


def _is_a_row_a_frame(shape: tuple[Any, ...], full: tuple[Any, ...]) -> bool:
    return len(shape) == 3 and shape[2] == full[2] and all(n in (1, m) for n, m in zip(shape, full, strict=True))
