"""OasisWorld: the static half of the published world, and its weights from the released files."""

import dataclasses
import functools
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt8

from wm_jax import checkpoint
from wm_jax.ports.open_oasis import frame, state, transformer, weights
from wm_jax.ports.open_oasis.config import RELEASED, OasisConfig
from wm_jax.ports.open_oasis.controls import to_actions
from wm_jax.ports.open_oasis.state import OasisState
from wm_jax.types import Controls, Params


@dataclasses.dataclass(frozen=True)
class OasisWorld:
    """Everything static: hashable, the same for all sessions, compared by its config; a `wm.Playable`."""

    config: OasisConfig
    noises: ClassVar[int] = 1
    is_prompt_blurred: ClassVar[bool] = False
    takes_image: ClassVar[bool] = True

    def init(self, key: jax.Array) -> Params:
        """Random weights of the published shapes, for tests and benchmarks; one compiled call."""
        return _init(self.config, key)

    def shapes(self) -> Params:
        """The tree of weights as shapes, without making them."""
        return weights.shapes(self.config)

    def for_playing(self, params: Params) -> Params:
        """The weights as playing reads them, each room's in the dtype it computes in, the transformer's perhaps in 8 bits."""
        dtype = jnp.dtype(self.config.autoencoder.dtype)
        return {
            "transformer": transformer.for_playing(self.config.transformer, params["transformer"]),
            "autoencoder": jax.tree.map(lambda leaf: leaf.astype(dtype), params["autoencoder"]),
        }

    def empty(self, batch: int, key: Key[Array, " b"]) -> OasisState:
        """A batch of slots that have shown nothing yet, with these keys, one a row."""
        return state.init(self.config, batch, key)

    def see(
        self,
        params: Params,
        frames: UInt8[Array, "b p h w 3"],
        controls: Controls,
        is_known: Bool[Array, "b p"],
        seen: OasisState,
        noise: Float[Array, "b p y x c"] | None,
    ) -> OasisState:
        """The state after a prompt; where nobody knows what led to a frame, nothing was done, as published."""
        del noise
        actions = jnp.where(is_known[..., None], to_actions(controls), 0.0)
        return frame.see_latents(self.config, params, frame.encode(self.config, params, frames), actions, seen)

    def next_frame(
        self,
        params: Params,
        past: OasisState,
        controls: Controls,
        active: Bool[Array, " b"],
        noise: Float[Array, "b 1 y x c"],
    ) -> tuple[OasisState, UInt8[Array, "b h w 3"]]:
        """The state after the next frame, and the frame: all of its computation, nothing drawn."""
        new = frame.next_latent(self.config, params, past, to_actions(controls), active, noise[:, 0])
        return new, frame.decode(self.config, params, new.latent[:, None])[:, 0]


def load(folder: str | Path, config: OasisConfig = RELEASED) -> tuple[OasisWorld, Params]:
    """The world and its weights from a folder with `oasis500m.safetensors` and `vit-l-20.safetensors`, as released.

    Raises:
      CheckpointError: a file is missing or broken, or tensors are missing, extra or mis-shaped against the config; all
        are named.
    """
    return OasisWorld(config), jax.device_put(weights.read(Path(folder), config))


def geometry(folder: str | Path, config: OasisConfig = RELEASED) -> OasisConfig:
    """`config` with all that the files in the folder tell of themselves, for models of other sizes than the released one.

    Raises:
      CheckpointError: a file is missing or broken, or has not even the tensors that tell.
    """
    return weights.geometry(Path(folder), config)


@functools.partial(jax.jit, static_argnums=0)
def _init(config: OasisConfig, key: jax.Array) -> Params:
    # rbg: XLA compiles one threefry program a leaf for half a minute on a CPU.
    words = jnp.resize(jax.random.key_data(key).reshape(-1), (4,))
    flat = checkpoint.flatten_tree(weights.shapes(config))
    keys = jax.random.split(jax.random.wrap_key_data(words, impl="rbg"), len(flat))

    def draw(name, leaf, key):
        scale = leaf.shape[-2] ** -0.5 if name.endswith("kernel") else 0.02
        noise = jnp.float32(scale) * jax.random.normal(key, leaf.shape, jnp.float32)
        return noise + 1.0 if name.endswith("gain") else noise

    made = {name: draw(name, leaf, keys[i]) for i, (name, leaf) in enumerate(flat.items())}
    return checkpoint.nest_tree(made)
