"""Laws of the dynamics: cached equals uncached, the future cannot change the past, stale entries are never read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wm_jax.conditioning import ConditioningConfig, Embedder
from wm_jax.dynamics import Dynamics, DynamicsConfig, ring_cache
from wm_jax.nn.rope import PERIOD

WINDOW, FRAMES, BATCH = 4, 13, 2
LATENT = (2, 3, 5)
PATTERNS = {"factored": ("space", "time"), "full": ("full", "space"), "all": ("space", "time", "full")}


def make(pattern, sinks=0):
    config = DynamicsConfig(
        width=32, heads=4, kv_heads=2, head_size=8, hidden=48, pattern=pattern, repeats=2, patch=1, registers=2,
        window_frames=WINDOW, sinks=sinks, levels=16,
    )  # fmt: skip
    rngs = nnx.Rngs(0)
    model = Dynamics(config, (2, 3), 5, rngs)
    embedder = Embedder(ConditioningConfig(keys=3), 32, rngs)
    rng = np.random.default_rng(0)

    def roughen(leaf):
        return leaf + jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32)

    for module in (model, embedder):
        nnx.update(module, jax.tree.map(roughen, nnx.state(module)))
    return config, model, embedder


def clip():
    rng = np.random.default_rng(1)
    latents = jnp.asarray(rng.standard_normal((BATCH, FRAMES, 2, 3, 5)), jnp.float32)
    keys = jnp.asarray(rng.random((BATCH, FRAMES, 3)) < 0.5)
    return latents, keys


def whole(model, embedder, latents, keys, level, segment=None):
    """One windowed forward over the clip."""
    conditions = embedder(keys, jnp.ones(keys.shape[:2], bool))
    segment = jnp.zeros(keys.shape[:2], jnp.int32) if segment is None else segment
    answer = jax.jit(lambda noisy: model.denoise_clip(noisy, level, jnp.full_like(level, 4), conditions, segment))
    return answer(latents)


def one_by_one(config, model, embedder, latents, keys, level, poison=False):
    """The same answers frame by frame through the cache."""
    cache = ring_cache.init(config, model.tokens_per_frame, LATENT, BATCH)
    if poison:
        cache = dataclasses.replace(cache, keys=cache.keys + 1e3, values=cache.values + 1e3)
    seen, every, out = jnp.ones((BATCH, 1), bool), jnp.ones((BATCH,), bool), []

    @jax.jit
    def step(frame, keys, level, cache):
        conditions = embedder(keys, seen)
        guess, (k, v) = model.denoise(frame, level, jnp.full_like(level, 4), conditions, cache, seen)
        return guess, ring_cache.rebase(ring_cache.write(cache, k, v, frame, every))

    for t in range(FRAMES):
        now = slice(t, t + 1)
        if t == 7:  # as if it had run for a period already, so that the ids are moved back on the way
            cache = dataclasses.replace(
                cache, next=cache.next + PERIOD,
                frame=jnp.where(cache.frame == ring_cache.NEVER, ring_cache.NEVER, cache.frame + PERIOD),
            )  # fmt: skip
        guess, cache = step(latents[:, now], keys[:, now], level[:, now], cache)
        out.append(guess)
    assert int(cache.next.max()) == FRAMES
    return jnp.concatenate(out, axis=1)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("sinks", [0, 2])
def test_cached_equals_uncached(name, sinks):
    config, model, embedder = make(PATTERNS[name], sinks)
    latents, keys = clip()
    level = jnp.full((BATCH, FRAMES), config.context_index)
    expected = whole(model, embedder, latents, keys, level)
    found = one_by_one(config, model, embedder, latents, keys, level)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert float(jnp.std(expected)) > 1e-2


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("sinks", [0, 2])
def test_a_draft_equals_playing_after_the_remembered_frames(name, sinks):
    """Teacher forcing in one pass: what frame t makes of noise after frames 0 .. t - 1, for all t at once."""
    config, model, embedder = make(PATTERNS[name], sinks)
    latents, keys = clip()
    noisy = jnp.asarray(np.random.default_rng(2).standard_normal(latents.shape), jnp.float32)
    conditions, segment = embedder(keys, jnp.ones(keys.shape[:2], bool)), jnp.zeros(keys.shape[:2], jnp.int32)
    level = jnp.asarray(np.random.default_rng(3).integers(0, 15, keys.shape[:2]))
    stride, remembered = jnp.full_like(level, 2), jnp.full_like(level, config.context_index)
    found = model.denoise_clip(noisy, level, stride, conditions, segment, (latents, remembered))
    cache = ring_cache.init(config, model.tokens_per_frame, LATENT, BATCH)
    for t in range(FRAMES):
        now = slice(t, t + 1)
        here, seen = jax.tree.map(lambda leaf, now=now: leaf[:, now], conditions), jnp.ones((BATCH, 1), bool)
        guess, _ = model.denoise(noisy[:, now], level[:, now], stride[:, now], here, cache, seen)
        np.testing.assert_allclose(found[:, now], guess, atol=1e-5)
        cache = model.commit(latents[:, now], here, cache, jnp.ones((BATCH,), bool))


def test_no_frame_looks_across_the_start_of_an_episode():
    _, model, embedder = make(PATTERNS["all"])
    latents, keys = clip()
    conditions, level = embedder(keys, jnp.ones(keys.shape[:2], bool)), jnp.full((BATCH, FRAMES), 3)
    segment = jnp.broadcast_to(jnp.arange(FRAMES) >= 6, (BATCH, FRAMES)).astype(jnp.int32)

    def later(before, past):
        changed = jnp.concatenate([before, latents[:, 6:]], axis=1)
        past = None if past is None else (changed, level)
        return model.denoise_clip(changed, level, jnp.full_like(level, 4), conditions, segment, past)[:, 6:]

    for past in (None, True):
        np.testing.assert_array_equal(later(latents[:, :6], past), later(latents[:, :6] + 1.0, past))


def test_stale_entries_are_never_read():
    config, model, embedder = make(PATTERNS["all"])
    latents, keys = clip()
    level = jnp.full((BATCH, FRAMES), config.context_index)
    found = one_by_one(config, model, embedder, latents, keys, level, poison=True)
    np.testing.assert_allclose(found, whole(model, embedder, latents, keys, level), atol=1e-5)


@pytest.mark.parametrize("sinks", [0, 2])
def test_several_frames_in_flight_equal_one_at_a_time(sinks):
    config, model, embedder = make(PATTERNS["all"], sinks)
    latents, keys = clip()
    conditions = embedder(keys[:, :6], jnp.ones((BATCH, 6), bool))
    level = jnp.full((BATCH, FRAMES), config.context_index)
    empty = ring_cache.init(config, model.tokens_per_frame, LATENT, BATCH)
    first = jax.tree.map(lambda leaf: leaf[:, :4], conditions)
    rest = jax.tree.map(lambda leaf: leaf[:, 4:6], conditions)
    cache = model.commit(latents[:, :4], first, empty, jnp.ones((BATCH,), bool))
    seen = jnp.ones((BATCH, 2), bool)
    guess, _ = model.denoise(latents[:, 4:6], level[:1, 4:6], jnp.full((1, 2), 4), rest, cache, seen)
    expected = one_by_one(config, model, embedder, latents, keys, level)[:, 4:6]
    np.testing.assert_allclose(guess, expected, atol=1e-5)


def test_an_unseen_frame_in_flight_is_invisible_to_the_next():
    config, model, embedder = make(PATTERNS["all"])
    latents, keys = clip()
    conditions = embedder(keys[:, :2], jnp.ones((BATCH, 2), bool))
    cache = ring_cache.init(config, model.tokens_per_frame, LATENT, BATCH)
    seen = jnp.asarray([[False, True]] * BATCH)

    def second(first):
        both = jnp.stack([first, latents[:, 1]], axis=1)
        return model.denoise(both, jnp.asarray([[3, 0]]), jnp.asarray([[4, 2]]), conditions, cache, seen)[0][:, 1]

    np.testing.assert_array_equal(second(latents[:, 0]), second(latents[:, 5]))


@pytest.mark.parametrize("is_forced", [False, True], ids=["forcing_by_diffusion", "forcing_by_the_teacher"])
@pytest.mark.parametrize("name", PATTERNS)
def test_future_controls_cannot_change_the_past(name, is_forced):
    """By neither door of the conditions, whether frames see the noisy ones before them or the remembered ones."""
    config, model, embedder = make(PATTERNS[name])
    latents, keys = clip()
    level, segment = jnp.full((BATCH, FRAMES), 3), jnp.zeros((BATCH, FRAMES), jnp.int32)
    remembered = (latents[:, ::-1], jnp.full_like(level, config.context_index)) if is_forced else None

    def early(conditions):
        guess = model.denoise_clip(latents, level, jnp.full_like(level, 4), conditions, segment, remembered)
        return jnp.sum(guess[:, :7] ** 2)

    gradient = jax.jit(jax.grad(early))(embedder(keys, jnp.ones(keys.shape[:2], bool)))
    for door in (gradient.tokens[:, :, 0], gradient.modulation):
        assert float(jnp.abs(door[:, 7:]).max()) == 0.0
        assert np.all(np.abs(door[:, :7]).max(axis=(0, 2)) > 0.0)


def test_the_window_ends_where_it_says():
    config, model, embedder = make(("space", "time"))
    one_layer = config.repeats  # information travels one window a looking layer
    latents, keys = clip()
    level = jnp.full((BATCH, FRAMES), 3)

    def last(latents):
        return whole(model, embedder, latents, keys, level)[:, -1].sum()

    reach = np.abs(jax.jit(jax.grad(last))(latents)).sum(axis=(0, 2, 3, 4))
    oldest = FRAMES - 1 - WINDOW * one_layer - config.recent_frames
    assert np.all(reach[:oldest] == 0.0) and np.all(reach[oldest:] > 0.0)


def test_segments_never_see_each_other():
    _, model, embedder = make(PATTERNS["all"])
    latents, keys = clip()
    level = jnp.full((BATCH, FRAMES), 3)
    segment = jnp.asarray(np.repeat([[0] * 5 + [1] * (FRAMES - 5)], BATCH, 0))
    changed = latents.at[:, :5].add(1.0)
    expected = whole(model, embedder, latents, keys, level, segment)
    np.testing.assert_array_equal(whole(model, embedder, changed, keys, level, segment)[:, 5:], expected[:, 5:])


def test_a_config_that_cannot_be_is_refused_with_both_sides():
    with pytest.raises(ValueError, match="heads 6 is no multiple of dynamics.kv_heads 4"):
        DynamicsConfig(heads=6, kv_heads=4)
    with pytest.raises(ValueError, match="levels 12"):
        DynamicsConfig(levels=12)
    with pytest.raises(ValueError, match="no dynamics size 'huge'"):
        DynamicsConfig.size("huge")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("window_frames", 0, "is 0, it must be at least 1"),
        ("kv_heads", 0, "is 0, it must be at least 1"),
        ("recent_frames", -1, "is -1, it must be at least 0"),
        ("context_level", 5.0, r"5.0 is not in 0\.\.1"),
        ("context_level", float("nan"), r"nan is not in 0\.\.1"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_range(field, value, message):
    with pytest.raises(ValueError, match=rf"dynamics\.{field} {message}"):
        dataclasses.replace(DynamicsConfig(), **{field: value})


def test_the_clean_row_is_never_fed():
    for levels in (2, 16, 32, 64):
        for context in (0.9, 0.99, 1.0):
            assert DynamicsConfig(levels=levels, context_level=context).context_index < levels
