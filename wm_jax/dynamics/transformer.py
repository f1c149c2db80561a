"""The dynamics: `denoise_clip` to train, `denoise` and `commit` to play; all predict the clean latent.

Source: Training Agents Inside of Scalable World Models (x-prediction, space and time layers, registers);
PixArt-alpha, section 2.3 (adaLN-single).
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import block_causal_attention, cached_attention
from wm_jax.dynamics import ring_cache
from wm_jax.dynamics.block import Block
from wm_jax.dynamics.config import DynamicsConfig
from wm_jax.dynamics.ring_cache import RingCache, turned
from wm_jax.nn.linear import Linear
from wm_jax.nn.norm import rms_norm
from wm_jax.nn.patch import depth_to_space, neighbourhoods, space_to_depth
from wm_jax.nn.rope import rotate_grid

SPACE_BASE = 100.0
# In training: a scan copies what its gradient keeps, a tenth of a small model's step on a CPU. Playing has no gradient, and
# a program that is not unrolled is traced and loaded in two thirds of the time.
UNROLLED_REPEATS = 4


class Dynamics(nnx.Module):
    """Weights of the transformer. Latents are `[y x c]`, `grid` is (y, x)."""

    def __init__(self, config: DynamicsConfig, grid: tuple[int, int], channels: int, rngs: nnx.Rngs):
        if grid[0] % config.patch or grid[1] % config.patch:
            raise ValueError(f"a latent grid of {grid} cannot be cut into patches of {config.patch}")
        self.config, self.cells = config, (grid[0] // config.patch, grid[1] // config.patch)
        width, token = config.width, channels * config.patch**2

        def table(*shape):
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, jnp.float32))

        self.embed = Linear(token, width, rngs, use_bias=True)
        if config.recent_frames:
            seen = config.recent_frames * channels * (config.patch + 2 * _halo(config)) ** 2
            self.embed_recent = Linear(seen, width, rngs)
        self.position = table(self.cells[0] * self.cells[1], width)
        self.registers = table(config.registers, width)
        self.level_table = table(config.levels, width)
        self.stride_table = table(config.stride_rows, width)
        self.noise_token = Linear(2 * width, width, rngs, use_bias=True)
        self.modulation_in = Linear(2 * width, width, rngs, use_bias=True)
        self.modulation_out = Linear(width, 6 * width, rngs, scale=0.0)
        self.modulation_conditions = Linear(width, 6 * width, rngs, scale=0.0)
        self.head = Linear(width, token, rngs, scale=0.0, use_bias=True)
        self.blocks = _stack_blocks(config, rngs)

    @property
    def tokens_per_frame(self) -> int:
        return tokens_per_frame(self.config, self.cells)

    def denoise_clip(
        self,
        noisy: Float[Array, "b t y x c"],
        level: Int[Array, "b t"],
        stride: Int[Array, "b t"],
        conditions: Any,
        segment: Int[Array, "b t"],
        past: tuple[Float[Array, "b t y x c"], Int[Array, "b t"]] | None = None,
        is_rematerialised: bool = False,
    ) -> Float[Array, "b t y x c"]:
        """The clean latents of a clip, frame t seen with frames t - window .. t - 1 of its own segment.

        `level` and `stride` are rows of their tables: signal level `level / levels`, stride `2 ** -stride`. Without
        `past` a frame sees the noisy frames before it (diffusion forcing). With `past`, the same frames as remembered
        and their levels, it sees those instead, as when playing (teacher forcing of all frames in one pass).
        `is_rematerialised` keeps but the input of each layer for the gradient and computes the layer again: it costs a
        forward pass more and saves most of the memory.

        Source: Diffusion Forcing, section 3; Causal Forcing and LongLive 2.0 (teacher forcing on a clean copy).
        """
        drawn = (noisy, level, stride, conditions, segment)
        recent = self._recent(noisy if past is None else past[0], segment)
        if past is None:
            return self._see_clip(*drawn, recent, drafts=0, is_rematerialised=is_rematerialised)
        remembered = (*past, jnp.full_like(stride, self.config.stride_rows - 1), conditions, segment)
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), (*remembered, recent), (*drawn, recent))
        return self._see_clip(*both, drafts=noisy.shape[1], is_rematerialised=is_rematerialised)

    def _see_clip(self, noisy, level, stride, conditions, segment, recent, drafts: int, is_rematerialised: bool):
        """The clip, or its second half where that is drafts of the first, in one pass."""
        config, frames = self.config, noisy.shape[1]
        position = (jnp.arange(frames) % (frames - drafts))[None, :, None]
        oldest = jnp.asarray(config.window_frames + 1)[None, None, None]

        def meet(kind, _past, q, k, v):
            q_sink = turned(q, oldest) if config.sinks else None
            k_sink = k[:, : config.sinks] if config.sinks else None
            return block_causal_attention(
                turned(q, position), turned(k, position), v, segment, q_sink, k_sink,
                window_frames=config.window_frames, is_per_site=kind == "time", drafts=drafts,
            )  # fmt: skip

        tokens, modulation = self._tokens(noisy, level, stride, conditions, recent)
        tokens, _ = self._layers(tokens, modulation, meet, None, is_rematerialised)
        return self._latents(tokens[:, drafts:])

    def denoise(
        self,
        noisy: Float[Array, "b f y x c"],
        level: Int[Array, "#b f"],
        stride: Int[Array, "#b f"],
        conditions: Any,
        cache: RingCache,
        is_seen: Bool[Array, "b f"],
    ):
        """Clean latents of f consecutive frames on top of the cache, and their keys and values `[l b f s g k]`.

        The cache is read, never written: `ring_cache.write` commits what this returns. The first frame in flight is
        frame `cache.next`. A frame that is not `is_seen` is invisible to the others.
        """
        config = self.config
        age = ring_cache.ages(cache)
        now = cache.next[:, None, None] + jnp.arange(noisy.shape[1])[None, :, None]

        def meet(kind, past, q, k, v):
            ring_k, ring_v, sink_k, sink_v = past
            return cached_attention(
                turned(q, now), turned(k, now), v, ring_k, ring_v, age, is_seen, self._sink(q, sink_k, sink_v, cache),
                window_frames=config.window_frames, is_per_site=kind == "time",
            )  # fmt: skip

        recent = _before(cache.recent, jnp.where(is_seen[..., None, None, None], noisy, 0.0))
        tokens, modulation = self._tokens(noisy, level, stride, conditions, recent)
        past = (cache.keys, cache.values, cache.sink_keys, cache.sink_values)
        tokens, written = self._layers(tokens, modulation, meet, past)
        return self._latents(tokens), written

    def commit(
        self,
        latents: Float[Array, "b f y x c"],
        conditions: Any,
        cache: RingCache,
        is_written: Bool[Array, " b"],
    ) -> RingCache:
        """The cache with these frames, already noised to the context level, as its newest entries.

        Source: Diffusion Forcing, section 3; Self Forcing, algorithm 1.
        """
        frames = latents.shape[1]
        level = jnp.full((1, frames), self.config.context_index)
        stride = jnp.full((1, frames), self.config.stride_rows - 1)
        seen = jnp.ones((latents.shape[0], frames), bool)
        _, (keys, values) = self.denoise(latents, level, stride, conditions, cache, seen)
        return ring_cache.write(cache, keys, values, latents, is_written)

    def _recent(self, latents, segment):
        """Frames just before each frame of a clip, `[b t n y x c]`; zeros where its segment has none."""
        count = self.config.recent_frames
        before = _before(jnp.zeros((latents.shape[0], count, *latents.shape[2:])), latents)
        mine = _before(jnp.repeat(segment[:, :1] - 1, count, axis=1), segment) == segment[:, :, None]
        return jnp.where(mine[..., None, None, None], before, 0.0)

    def _sink(self, q, sink_k, sink_v, cache):
        """Sink frames as a second part of the softmax: seen once they left the window, at the age just beyond it."""
        config = self.config
        if not config.sinks:
            return None
        now = cache.next[:, None, None] + jnp.arange(q.shape[1])[None, :, None]
        beyond = now - jnp.arange(config.sinks) > config.window_frames
        oldest = jnp.asarray(config.window_frames + 1)[None, None, None]
        return turned(q, oldest), sink_k.astype(q.dtype), sink_v.astype(q.dtype), beyond

    def _tokens(self, noisy, level, stride, conditions, recent):
        """Tokens `[b t s d]` (grid, noise, conditions, registers) and the modulation row of each frame."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        batch, frames = noisy.shape[:2]
        cells = space_to_depth(noisy, config.patch).reshape(batch, frames, -1, self.embed.kernel[...].shape[0])
        grid = self.embed(cells.astype(dtype)) + self.position[...].astype(dtype)
        if config.recent_frames:
            around = neighbourhoods(recent, config.patch, _halo(config))
            around = jnp.moveaxis(around, 2, -2).reshape(batch, frames, grid.shape[2], -1)
            grid = grid + self.embed_recent(around.astype(dtype))
        both = jnp.concatenate([self.level_table[...][level], self.stride_table[...][stride]], axis=-1).astype(dtype)
        noise = jnp.broadcast_to(self.noise_token(both)[:, :, None], (batch, frames, 1, config.width))
        registers = jnp.broadcast_to(self.registers[...].astype(dtype), (batch, frames, *self.registers[...].shape))
        given = conditions.tokens.astype(dtype)
        modulation = self.modulation_out(jax.nn.silu(self.modulation_in(both)))
        modulation = modulation + self.modulation_conditions(conditions.modulation.astype(dtype))
        return jnp.concatenate([grid, noise, given, registers], axis=2), modulation

    def _layers(self, x, modulation, meet, past, is_rematerialised=False):
        """All layers by one scan over super-blocks; keys and values of the layers that look back, `[l b t s g k]`."""
        config = self.config
        graph, weights = nnx.split(self.blocks)
        looks_back = sum(kind != "space" for kind in config.pattern)

        def split(tree, count):
            return jax.tree.map(lambda a: a.reshape(config.repeats, count, *a.shape[1:]), tree)

        def super_block(x, layer):
            weights, past = layer
            keys, values, seen = [], [], 0
            for i, kind in enumerate(config.pattern):
                block = nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], weights))
                block = jax.checkpoint(block, static_argnums=2) if is_rematerialised else block
                if kind == "space":
                    x, _, _ = block(x, modulation, self._meet_in_space)
                    continue
                mine = jax.tree.map(lambda a, i=seen: a[i], past)
                x, k, v = block(x, modulation, lambda q, k, v, kind=kind, mine=mine: meet(kind, mine, q, k, v))
                keys, values, seen = [*keys, k], [*values, v], seen + 1
            written = (jnp.stack(keys), jnp.stack(values)) if past is not None else None
            return x, written

        layers = (split(weights, len(config.pattern)), split(past, looks_back))
        is_unrolled = past is None and config.repeats <= UNROLLED_REPEATS
        x, written = jax.lax.scan(super_block, x, layers, unroll=is_unrolled)
        return x, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), written)

    def _meet_in_space(self, q, k, v):
        """Attention inside each frame: to the op a clip of one frame, so that its kernels serve here too."""
        q, k = (rotate_grid(a, *self.cells, SPACE_BASE) for a in (q, k))
        alone_q, alone_k, alone_v = (rearrange(a, "b t s n k -> (b t) 1 s n k") for a in (q, k, v))
        segment = jnp.zeros((q.shape[0] * q.shape[1], 1), jnp.int32)
        out = block_causal_attention(alone_q, alone_k, alone_v, segment, window_frames=0, is_per_site=False)
        return out.reshape(q.shape)

    def _latents(self, tokens):
        grid = self.cells[0] * self.cells[1]
        cells = self.head(rms_norm(tokens[:, :, :grid])).astype(jnp.float32)
        batch, frames = cells.shape[:2]
        return depth_to_space(cells.reshape(batch, frames, *self.cells, -1), self.config.patch)


def _before(start, frames):
    """`[b n ...]`, `[b f ...]` -> `[b f n ...]`: the n entries before each of the frames, the newest last."""
    line, (count, length) = jnp.concatenate([start, frames], axis=1), (start.shape[1], frames.shape[1])
    if not count:
        return jnp.zeros((*frames.shape[:2], 0, *frames.shape[2:]), frames.dtype)
    return jnp.stack([line[:, i : i + length] for i in range(count)], axis=2)


def _halo(config: DynamicsConfig) -> int:
    """Latent cells around a token that it sees of recent frames: half of its own size, one at least."""
    return max(config.patch // 2, 1)


def tokens_per_frame(config: DynamicsConfig, cells: tuple[int, int]) -> int:
    """Grid cells, the noise token, one token of controls, the registers."""
    return cells[0] * cells[1] + 2 + config.registers


def _stack_blocks(config: DynamicsConfig, rngs: nnx.Rngs) -> Block:
    @nnx.split_rngs(splits=config.depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return Block(config, rngs)

    return make(rngs)
