"""Signal levels: 0 is pure noise, 1 is clean."""

from jaxtyping import Array, Float


def mix(noise: Float[Array, "*b"], clean: Float[Array, "*b"], level: Float[Array, "*#b"] | float):
    """`(1 - level) * noise + level * clean`. Source: Flow Matching for Generative Modeling, section 4.1."""
    return (1.0 - level) * noise + level * clean


def update(noisy: Float[Array, "*b"], clean: Float[Array, "*b"], level, stride):
    """The straight step from `level` to `level + stride` towards the predicted clean latent.

    At `stride == 1 - level` it lands on the prediction.
    """
    return noisy + (clean - noisy) * (stride / (1.0 - level))
