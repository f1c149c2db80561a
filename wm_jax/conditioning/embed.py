"""Controls to Conditions: held keys become one token of their frame and one vector that modulates it."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from wm_jax.nn.linear import Linear


@dataclasses.dataclass(frozen=True)
class ConditioningConfig:
    """What the world listens to.

    Attributes:
      keys: How many keys it has; column i of the controls is key i of the world's ControlSpace.
    """

    keys: int


@flax.struct.dataclass
class Conditions:
    """The doors through which everything a user gives enters the network.

    Attributes:
      tokens: Appended to the tokens of their own frame.
      modulation: Pooled, added to the modulation of their frame.
    """

    tokens: Float[Array, "b t j d"]
    modulation: Float[Array, "b t d"]


class Embedder(nnx.Module):
    """Held keys -> one token; where the controls are unknown (first frames, dropped streams) a learned null."""

    def __init__(self, config: ConditioningConfig, width: int, rngs: nnx.Rngs):
        self.first = Linear(config.keys, width, rngs, use_bias=True)
        self.second = Linear(width, width, rngs, use_bias=True)
        self.null = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,), jnp.float32))

    def __call__(self, keys: Bool[Array, "b t keys"], is_known: Bool[Array, "b t"]) -> Conditions:
        held = keys.astype(jnp.float32) * 2.0 - 1.0
        token = self.second(jax.nn.silu(self.first(held)))
        token = jnp.where(is_known[..., None], token, self.null[...])
        return Conditions(tokens=token[:, :, None], modulation=token)
