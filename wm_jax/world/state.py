"""All that one session remembers."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from wm_jax.autoencoder import DecoderState
from wm_jax.autoencoder.autoencoder import start_decoder
from wm_jax.dynamics import RingCache, ring_cache
from wm_jax.dynamics.transformer import tokens_per_frame
from wm_jax.world.config import WorldConfig


@flax.struct.dataclass
class WorldState:
    """All that one session remembers between frames, batched over slots b (axis 0; axis 1 in the cache).

    Attributes:
      cache: Keys and values of the last r frames, the newest frame not yet among them.
      decoder: What the streaming decoder carries over.
      latent: The newest frame, clean; it enters the cache together with the next frame's first pass.
      held: The controls that led to it.
      is_known: Whether those controls were known.
      is_pending: Whether there is a newest frame at all.
      frame: Index of the next frame, 0 at start.
      key: Random key of the session; a session's dreams do not depend on its neighbours.
    """

    cache: RingCache
    decoder: DecoderState
    latent: Float[Array, "b y x c"]
    held: Bool[Array, "b keys"]
    is_known: Bool[Array, " b"]
    is_pending: Bool[Array, " b"]
    frame: Int[Array, " b"]
    key: Key[Array, " b"]

    def slot_axes(self) -> "WorldState":
        """A tree of the same form that names the slot axis of every leaf."""
        axes = jax.tree.map(lambda _: 0, self)
        layered = ("keys", "values", "sink_keys", "sink_values")
        return dataclasses.replace(axes, cache=dataclasses.replace(axes.cache, **dict.fromkeys(layered, 1)))


def init(config: WorldConfig, batch: int, key: Key[Array, " b"]) -> WorldState:
    """A batch of slots that have shown nothing yet."""
    cells = (config.grid[0] // config.dynamics.patch, config.grid[1] // config.dynamics.patch)
    return WorldState(
        cache=ring_cache.init(config.dynamics, tokens_per_frame(config.dynamics, cells), config.latent_shape, batch),
        decoder=start_decoder(config.autoencoder, config.image, batch),
        latent=jnp.zeros((batch, *config.latent_shape), jnp.float32),
        held=jnp.zeros((batch, len(config.controls.keys)), bool),
        is_known=jnp.zeros((batch,), bool),
        is_pending=jnp.zeros((batch,), bool),
        frame=jnp.zeros((batch,), jnp.int32),
        key=key,
    )
