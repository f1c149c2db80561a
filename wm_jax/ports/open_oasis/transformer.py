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

from pallas_kernels import block_causal_attention, cached_attention
from wm_jax.nn.patch import depth_to_space, space_to_depth
from wm_jax.ports.open_oasis import layers, ring
from wm_jax.ports.open_oasis.config import OasisConfig
from wm_jax.ports.open_oasis.ring import Ring
from wm_jax.types import Params

HIGHEST_RATE = 128.0
_gelu = functools.partial(jax.nn.gelu, approximate=True)


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
        stacked = params["blocks"][half]["modulation"]
        return jax.lax.map(lambda weights: layers.linear(weights, given), stacked)

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

    def meet(entries, q, k, v):
        (ring_k, ring_v), q, k = entries, layers.turn(q, angle), layers.turn(k, angle)
        seen = cached_attention(
            q, k, v, ring_k, ring_v, age, is_seen, window_frames=net.window_frames, is_per_site=True
        )
        return seen, (k, v)

    return _see(config, params, noisy, modulation, meet, (past.keys, past.values))


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

    return _see(config, params, noisy, modulate(config, params, timestep, actions), meet, None)[0]


def _see(config: OasisConfig, params: Params, noisy, modulation: Modulation, meet: Any, past: Any):
    """Velocities, and what `meet` keeps of each time half, stacked."""
    net = config.transformer
    angle = layers.grid_angles(*config.cells, layers.pixel_rates(net.head_size // 4, HIGHEST_RATE))
    cells = space_to_depth(noisy.astype(jnp.dtype(net.dtype)), net.patch)
    x = layers.linear(params["embed"], cells.reshape(*cells.shape[:2], -1, cells.shape[-1]))

    def meet_in_space(q, k, v):
        return layers.attend_in_frame(q, k, v, angle), None

    def layer(x, inputs):
        weights, space, time, entries = inputs
        x, _ = _half(net.heads, weights["space"], x, space, meet_in_space)
        return _half(net.heads, weights["time"], x, time, functools.partial(meet, entries))

    x, kept = jax.lax.scan(layer, x, (params["blocks"], modulation.space, modulation.time, past))
    shift, scale = jnp.split(modulation.head, 2, axis=-1)
    cells = layers.linear(params["head"], _shift_scale(x, shift, scale)).astype(jnp.float32)
    grid = cells.reshape(*cells.shape[:2], *config.cells, -1)
    return depth_to_space(grid, net.patch), kept


def _half(heads: int, weights: Params, x, rows, meet: Any):
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = jnp.split(rows, 6, axis=-1)
    seen, kept = meet(*layers.project(weights, _shift_scale(x, shift, scale), heads))
    x = x + gate[:, :, None] * layers.linear(weights["merge"], seen.reshape(x.shape))
    x = x + gate_mlp[:, :, None] * layers.mlp(weights["mlp"], _shift_scale(x, shift_mlp, scale_mlp), _gelu)
    return x, kept


def _shift_scale(x, shift, scale):
    return layers.layer_norm(x) * (jnp.ones((), x.dtype) + scale[:, :, None]) + shift[:, :, None]


def _pick(frames: Any, rows: Any, axis: int):
    if isinstance(frames, slice):
        return jax.lax.slice_in_dim(rows, frames.start, frames.stop, axis=axis)
    return jax.lax.dynamic_slice_in_dim(rows, frames, 1, axis)
