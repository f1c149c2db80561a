"""World: the static half of a world, where modules are split into plain arrays once, and joined again inside a trace."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from wm_jax import checkpoint
from wm_jax import config as config_file
from wm_jax.autoencoder import AutoencoderConfig
from wm_jax.autoencoder.autoencoder import start_decoder, to_bytes
from wm_jax.dynamics import DynamicsConfig
from wm_jax.types import Controls, ControlSpace, KeyBinding, Params, Prompt
from wm_jax.world import frame, state
from wm_jax.world.config import SamplerConfig, WorldConfig
from wm_jax.world.model import WorldModel
from wm_jax.world.state import WorldState


@dataclasses.dataclass(frozen=True)
class World:
    """Everything static about a world: hashable, the same for all sessions, compared by its config; a `Playable`."""

    config: WorldConfig
    noises: ClassVar[int] = 2
    is_prompt_blurred: ClassVar[bool] = True
    takes_image: ClassVar[bool] = False

    def init(self, key: jax.Array) -> Params:
        """Fresh weights: nested dicts of float32 arrays, layers stacked; one compiled call."""
        return _init(self.config, key)

    def shapes(self) -> Params:
        """The tree of weights as shapes, without making them."""
        return nnx.to_pure_dict(_blueprint(self.config)[1])

    def for_playing(self, params: Params) -> Params:
        """The weights as playing reads them: those of the dynamics in the dtype it computes in.

        The same dreams to the bit; in bfloat16 half the memory, and no frame spends time on rounding them again.
        """
        dtype = jnp.dtype(self.config.dynamics.dtype)
        return {**params, "dynamics": jax.tree.map(lambda leaf: leaf.astype(dtype), params["dynamics"])}

    def empty(self, batch: int, key: jax.Array) -> WorldState:
        """A batch of slots that have shown nothing yet, with these keys, one a row."""
        return state.init(self.config, batch, key)

    def see(
        self,
        params: Params,
        frames: UInt8[Array, "b p h w 3"],
        controls: Controls,
        is_known: Bool[Array, "b p"],
        seen: WorldState,
        noise: Float[Array, "b p y x c"] | None,
    ) -> WorldState:
        """The state after a prompt, whose frames are remembered blurred by `noise`."""
        assert noise is not None
        return frame.see(self.config, self.model(params), frames, controls.keys, is_known, seen, noise)

    def next_frame(
        self,
        params: Params,
        past: WorldState,
        controls: Controls,
        active: Bool[Array, " b"],
        noise: Float[Array, "b 2 y x c"],
    ) -> tuple[WorldState, UInt8[Array, "b h w 3"]]:
        """The state after the next frame, and the frame: all of its computation, nothing drawn."""
        return frame.next_frame(self.config, self.model(params), past, controls.keys, active, noise)

    def model(self, params: Params) -> WorldModel:
        """The modules around these weights; for use inside a traced function only."""
        graph, weights = _blueprint(self.config)
        weights = jax.tree.map(lambda leaf: leaf, weights)
        nnx.replace_by_pure_dict(weights, params)
        return nnx.merge(graph, weights)


def load(folder: str | Path) -> tuple[World, Params]:
    """The world and its weights from one folder (`worlds/<name>`, or a finished run's).

    Raises:
      CheckpointError: not a world folder, or weights missing, extra or mis-shaped against its config.json.
      ConfigError: config.json is not a world's.
    """
    folder = world_folder(folder)
    raw, params = checkpoint.load_world_files(folder)
    world = World(config_file.from_json(WorldConfig, raw, str(folder / "config.json")))
    checkpoint.check_tree(world.shapes(), params, folder)
    return world, jax.device_put(jax.tree.map(lambda leaf: np.array(leaf, np.float32), params))


def world_folder(folder: str | Path) -> Path:
    """The folder itself, or `world/` inside it where it is a run's."""
    folder = Path(folder)
    return folder / "world" if (folder / "world" / "config.json").is_file() else folder


def load_prompts(folder: str | Path) -> Prompt:
    """Real first frames shipped with a world: frames `[n p h w 3]` and what led to them; empty where it has none.

    Raises:
      ValueError: frames or keys are missing, are not as many, or are of another size than the world's.
    """
    arrays = checkpoint.load_prompts(world_folder(folder))
    if arrays is None:
        return Prompt()
    if {"frames", "keys"} - set(arrays):
        raise ValueError(f"{folder}: prompts.npz holds {', '.join(sorted(arrays))}; it must hold frames and keys")
    config = config_file.read(WorldConfig, world_folder(folder) / "config.json")
    frames, keys = arrays["frames"].shape, arrays["keys"].shape
    wanted = (*frames[:2], *config.image, 3), (*frames[:2], len(config.controls.keys))
    if len(frames) != 5 or (frames, keys) != wanted:
        raise ValueError(
            f"{folder}: prompts.npz has frames {list(frames)} and keys {list(keys)}; world {config.name!r} needs "
            f"frames [n p {config.image[0]} {config.image[1]} 3] and keys [n p {len(config.controls.keys)}]"
        )
    return Prompt(frames=arrays["frames"], controls=Controls(keys=arrays["keys"]))


@functools.partial(jax.jit, static_argnums=0)
def reconstruct(world: World, params: Params, frames: UInt8[Array, "b t h w 3"]) -> UInt8[Array, "b t h w 3"]:
    """Frames through the autoencoder alone: the ceiling of everything the world can show."""
    autoencoder = world.model(params).autoencoder
    start = start_decoder(world.config.autoencoder, world.config.image, frames.shape[0])
    return to_bytes(autoencoder.decode(autoencoder.encode(frames), start)[0])


def tiny_world(seed: int = 0, **dynamics: Any) -> tuple[World, Params]:
    """A random world that compiles in seconds, for tests and smoke runs: 32 x 32, four arrow keys."""
    keys = tuple(KeyBinding(f"Arrow{way}", way.lower()) for way in ("Left", "Right", "Up", "Down"))
    sizes = dict(width=32, heads=2, kv_heads=1, head_size=16, hidden=64, repeats=1, registers=1, window_frames=4)
    config = WorldConfig(
        name="tiny",
        env="bouncing_ball",
        image=(32, 32),
        fps=30.0,
        controls=ControlSpace(keys),
        autoencoder=AutoencoderConfig(patch=4, widths=(16, 16), blocks=(1, 1), channels=4),
        dynamics=DynamicsConfig(**{**sizes, **dynamics}),
        sampler=SamplerConfig(steps=2),
    )
    world = World(config)
    return world, _roughen(world.init(jax.random.key(seed)), seed)


def _roughen(params: Params, seed: int) -> Params:
    """Replaces the zero-initialised leaves by noise, so that an untrained world already listens and moves."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    noisy = [leaf + jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
    params = jax.tree.unflatten(tree, noisy)
    params["autoencoder"]["latent_deviation"] = jnp.ones_like(params["autoencoder"]["latent_deviation"])
    return params


@functools.lru_cache(maxsize=64)
def _blueprint(config: WorldConfig):
    return nnx.split(nnx.eval_shape(lambda: WorldModel(config, nnx.Rngs(0))))


@functools.partial(jax.jit, static_argnums=0)
def _init(config: WorldConfig, key: jax.Array) -> Params:
    # XLA compiles one threefry program a weight for half a minute on a CPU; rbg is a single instruction each.
    words = jax.random.key_data(key).reshape(-1)
    stream = jax.random.wrap_key_data(jnp.resize(words, (4,)), impl="rbg")
    return nnx.to_pure_dict(nnx.split(WorldModel(config, nnx.Rngs(params=stream)))[1])
