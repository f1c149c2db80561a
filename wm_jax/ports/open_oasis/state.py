"""All that one session of Oasis remembers."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from wm_jax.ports.open_oasis import ring
from wm_jax.ports.open_oasis.ring import Ring
from wm_jax.ports.open_oasis.world import OasisWorld
from wm_jax.world.state import check_key


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


def empty(world: OasisWorld, batch: int = 1, key: jax.Array | None = None) -> OasisState:
    """A batch of slots that have shown nothing yet; each row gets its own fold of `key`, or its own of `batch` keys.

    Raises:
      ValueError: the key is untyped, or there is another number of keys than of rows.
    """
    key = jax.random.key(0) if key is None else key
    if check_key(key) not in (None, batch):
        raise ValueError(f"there are {key.shape[0]} keys for {batch} rows: give one key, or one a row")
    return OasisState(
        past=ring.init(world.config, batch),
        latent=jnp.zeros((batch, *world.config.latent_shape), jnp.float32),
        action=jnp.zeros((batch, world.config.transformer.actions), jnp.float32),
        frame=jnp.zeros((batch,), jnp.int32),
        # A copy: the state is donated with every step, the caller's keys are not ours to give away.
        key=jnp.copy(key) if key.ndim else jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(batch)),
    )
