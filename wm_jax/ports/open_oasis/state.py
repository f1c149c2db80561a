"""All that one session of Oasis remembers."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from wm_jax.ports.open_oasis import ring
from wm_jax.ports.open_oasis.config import OasisConfig
from wm_jax.ports.open_oasis.ring import Ring


@flax.struct.dataclass
class OasisState:
    """All that one session remembers between frames, batched over slots b (axis 0; axis 1 in the ring).

    Attributes:
      past: Keys and values of the last frames, the newest frame not yet among them.
      latent: The newest frame, clean; it enters the ring together with the next frame's first pass.
      action: What led to it.
      frame: Index of the next frame, 0 at start: then there is no newest frame.
      key: Random key of the session; a session's dreams do not depend on its neighbours.
    """

    past: Ring
    latent: Float[Array, "b y x c"]
    action: Float[Array, "b a"]
    frame: Int[Array, " b"]
    key: Key[Array, " b"]

    def slot_axes(self) -> "OasisState":
        """A tree of the same form that names the slot axis of every leaf."""
        axes = jax.tree.map(lambda _: 0, self)
        return dataclasses.replace(axes, past=jax.tree.map(lambda _: 1, self.past))


def init(config: OasisConfig, batch: int, key: Key[Array, " b"]) -> OasisState:
    """A batch of slots that have shown nothing yet."""
    return OasisState(
        past=ring.init(config, batch),
        latent=jnp.zeros((batch, *config.latent_shape), jnp.float32),
        action=jnp.zeros((batch, config.transformer.actions), jnp.float32),
        frame=jnp.zeros((batch,), jnp.int32),
        key=key,
    )
