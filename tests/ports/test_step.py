"""Laws of playing a published world: one step, one rollout, sessions that know nothing of each other, no horizon."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wm_jax as wm
from wm_jax.ports import open_oasis
from wm_jax.ports.open_oasis import layers, ring
from wm_jax.ports.open_oasis.frame import encode, next_latent, see_latents
from wm_jax.types import Params

pytestmark = pytest.mark.oasis
Small = tuple[open_oasis.OasisWorld, Params]
BATCH, PROMPT, FRAMES = 3, 2, 6
ALL = slice(None)


@pytest.fixture(scope="module")
def prompt():
    return wm.Prompt(frames=np.random.default_rng(0).integers(0, 256, (BATCH, PROMPT, 24, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def done():
    """What is done in each frame."""
    rng = np.random.default_rng(1)
    return wm.Controls(rng.random((BATCH, FRAMES, 23)) < 0.5, rng.uniform(-0.3, 0.3, (BATCH, FRAMES, 2)).astype("f4"))


def cut(controls: wm.Controls, *index) -> wm.Controls:
    return jax.tree.map(lambda leaf: leaf[index], controls)


def undone(controls: wm.Controls) -> wm.Controls:
    """The contrary of all."""
    assert controls.mouse is not None
    return wm.Controls(~controls.keys, -controls.mouse)


def joined(*parts: wm.Controls, axis: int) -> wm.Controls:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis), *parts)


@pytest.fixture(scope="module")
def dream(small: Small, prompt, done):
    """The rollout that other answers are compared with."""
    state = wm.start(*small, prompt, jax.random.key(1))
    state, frames = wm.rollout(*small, state, done)
    return state, np.asarray(frames)


def play(small: Small, state, done, active=None):
    frames = []
    for t in range(done.keys.shape[1]):
        state, frame = wm.step(*small, state, cut(done, ALL, t), active)
        frames.append(np.asarray(frame))
    return state, np.stack(frames, axis=1)


def leaves(state):
    return jax.tree.leaves(dataclasses.replace(state, key=jax.random.key_data(state.key)))


def row(state, i):
    """One session of a batch, as a list of its arrays."""
    entries = [np.asarray(leaf)[:, i] for leaf in jax.tree.leaves(state.past)]
    return [*entries, *(np.asarray(leaf)[i] for leaf in leaves(dataclasses.replace(state, past=None)))]


def close(frames, others):
    """Alike but for a pixel that rounds differently: another program orders its sums differently."""
    return np.abs(np.asarray(frames).astype(int) - np.asarray(others).astype(int)).max() <= 1


def test_stepping_equals_rollout(small: Small, prompt, done, dream):
    state, frames = play(small, wm.start(*small, prompt, jax.random.key(1)), done)
    assert frames.shape == (BATCH, FRAMES, 24, 32, 3) and frames.dtype == np.uint8 and close(frames, dream[1])
    for stepped, rolled in zip(leaves(state), leaves(dream[0]), strict=True):
        np.testing.assert_allclose(np.asarray(stepped), np.asarray(rolled), atol=1e-4)


def test_the_dream_moves_and_future_actions_cannot_change_its_past(small: Small, prompt, done, dream):
    first, later = cut(done, ALL, slice(3)), cut(done, ALL, slice(3, None))
    other = joined(first, undone(later), axis=1)
    _, frames = wm.rollout(*small, wm.start(*small, prompt, jax.random.key(1)), other)
    np.testing.assert_array_equal(np.asarray(frames)[:, :3], dream[1][:, :3])
    assert np.all(np.any(np.asarray(frames)[:, 3] != dream[1][:, 3], axis=(1, 2, 3)))
    assert np.all(np.any(dream[1][:, 1:] != dream[1][:, :-1], axis=(2, 3, 4)))


def test_what_led_to_the_prompt_is_heard(small: Small, prompt, done, dream):
    for keys, mouse in ((True, 0.0), (False, 0.1), (False, 0.0)):
        led = wm.Controls(np.full((BATCH, PROMPT, 23), keys), np.full((BATCH, PROMPT, 2), mouse, np.float32))
        told = wm.Prompt(prompt.frames, led)
        _, frames = wm.rollout(*small, wm.start(*small, told, jax.random.key(1)), done)
        assert np.any(np.asarray(frames) != dream[1]) == bool(keys or mouse)


def test_a_session_does_not_depend_on_its_neighbours(small: Small, prompt, done, dream):
    one, key = wm.Prompt(frames=prompt.frames[1:2]), jax.random.fold_in(jax.random.key(1), 1)[None]
    _, alone = wm.rollout(*small, wm.start(*small, one, key), cut(done, slice(1, 2)))
    assert close(alone, dream[1][1:2])
    changed = wm.Prompt(frames=np.concatenate([255 - prompt.frames[:1], prompt.frames[1:]]))
    louder = joined(undone(cut(done, slice(1))), cut(done, slice(1, None)), axis=0)
    _, frames = wm.rollout(*small, wm.start(*small, changed, jax.random.key(1)), louder)
    np.testing.assert_array_equal(np.asarray(frames)[1:], dream[1][1:])
    assert np.any(np.asarray(frames)[0] != dream[1][0])


def test_an_idle_slot_keeps_its_state_and_goes_on_as_if_nothing_had_been(small: Small, prompt, done, dream):
    state, first = play(small, wm.start(*small, prompt, jax.random.key(1)), cut(done, ALL, slice(2)))
    before = row(state, 2)
    state, _ = play(small, state, cut(done, ALL, slice(2, 5)), active=np.asarray([True, True, False]))
    for old, new in zip(before, row(state, 2), strict=True):
        np.testing.assert_array_equal(old, new)
    _, rest = play(small, state, cut(done, ALL, slice(2, None)))
    assert close(np.concatenate([first, rest], axis=1)[2], dream[1][2])


def test_a_prompt_of_pictures_is_their_latents(small: Small, prompt):
    seen = wm.start(*small, prompt, jax.random.key(1))
    empty = wm.empty(small[0], BATCH, jax.random.key(1))
    seen_latents = jax.jit(see_latents, static_argnums=0)
    latents = jax.jit(encode, static_argnums=0)(small[0].config, small[1], prompt.frames)
    given = seen_latents(small[0].config, small[1], latents, jnp.zeros((BATCH, PROMPT, 25)), empty)
    for one, other in zip(leaves(seen), leaves(given), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1e-5)
    np.testing.assert_array_equal(seen.frame, [PROMPT] * BATCH)


def test_a_world_starts_from_nothing_and_the_key_is_the_dream(small: Small, done):
    dreams = []
    for seed in (3, 3, 4):
        state = wm.start(*small, wm.Prompt(), jax.random.key(seed))
        state, frames = wm.rollout(*small, state, cut(done, slice(1)))
        assert int(state.frame[0]) == FRAMES
        dreams.append(np.asarray(frames))
    np.testing.assert_array_equal(dreams[0], dreams[1])
    assert np.any(dreams[0] != dreams[2])


def test_rows_at_different_times_share_a_batch(small: Small, prompt, done):
    """One row waits for two frames; then all go on, each in its own entry of the ring, as they would have alone."""
    state = wm.start(*small, prompt, jax.random.key(1))
    state, _ = play(small, state, cut(done, ALL, slice(2)), active=np.asarray([True, False, True]))
    np.testing.assert_array_equal(state.frame, [PROMPT + 2, PROMPT, PROMPT + 2])
    _, late = play(small, state, cut(done, ALL, slice(3)))
    alone, key = wm.Prompt(frames=prompt.frames[1:2]), jax.random.fold_in(jax.random.key(1), 1)[None]
    _, frames = play(small, wm.start(*small, alone, key), cut(done, slice(1, 2), slice(3)))
    assert close(late[1:2], frames)


def test_the_ring_forgets_the_oldest_frame_and_only_it(small: Small):
    past, entries = ring.init(small[0].config, 1), small[0].config.transformer.window_frames
    for frame in range(8):
        assert sorted(np.asarray(ring.ages(past, jnp.asarray([frame])))[0]) == (
            [0] * max(entries - frame, 0) + list(range(1, min(frame, entries) + 1))
        )
        new = jnp.full(past.keys[:, :, 0].shape, float(frame))
        past = ring.write(past, new, -new, jnp.asarray([frame]), jnp.asarray([True]))
        age = np.asarray(ring.ages(past, jnp.asarray([frame + 1])))[0]
        held = np.asarray(past.keys)[0, 0, :, 0, 0, 0]
        np.testing.assert_array_equal(held[age > 0], frame + 1 - age[age > 0])


@pytest.mark.parametrize("frame", [31, 12_345, 20 * 3600 * 24 * 365 * 3])
def test_the_angle_of_a_frame_is_exact_at_any_age(frame):
    """Up to three years at 20 frames a second; one float32 product would be off by 0.001 after ten minutes."""
    rates = layers.frame_rates(64).astype(np.float64)
    found = np.asarray(layers.frame_angles(jnp.asarray(frame), 64), np.float64)
    np.testing.assert_allclose(np.exp(1j * found), np.exp(1j * frame * rates), atol=1e-5)


def test_a_session_of_years_dreams_like_a_young_one(small: Small, prompt, done):
    """The same memory with all ids a billion frames later: keys turned on, the next latents the same."""
    later = 3 * 357_913_941
    config, noise = small[0].config, jax.random.normal(jax.random.key(5), (2, BATCH, 6, 8, 16))
    advance, actions = jax.jit(next_latent, static_argnums=0), open_oasis.to_actions(done)
    young, _ = play(small, wm.start(*small, prompt, jax.random.key(1)), cut(done, ALL, slice(3)))
    turned = layers.turn(young.past.keys, layers.frame_angles(jnp.asarray(later), config.transformer.head_size))
    old = dataclasses.replace(young, past=dataclasses.replace(young.past, keys=turned), frame=young.frame + later)
    for i in range(2):
        young, old = (
            advance(config, small[1], state, actions[:, 3 + i], jnp.ones((BATCH,), bool), noise[i])
            for state in (young, old)
        )
        np.testing.assert_allclose(old.latent, young.latent, atol=1e-4, rtol=0)


def test_a_session_never_grows(small: Small):
    state = wm.start(*small, wm.Prompt(), jax.random.key(3))
    sizes = [(leaf.shape, leaf.dtype, leaf.nbytes) for leaf in leaves(state)]
    state, frames = wm.rollout(*small, state, wm.Controls(np.zeros((1, 500, 23), bool)))
    assert [(leaf.shape, leaf.dtype, leaf.nbytes) for leaf in leaves(state)] == sizes
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves(state))
    assert np.any(np.asarray(frames)[:, -1] != np.asarray(frames)[:, -2])


def test_only_plain_arrays_cross_the_jit_boundary_every_layer_its_own(small: Small, prompt):
    state = wm.start(*small, prompt, jax.random.key(1))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((state, small[1])))
    assert set(small[1]["transformer"]["blocks"]) == {"0", "1"} == set(small[1]["autoencoder"]["decoder"])
    assert hash(small[0]) == hash(open_oasis.OasisWorld(small[0].config))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_for_playing_dream_the_same(small: Small, prompt, done, dtype):
    """To the bit: rounding them beforehand is rounding them where they are used."""
    config = small[0].config
    world = open_oasis.OasisWorld(
        dataclasses.replace(
            config,
            transformer=dataclasses.replace(config.transformer, dtype=dtype),
            autoencoder=dataclasses.replace(config.autoencoder, dtype=dtype),
        )
    )
    state = wm.start(world, small[1], prompt, jax.random.key(1))
    _, frames = wm.step(world, small[1], state, cut(done, ALL, 0))
    played = world.for_playing(small[1])
    assert {leaf.dtype for leaf in jax.tree.leaves(played)} == {jnp.dtype(dtype)}
    state = wm.start(world, played, prompt, jax.random.key(1))
    assert state.past.keys.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(wm.step(world, played, state, cut(done, ALL, 0))[1], frames)


def test_a_session_is_seated_moved_and_forgotten_as_in_any_world(small: Small, prompt, done, dream):
    hall = wm.empty(small[0], 2, jax.random.key(9))
    states = wm.start(*small, prompt, jax.random.key(1))
    for slot, who in ((0, 0), (1, 2), (0, 1)):
        hall = wm.put(hall, slot, wm.take(states, who))
    _, frames = wm.rollout(*small, hall, joined(cut(done, slice(1, 2)), cut(done, slice(2, 3)), axis=0))
    assert close(frames, dream[1][1:])


def test_recorded_actions_come_back_from_the_controls_they_are_made_of():
    rng = np.random.default_rng(0)
    actions = (rng.random((40, 25)) < 0.3).astype(np.float32)
    actions[:, 15:17] = rng.uniform(-1, 1, (40, 2))
    controls = open_oasis.from_actions(jnp.asarray(actions))
    np.testing.assert_allclose(open_oasis.to_actions(controls), actions, atol=1e-6)
    assert controls.keys.shape == (40, len(open_oasis.CONTROLS.keys)) and controls.mouse is not None
    # Moved right by a seventh of the frame: ten degrees to the right, half of what an action can say.
    held = wm.Controls(np.zeros((1, 23), bool), np.asarray([[1 / 7, 0.0]], np.float32))
    np.testing.assert_allclose(open_oasis.to_actions(held)[0, 15:17], [0.0, 0.5], atol=1e-6)
    far = wm.Controls(np.zeros((1, 23), bool), np.asarray([[0.0, -9.0]], np.float32))
    np.testing.assert_allclose(open_oasis.to_actions(far)[0, 15:17], [-1.0, 0.0])
    codes = open_oasis.CONTROLS.codes
    assert len(set(codes)) == len(codes) == 23
    pressed = np.zeros((1, 23), bool)
    pressed[0, codes.index("KeyW")] = True
    column = np.flatnonzero(open_oasis.to_actions(wm.Controls(pressed, np.zeros((1, 2), np.float32)))[0])
    assert [open_oasis.ACTIONS[i] for i in column] == ["forward"]
    with pytest.raises(ValueError, match="must have 25 columns: inventory"):
        open_oasis.from_actions(jnp.zeros((3, 24)))


def test_bad_input_is_refused_with_both_sides(small: Small, prompt):
    state = wm.start(*small, prompt, jax.random.key(1))
    with pytest.raises(ValueError, match="controls have 7 keys, world 'small' has 23: KeyE"):
        wm.step(*small, state, wm.Controls(np.zeros((BATCH, 7), bool)))
    with pytest.raises(ValueError, match=r"the mouse is \(3, 3\), this state wants \(3, 2\)"):
        wm.step(*small, state, wm.Controls(np.zeros((BATCH, 23), bool), np.zeros((BATCH, 3), np.float32)))
    with pytest.raises(ValueError, match=r"active is \(2,\), this state has 3 rows: it wants \(3,\)"):
        wm.step(*small, state, wm.Controls(np.zeros((BATCH, 23), bool)), jnp.ones(2, bool))
    with pytest.raises(ValueError, match=r"uint8\[1, 2, 48, 32, 3\], world 'small' wants uint8\[b, p, 24, 32, 3\]"):
        wm.start(*small, wm.Prompt(frames=np.zeros((1, 2, 48, 32, 3), np.uint8)), jax.random.key(0))
    with pytest.raises(ValueError, match="the prompt has 5 frames, world 'small' takes 1 to 4"):
        wm.start(*small, wm.Prompt(frames=np.zeros((1, 5, 24, 32, 3), np.uint8)), jax.random.key(0))
    with pytest.raises(ValueError, match="there are 2 keys for 3 rows"):
        wm.start(*small, prompt, jax.random.split(jax.random.key(0), 2))
