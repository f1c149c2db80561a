"""The keys and values of the last r frames in every time half: a circular buffer, entry `id % r` of frame `id`.

Keys are stored turned by their frame's id, which is exact at every age (`layers.frame_angles`): no key is ever turned
again, and nothing is rebased.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wm_jax.ports.open_oasis.config import OasisConfig


@flax.struct.dataclass
class Ring:
    """Keys and values of past frames, batched over slots b."""

    keys: Float[Array, "l b r s n k"]
    values: Float[Array, "l b r s n k"]


def init(config: OasisConfig, batch: int) -> Ring:
    """A ring in which nothing was written."""
    net, tokens = config.transformer, config.cells[0] * config.cells[1]
    shape = (net.depth, batch, net.window_frames, tokens, net.heads, net.head_size)
    # Two arrays: both are donated with every step.
    return Ring(keys=jnp.zeros(shape, jnp.dtype(net.dtype)), values=jnp.zeros(shape, jnp.dtype(net.dtype)))


def ages(ring: Ring, following: Int[Array, " b"]) -> Int[Array, "b r"]:
    """Age of each entry seen from frame `following`, the first that is not yet written; 0 where nothing was."""
    entries = ring.keys.shape[2]
    age = (following[:, None] - 1 - jnp.arange(entries)) % entries + 1
    return jnp.where(age <= following[:, None], age, 0)


def write(ring: Ring, keys: Any, values: Any, frame: Int[Array, " b"], is_written: Bool[Array, " b"]) -> Ring:
    """The ring with this frame `[l b s n k]`, its keys turned; rows that are not `is_written` keep every bit."""
    rows, slot = jnp.arange(frame.shape[0]), frame % ring.keys.shape[2]
    keep = is_written[None, :, None, None, None]

    def put(entries, new):
        return entries.at[:, rows, slot].set(jnp.where(keep, new.astype(entries.dtype), entries[:, rows, slot]))

    return Ring(keys=put(ring.keys, keys), values=put(ring.values, values))
