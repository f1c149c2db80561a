"""Laws of the ring: it forgets the oldest frame and only it, whatever the time of a row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wm_jax.dynamics import DynamicsConfig, ring_cache
from wm_jax.nn.rope import PERIOD

CONFIG = DynamicsConfig(
    width=8, heads=1, kv_heads=1, head_size=4, hidden=8, repeats=1, registers=0, window_frames=4, sinks=1,
    recent_frames=2,
)  # fmt: skip
LATENT = (1, 3, 2)


def entries(frame, batch=2):
    """Keys and values that spell the frame they belong to."""
    return jnp.full((1, batch, 1, 3, 1, 4), float(frame))


def latents(frame, batch=2):
    """A frame whose every number is its own."""
    return jnp.full((batch, 1, *LATENT), float(frame))


def filled(frames, active=(True, True)):
    cache = ring_cache.init(CONFIG, 3, LATENT, 2)
    for frame in range(frames):
        cache = ring_cache.write(cache, entries(frame), entries(frame), latents(frame), jnp.asarray(active))
    return cache


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 9, 11])
def test_ring_forgets_the_oldest_frame_and_only_it(frames):
    cache = filled(frames)
    expected = set(range(max(0, frames - 4), frames))
    for row in range(2):
        held = {int(f) for f in cache.frame[row] if f != ring_cache.NEVER}
        assert held == expected
        for slot, frame in enumerate(np.asarray(cache.frame[row])):
            if frame != ring_cache.NEVER:
                assert np.all(np.asarray(cache.values[0, row, slot]) == frame)
                turned = ring_cache.turned(entries(frame)[0, 0, 0], jnp.full((3,), frame))
                np.testing.assert_array_equal(cache.keys[0, row, slot], turned)


def test_ages_count_from_the_next_frame():
    ages = np.asarray(ring_cache.ages(filled(6)))
    assert sorted(ages[0].tolist()) == [1, 2, 3, 4]
    assert np.asarray(ring_cache.ages(filled(2)))[0].tolist() == [2, 1, 0, 0]


def test_the_newest_frames_stay_as_latents():
    assert np.asarray(filled(5).recent)[0, :, 0, 0, 0].tolist() == [3.0, 4.0]
    assert np.asarray(filled(1).recent)[1, :, 0, 0, 0].tolist() == [0.0, 0.0]  # frame 0, spelled 0
    assert np.asarray(filled(5, (True, False)).recent)[1].max() == 0.0


def test_an_idle_row_keeps_every_bit():
    before = filled(6)
    after = ring_cache.write(before, entries(77), entries(77), latents(77), jnp.asarray([True, False]))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        axis = 1 if old.ndim == 6 else 0
        np.testing.assert_array_equal(np.asarray(old).take(1, axis), np.asarray(new).take(1, axis))
    assert int(after.next[0]) == 7 and int(after.next[1]) == 6


def later(cache):
    """The same cache, had it run for a period already."""
    frame = jnp.where(cache.frame == ring_cache.NEVER, ring_cache.NEVER, cache.frame + PERIOD)
    return dataclasses.replace(cache, frame=frame, next=cache.next + PERIOD)


def test_rebase_moves_ids_by_whole_periods_and_touches_nothing_else():
    late = later(filled(11))
    back = ring_cache.rebase(late)
    for old, new in zip(jax.tree.leaves(filled(11)), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(ring_cache.ages(back), ring_cache.ages(late))
    early = later(filled(7))  # one frame short of two turns of the ring: sinks would become neighbours again
    np.testing.assert_array_equal(ring_cache.rebase(early).next, early.next)


@pytest.mark.parametrize("ring", [4, 5, 48])
def test_a_rebase_is_whole_turns_of_any_ring(ring):
    assert (ring_cache.largest_id(ring) - 2 * ring) % ring == 0
    assert (ring_cache.largest_id(ring) - 2 * ring) % PERIOD == 0


def test_ids_stay_small_for_ever():
    cache, bound = later(filled(0)), ring_cache.largest_id(4)
    for _ in range(200):
        cache = ring_cache.write(cache, entries(0), entries(0), latents(0), jnp.asarray([True, True]))
        cache = ring_cache.rebase(cache)
        assert int(cache.next.max()) < bound
    assert int(cache.next.max()) == 200


def test_sinks_keep_the_first_frame_of_the_session():
    cache = filled(9)
    assert np.all(np.asarray(cache.sink_keys[0, :, 0]) == 0.0)
    assert np.all(np.asarray(filled(1).sink_values[0, :, 0]) == 0.0)
    started = ring_cache.write(
        ring_cache.init(CONFIG, 3, LATENT, 2), entries(5), entries(5), latents(5), jnp.asarray([True, True])
    )
    later = ring_cache.write(started, entries(6), entries(6), latents(6), jnp.asarray([True, True]))
    assert np.all(np.asarray(later.sink_keys) == 5.0)
