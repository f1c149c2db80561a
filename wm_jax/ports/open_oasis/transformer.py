"""The diffusion transformer of Oasis: `denoise` on top of the ring to play, `denoise_window` over whole windows to compare.

Both predict the velocity v. Source: Scalable Diffusion Models with Transformers, section 3.2 (adaLN-zero blocks);
Progressive Distillation, section 4 (v).
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import QuantizedWeight, block_causal_attention, cached_attention, norm_modulate, quantize
from wm_jax.nn.patch import depth_to_space, space_to_depth
from wm_jax.ports.open_oasis import layers, ring
from wm_jax.ports.open_oasis.config import OasisConfig, TransformerConfig
from wm_jax.ports.open_oasis.ring import Ring
from wm_jax.types import Params

HIGHEST_RATE = 128.0
EIGHT_BITS = ("qkv", "merge", "hidden", "out")
"""The layers whose products may be of 8 bits. Embedding, modulation and head stay: they are few, and all hangs on them."""
_gelu = functools.partial(jax.nn.gelu, approximate=True)
_norm = functools.partial(norm_modulate, is_centred=True)


@flax.struct.dataclass
class Modulation:
    """Shift, scale and gate of a few frames in every layer: once a frame and timestep, shared by its tokens.

    Attributes:
      space: Of the halves that see their own frame.
      time: Of the halves that see their own site.
      head: Shift and scale before the last layer.
    """

    space: Float[Array, "l b f m"]
    time: Float[Array, "l b f m"]
    head: Float[Array, "b f e"]

    def of(self, frames: Any) -> "Modulation":
        """Of some of the frames: a slice, or a traced index whose frame stays an axis."""
        pick = functools.partial(_pick, frames)
        return Modulation(space=pick(self.space, 2), time=pick(self.time, 2), head=pick(self.head, 1))


def for_playing(config: TransformerConfig, params: Params) -> Params:
    """The weights as playing reads them: in the dtype it computes in, those of `EIGHT_BITS` in 8 bits where the config says so.

    Source: LLM.int8 (Dettmers, Lewis, Belkada, Zettlemoyer, 2022), section 2.1: a scale for each output channel.
    """

    def ready(path, leaf):
        names = [entry.key for entry in path]
        if isinstance(leaf, QuantizedWeight):
            return leaf
        if config.weights is not None and names[0] == "blocks" and names[-1] == "kernel" and names[-2] in EIGHT_BITS:
            return quantize(leaf, config.weights)
        return leaf.astype(jnp.dtype(config.dtype))

    return jax.tree_util.tree_map_with_path(ready, params, is_leaf=lambda leaf: isinstance(leaf, QuantizedWeight))


def modulate(
    config: OasisConfig, params: Params, timestep: Int[Array, "#b f"], actions: Float[Array, "b f a"]
) -> Modulation:
    """All that timesteps and actions have to say; for all passes of a frame at once, so that its third of the weights is
    read once a frame and not once a pass.
    """
    dtype = jnp.dtype(config.transformer.dtype)
    share = np.arange(0, config.transformer.frequencies, 2, dtype=np.float32) / config.transformer.frequencies
    rates = np.exp(-np.log(10_000.0) * share).astype(np.float32)
    angle = timestep.astype(jnp.float32)[..., None] * jnp.asarray(rates)
    waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1).astype(dtype)
    given = layers.mlp(params["timestep"], waves, jax.nn.silu) + layers.linear(params["action"], actions.astype(dtype))
    given = jax.nn.silu(given)

    def rows(half):
        return jnp.stack([layers.linear(each[half]["modulation"], given) for each in layers.in_order(params["blocks"])])

    return Modulation(rows("space"), rows("time"), layers.linear(params["head_modulation"], given))


def denoise(
    config: OasisConfig,
    params: Params,
    noisy: Float[Array, "b f y x c"],
    modulation: Modulation,
    past: Ring,
    following: Int[Array, " b"],
    frame: Int[Array, "b f"],
    is_seen: Bool[Array, "b f"],
):
    """Velocities of f consecutive frames on top of the ring, and their keys (turned) and values `[l b f s n k]`.

    The ring is read, never written. It holds the frames before `following`; `frame` are the ids of those in flight. One
    that is not `is_seen` is invisible to the others.
    """
    net = config.transformer
    age, angle = ring.ages(past, following), layers.frame_angles(frame, net.head_size)[:, :, None]

    def meet(layer, q, k, v):
        q, k = layers.turn(q, angle), layers.turn(k, angle)
        entries = past.keys[layer], past.values[layer]
        seen = cached_attention(q, k, v, *entries, age, is_seen, window_frames=net.window_frames, is_per_site=True)
        return seen, (k, v)

    v, kept = _see(config, params, noisy, modulation, meet)
    return v, jax.tree.map(lambda *parts: jnp.stack(parts), *kept)


def denoise_window(
    config: OasisConfig,
    params: Params,
    noisy: Float[Array, "b t y x c"],
    timestep: Int[Array, "b t"],
    actions: Float[Array, "b t a"],
    segment: Int[Array, "b t"],
) -> Float[Array, "b t y x c"]:
    """Velocities of all frames of a window at once, as the published program computes them; nothing is remembered.

    A frame sees itself and those before it of the same `segment`.
    """
    net = config.transformer
    angle = layers.frame_angles(jnp.arange(noisy.shape[1]), net.head_size)[None, :, None]

    def meet(_, q, k, v):
        q, k = layers.turn(q, angle), layers.turn(k, angle)
        seen = block_causal_attention(q, k, v, segment, window_frames=net.window_frames, is_per_site=True)
        return seen, None

    return _see(config, params, noisy, modulate(config, params, timestep, actions), meet)[0]


def _see(config: OasisConfig, params: Params, noisy, modulation: Modulation, meet: Any):
    """Velocities, and of each time half what `meet` keeps, a list. `meet` is told which layer asks."""
    net = config.transformer
    angle = layers.grid_angles(*config.cells, layers.pixel_rates(net.head_size // 4, HIGHEST_RATE))
    cells = space_to_depth(noisy.astype(jnp.dtype(net.dtype)), net.patch)
    x = layers.linear(params["embed"], cells.reshape(*cells.shape[:2], -1, cells.shape[-1]))

    def meet_in_space(q, k, v):
        return layers.attend_in_frame(q, k, v, angle), None

    branch, kept = (), []
    for i, weights in enumerate(layers.in_order(params["blocks"])):
        x, branch, _ = _half(net.heads, weights["space"], x, branch, modulation.space[i], meet_in_space)
        x, branch, entry = _half(net.heads, weights["time"], x, branch, modulation.time[i], functools.partial(meet, i))
        kept.append(entry)
    shift, scale = jnp.split(modulation.head, 2, axis=-1)
    h, _ = _norm(x, shift, scale, *branch)
    cells = layers.linear(params["head"], h).astype(jnp.float32)
    grid = cells.reshape(*cells.shape[:2], *config.cells, -1)
    return depth_to_space(grid, net.patch), kept


def _half(heads: int, weights: Params, x, branch: tuple[Any, ...], rows, meet: Any):
    """One half of a layer. Its last branch and gate are handed on, to be joined in one pass with the norm that follows."""
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = jnp.split(rows, 6, axis=-1)
    h, x = _norm(x, shift, scale, *branch)
    seen, kept = meet(*layers.project(weights, h, heads))
    h, x = _norm(x, shift_mlp, scale_mlp, layers.linear(weights["merge"], seen.reshape(x.shape)), gate)
    return x, (layers.mlp(weights["mlp"], h, _gelu), gate_mlp), kept


def _pick(frames: Any, rows: Any, axis: int):
    if isinstance(frames, slice):
        return jax.lax.slice_in_dim(rows, frames.start, frames.stop, axis=axis)
    return jax.lax.dynamic_slice_in_dim(rows, frames, 1, axis)
