"""Laws of playing: one step, one rollout, sessions that know nothing of each other."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wm_jax as wm
from wm_jax.dynamics import ring_cache
from wm_jax.nn.rope import PERIOD
from wm_jax.samplers import mix, sample
from wm_jax.types import Params
from wm_jax.world.rollout import predict_next
from wm_jax.world.step import draw, pick_prompt

BATCH, FRAMES, PROMPT = 3, 11, 3
Tiny = tuple[wm.World, Params]


@pytest.fixture(scope="module")
def tiny():
    return wm.tiny_world(0)


@pytest.fixture(scope="module")
def prompt():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (BATCH, PROMPT, 32, 32, 3), dtype=np.uint8)
    return wm.Prompt(frames=frames, controls=wm.Controls(keys=rng.random((BATCH, PROMPT, 4)) < 0.5))


@pytest.fixture(scope="module")
def held():
    return np.random.default_rng(1).random((BATCH, FRAMES, 4)) < 0.5


@pytest.fixture(scope="module")
def dream(tiny: Tiny, prompt, held):
    """The rollout that other answers are compared with."""
    state = wm.start(*tiny, prompt, jax.random.key(1))
    state, frames = wm.rollout(*tiny, state, wm.Controls(keys=held))
    return state, np.asarray(frames)


def play(tiny: Tiny, state, held, active=None):
    frames = []
    for t in range(held.shape[1]):
        state, frame = wm.step(*tiny, state, wm.Controls(keys=held[:, t]), active)
        frames.append(np.asarray(frame))
    return state, np.stack(frames, axis=1)


def without_key(state):
    return jax.tree.leaves(dataclasses.replace(state, key=jax.random.key_data(state.key)))


@pytest.mark.slow
def test_stepping_equals_rollout(tiny: Tiny, prompt, held, dream):
    state, frames = play(tiny, wm.start(*tiny, prompt, jax.random.key(1)), held)
    np.testing.assert_array_equal(frames, dream[1])
    for stepped, rolled in zip(without_key(state), without_key(dream[0]), strict=True):
        np.testing.assert_allclose(np.asarray(stepped), np.asarray(rolled), atol=1e-5)


def test_the_dream_moves_and_listens(tiny: Tiny, prompt, held, dream):
    other = held.copy()
    other[:, 4] = ~other[:, 4]
    _, frames = play(tiny, wm.start(*tiny, prompt, jax.random.key(1)), other)
    np.testing.assert_array_equal(frames[:, :4], dream[1][:, :4])
    assert np.all(np.any(frames[:, 4] != dream[1][:, 4], axis=(1, 2, 3)))
    assert np.all(np.any(dream[1][:, 1:] != dream[1][:, :-1], axis=(2, 3, 4)))


def test_same_key_same_dream_and_another_key_another(tiny: Tiny, prompt, held, dream):
    _, again = wm.rollout(*tiny, wm.start(*tiny, prompt, jax.random.key(1)), wm.Controls(keys=held))
    _, other = wm.rollout(*tiny, wm.start(*tiny, prompt, jax.random.key(2)), wm.Controls(keys=held))
    np.testing.assert_array_equal(np.asarray(again), dream[1])
    assert np.any(np.asarray(other) != dream[1])


@pytest.mark.slow
def test_a_session_does_not_depend_on_its_neighbours(tiny: Tiny, prompt, held, dream):
    row = 1
    one = jax.tree.map(lambda leaf: leaf[row : row + 1], prompt)
    key = jax.random.fold_in(jax.random.key(1), row)[None]
    _, alone = wm.rollout(*tiny, wm.start(*tiny, one, key), wm.Controls(keys=held[row : row + 1]))
    # Another batch size is another compiled program: sums are ordered differently, pixels round differently.
    assert np.abs(np.asarray(alone)[0].astype(int) - dream[1][row].astype(int)).max() <= 1
    changed = jax.tree.map(lambda leaf: np.concatenate([leaf[:1] * 0, leaf[1:]]), prompt)
    _, frames = wm.rollout(*tiny, wm.start(*tiny, changed, jax.random.key(1)), wm.Controls(keys=held))
    np.testing.assert_array_equal(np.asarray(frames)[1:], dream[1][1:])


def test_the_callers_keys_stay_the_callers(tiny: Tiny, prompt, held, dream):
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(1), row))(jnp.arange(BATCH))
    for _ in range(2):
        _, frames = wm.rollout(*tiny, wm.start(*tiny, prompt, keys), wm.Controls(keys=held))
        np.testing.assert_array_equal(np.asarray(frames), dream[1])
    wm.rollout(*tiny, wm.start(*tiny, wm.Prompt(), keys), wm.Controls(keys=held))
    assert jax.random.key_data(keys).shape[0] == BATCH


def test_an_idle_slot_keeps_its_state(tiny: Tiny, prompt, held, dream):
    state = wm.start(*tiny, prompt, jax.random.key(1))
    state, first = play(tiny, state, held[:, :5])
    before = [np.asarray(leaf) for leaf in without_key(wm.take(state, 2))]
    state, _ = play(tiny, state, held[:, 5:8], active=np.asarray([True, True, False]))
    for old, new in zip(before, without_key(wm.take(state, 2)), strict=True):
        np.testing.assert_array_equal(old, np.asarray(new))
    _, rest = play(tiny, state, held[:, 5:])
    np.testing.assert_array_equal(np.concatenate([first, rest], axis=1)[2], dream[1][2])


def test_a_session_can_be_lifted_and_seated_elsewhere(tiny: Tiny, prompt, held, dream):
    state, _ = play(tiny, wm.start(*tiny, prompt, jax.random.key(1)), held[:, :5])
    hall = wm.put(wm.empty(tiny[0], BATCH), 0, wm.take(state, 2))
    moved = np.concatenate([held[2:3], held[:1], held[:1]])
    _, frames = play(tiny, hall, moved[:, 5:], active=np.asarray([True, False, False]))
    np.testing.assert_array_equal(frames[0], dream[1][2, 5:])


def test_a_world_starts_from_nothing(tiny: Tiny):
    state = wm.start(*tiny, wm.Prompt(), jax.random.key(3))
    state, frames = wm.rollout(*tiny, state, wm.Controls(keys=np.zeros((1, 6, 4), bool)))
    assert frames.shape == (1, 6, 32, 32, 3) and frames.dtype == jnp.uint8
    assert int(state.frame[0]) == 6 and int(state.cache.next[0]) == 5


@pytest.mark.slow
def test_fused_commit_equals_separate_commit(tiny: Tiny, prompt, held):
    """The pass that writes the newest frame may ride with the next one's first pass: same cache, same frame."""
    world, params = tiny
    state = wm.start(world, params, prompt, jax.random.key(1))
    config, keys, active = world.config.dynamics, jnp.asarray(held[:, 0]), jnp.ones((BATCH,), bool)
    noise, _ = draw(world, state.key)
    fused, frame = jax.jit(world.next_frame)(params, state, wm.Controls(keys), active, noise)
    model = world.model(params)
    past = model.embedder(state.held[:, None], state.is_known[:, None])
    remembered = mix(noise[:, 0], state.latent, config.context_index / config.levels)
    cache = model.dynamics.commit(remembered[:, None], past, state.cache, active)
    np.testing.assert_allclose(fused.cache.keys, cache.keys, atol=1e-5)
    np.testing.assert_allclose(fused.cache.values, cache.values, atol=1e-5)
    here = model.embedder(keys[:, None], active[:, None])
    steps, alone = world.config.sampler.steps, jnp.ones((BATCH, 1), bool)

    def predict(noisy, i):
        level = jnp.asarray([[i * (config.levels // steps)]])
        stride = jnp.asarray([[steps.bit_length() - 1]])
        return model.dynamics.denoise(noisy[:, None], level, stride, here, cache, alone)[0][:, 0]

    separate = jax.jit(lambda noise: sample(predict, noise, steps))(noise[:, 1])
    np.testing.assert_allclose(fused.latent, jnp.clip(separate, -5, 5), atol=1e-4)
    assert frame.shape == (BATCH, 32, 32, 3)


def test_rebase_changes_no_pixel(tiny: Tiny, prompt, held, dream):
    """A session at frame 4 and the same session at frame 4 and a period dream the same to the bit."""
    state = wm.start(*tiny, prompt, jax.random.key(1))
    ring = state.cache.frame.shape[1]
    turns = math.lcm(PERIOD, ring)
    late = jnp.where(state.cache.frame == ring_cache.NEVER, ring_cache.NEVER, state.cache.frame + turns)
    state = dataclasses.replace(
        state, cache=dataclasses.replace(state.cache, frame=late, next=state.cache.next + turns)
    )
    state, frames = play(tiny, state, held)
    np.testing.assert_array_equal(frames, dream[1])
    assert int(state.cache.next.max()) < turns  # it was moved back on the way


def test_a_session_never_grows(tiny: Tiny):
    """Beyond three rebases: same shapes, same bytes, small ids, finite numbers, and a picture that still moves."""
    state = wm.start(*tiny, wm.Prompt(), jax.random.key(3))
    sizes = [(leaf.shape, leaf.dtype, leaf.nbytes) for leaf in without_key(state)]
    ring, keys, rebases, before, length = tiny[0].config.dynamics.window_frames, np.zeros((1, 512, 4), bool), 0, 0, 0
    while rebases <= 3:
        state, frames = wm.rollout(*tiny, state, wm.Controls(keys=keys))
        rebases, before, length = rebases + (int(state.cache.next[0]) < before), int(state.cache.next[0]), length + 512
        assert before < ring_cache.largest_id(ring) and int(state.frame[0]) == length
        assert sorted(np.asarray(state.cache.frame[0])) == list(range(before - ring, before))
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in without_key(state))
        assert np.any(np.asarray(frames)[:, -1] != np.asarray(frames)[:, -2])
    assert [(leaf.shape, leaf.dtype, leaf.nbytes) for leaf in without_key(state)] == sizes
    assert length > 3 * PERIOD


def test_only_stacked_arrays_cross_the_jit_boundary(tiny: Tiny, prompt):
    world, params = tiny
    state = wm.start(world, params, prompt, jax.random.key(1))
    assert all(type(leaf).__name__ == "ArrayImpl" for leaf in jax.tree.leaves(params))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    blocks = jax.tree.leaves(params["dynamics"]["blocks"])
    assert {leaf.shape[0] for leaf in blocks} == {world.config.dynamics.depth}
    assert hash(world) == hash(wm.tiny_world(0)[0])


def test_teacher_forcing_never_sees_the_frame_it_predicts(tiny: Tiny, held):
    frames = np.random.default_rng(2).integers(0, 256, (BATCH, FRAMES, 32, 32, 3), dtype=np.uint8)
    guess = np.asarray(predict_next(*tiny, jnp.asarray(frames), wm.Controls(keys=held), jax.random.key(0)))
    changed = frames.copy()
    changed[:, 6:] = 255 - changed[:, 6:]
    other = np.asarray(predict_next(*tiny, jnp.asarray(changed), wm.Controls(keys=held), jax.random.key(0)))
    np.testing.assert_array_equal(guess[:, :7], other[:, :7])
    assert np.any(guess[:, 7:] != other[:, 7:])


def test_bad_input_is_refused_with_both_sides(tiny: Tiny, prompt):
    state = wm.start(*tiny, prompt, jax.random.key(1))
    with pytest.raises(ValueError, match=r"controls have 7 keys, world 'tiny' has 4: ArrowLeft"):
        wm.step(*tiny, state, wm.Controls(keys=np.zeros((BATCH, 7), bool)))
    with pytest.raises(ValueError, match=r"controls are \(2, 4\), this state wants \(3, 4\)"):
        wm.step(*tiny, state, wm.Controls(keys=np.zeros((2, 4), bool)))
    with pytest.raises(ValueError, match=r"uint8\[1, 2, 48, 32, 3\].*wants uint8\[b, p, 32, 32, 3\]"):
        wm.start(*tiny, wm.Prompt(frames=np.zeros((1, 2, 48, 32, 3), np.uint8)), jax.random.key(0))
    with pytest.raises(ValueError, match="the prompt has 9 frames, world 'tiny' takes 1 to 5"):
        wm.start(*tiny, wm.Prompt(frames=np.zeros((1, 9, 32, 32, 3), np.uint8)), jax.random.key(0))
    for call in (lambda: wm.take(state, BATCH), lambda: wm.put(state, -1, wm.take(state, 0))):
        with pytest.raises(ValueError, match=f"this batch has the slots 0 to {BATCH - 1}"):
            call()
    with pytest.raises(ValueError, match=f"one session at a time, here are {BATCH}"):
        wm.put(state, 0, state)
    assert int(state.frame[0]) == PROMPT  # and the state was not consumed


def test_a_key_that_means_something_else_is_refused(tiny: Tiny, prompt):
    for start in (prompt, wm.Prompt()):
        with pytest.raises(ValueError, match=r"the key is uint32\[2\], not a typed one: .*jax\.random\.key\(seed\)"):
            wm.start(*tiny, start, jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match=r"the key is int\[\], not a typed one"):
        wm.start(*tiny, prompt, 0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="there are 2 keys for 3 rows: give one key, or one a row"):
        wm.start(*tiny, prompt, jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ValueError, match=r"the keys are key<fry>\[2, 3\]: give one key, or one a row"):
        wm.start(*tiny, prompt, jax.random.split(jax.random.key(0), (2, 3)))


def test_a_prompt_of_controls_alone_is_refused(tiny: Tiny):
    with pytest.raises(ValueError, match=r"controls and no frames: .*Prompt\(\)"):
        wm.start(*tiny, wm.Prompt(controls=wm.Controls(keys=np.zeros((1, 3, 4), bool))), jax.random.key(0))


def test_active_is_a_flag_a_row_and_nothing_else(tiny: Tiny, prompt, held):
    state = wm.start(*tiny, prompt, jax.random.key(1))
    now = wm.Controls(keys=held[:, 0])
    for wrong in (np.ones(2, bool), np.ones((BATCH, 1), bool), True):
        with pytest.raises(ValueError, match=r"active is \(.*\), this state has 3 rows: it wants \(3,\)"):
            wm.step(*tiny, state, now, wrong)  # pyright: ignore[reportArgumentType]
    state, _ = wm.step(*tiny, state, now, np.array([1, 0, 1]))  # pyright: ignore[reportArgumentType]
    assert state.is_pending.dtype == state.is_known.dtype == bool
    np.testing.assert_array_equal(state.frame, [PROMPT + 1, PROMPT, PROMPT + 1])


def test_prompts_are_picked_by_seed(prompt):
    rows = [np.asarray(pick_prompt(prompt, seed).frames) for seed in range(20)]
    assert all(row.shape == (1, PROMPT, 32, 32, 3) for row in rows)
    assert len({row.tobytes() for row in rows}) == BATCH
    np.testing.assert_array_equal(np.asarray(pick_prompt(prompt, 5).frames), rows[5])
