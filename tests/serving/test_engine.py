"""The batch: players share a device, not a fate."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wm_jax as wm
from wm_jax.serving.engine import Engine, Scenes
from wm_jax.serving.history import Memory
from wm_jax.serving.session import Opening
from wm_jax.world.slots import take_rows
from wm_jax.world.step import pick_prompt

NEXT_FRAME = wm.World.next_frame


def prompts() -> wm.Prompt:
    frames = np.random.default_rng(0).integers(0, 255, (3, 2, 32, 32, 3), dtype=np.uint8)
    return wm.Prompt(frames, wm.Controls(np.zeros((3, 2, 4), bool)))


def engine_of(slots: int, has_ladder: bool = False) -> Engine:
    world, params = wm.tiny_world(0)
    engine = Engine(world, params, Scenes(prompts()), slots, has_ladder=has_ladder)
    engine.compile(lambda stage, progress: None)
    return engine


@pytest.fixture(scope="module")
def two() -> Engine:
    return engine_of(2)


def held(seed: int, frames: int) -> np.ndarray:
    return np.random.default_rng(seed).random((frames, 4)) < 0.4


def play(engine: Engine, keys: list[np.ndarray | None], frames: int) -> np.ndarray:
    """Frames `[slots t h w 3]` under these keys a slot; None: the slot is idle."""
    shown = []
    active = np.asarray([row is not None for row in keys])
    for index in range(frames):
        rows = np.stack([np.zeros(4, bool) if row is None else row[index] for row in keys])
        shown.append(np.asarray(engine.step(wm.Controls(rows), active)))
    return np.stack(shown, axis=1)


def test_stepping_the_engine_equals_the_worlds_own_step_bit_for_bit():
    engine = engine_of(1)
    keys = held(1, 12)
    engine.seat(0, Opening(7))
    shown = play(engine, [keys], 12)
    world, params = wm.tiny_world(0)
    state = wm.start(world, params, pick_prompt(prompts(), 7), jax.random.key(7))
    for index, row in enumerate(keys):
        state, frame = wm.step(world, params, state, wm.Controls(row[None]))
        assert np.array_equal(shown[:, index], np.asarray(frame))


def test_a_session_does_not_depend_on_its_neighbour(two: Engine):
    mine = held(1, 8)
    two.seat(0, Opening(3))
    two.seat(1, Opening(4))
    with_one = play(two, [mine, held(2, 8)], 8)
    two.seat(0, Opening(3))
    two.seat(1, Opening(9))
    with_another = play(two, [mine, None], 8)
    assert np.array_equal(with_one[0], with_another[0])
    assert not np.array_equal(with_one[0], with_one[1])


def test_a_session_does_not_depend_on_its_slot(two: Engine):
    keys = held(5, 6)
    two.seat(0, Opening(3))
    two.seat(1, Opening(3))
    frames = play(two, [keys, keys], 6)
    assert np.array_equal(frames[0], frames[1])


def test_an_idle_slot_keeps_its_state(two: Engine):
    mine = held(1, 8)
    two.seat(0, Opening(3))
    whole = play(two, [mine, None], 8)[0]
    two.seat(0, Opening(3))
    two.seat(1, Opening(8))
    first = play(two, [mine[:4], None], 4)[0]
    play(two, [None, held(6, 5)], 5)
    second = play(two, [mine[4:], held(6, 4)], 4)[0]
    assert np.array_equal(whole, np.concatenate([first, second]))


def test_same_seed_same_dream_and_another_seed_another(two: Engine):
    def dream(seed: int) -> np.ndarray:
        two.seat(0, Opening(seed))
        return play(two, [held(1, 4), None], 4)[0]

    assert np.array_equal(dream(3), dream(3))
    assert not np.array_equal(dream(3), dream(4))


def test_keys_change_the_dream(two: Engine):
    def dream(keys: np.ndarray) -> np.ndarray:
        two.seat(0, Opening(3))
        return play(two, [keys, None], 6)[0]

    assert not np.array_equal(dream(np.zeros((6, 4), bool)), dream(np.ones((6, 4), bool)))


def test_seating_and_stepping_compile_nothing(two: Engine, caplog: pytest.LogCaptureFixture):
    with jax.log_compiles(), caplog.at_level("WARNING"):
        two.seat(1, Opening(11))
        play(two, [held(1, 3), held(2, 3)], 3)
    compiled = [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]
    assert not [text for text in compiled if "step" in text or "start" in text or "put" in text], compiled


def test_an_own_image_becomes_the_whole_prompt():
    scenes = Scenes(prompts())
    image = np.full((32, 32, 3), 77, np.uint8)
    chosen = scenes.pick(Opening(0, image=image))
    assert chosen.frames is not None and np.asarray(chosen.frames).shape == (1, 2, 32, 32, 3)
    assert np.all(np.asarray(chosen.frames) == 77)
    named = scenes.pick(Opening(0, prompt=2)).frames
    assert named is not None and np.array_equal(np.asarray(named)[0], np.asarray(prompts().frames)[2])
    assert Scenes(wm.Prompt()).pick(Opening(0)).frames is None


def test_nothing_compiles_after_ready_not_even_where_nothing_is_cached():
    engine = engine_of(2)
    jax.clear_caches()
    engine.forget()  # the way out when a call failed and took the state along
    engine.seat(0, Opening(1))
    stepped(engine, range(2), {0}, held(1, 1)[0])
    engine.seat(1, Opening(0, memory=engine.take(0)))
    stepped(engine, range(2), {0, 1}, held(1, 1)[0])
    assert engine.recompilations == 0


def row_by_row(world, params, state, controls, active, noise):
    """A step whose rounding does not know how many rows there are: a loop over them."""

    def one(row):
        keys = jax.lax.dynamic_slice_in_dim(controls.keys, row, 1)
        alone = take_rows(state, [row])
        return NEXT_FRAME(world, params, alone, wm.Controls(keys), active[row][None], noise[row][None])

    new, frames = jax.lax.map(one, jnp.arange(active.shape[0]))
    joined = jax.tree.map(lambda leaf, axis: jnp.squeeze(jnp.moveaxis(leaf, 0, axis), axis + 1), new, state.slot_axes())
    return joined, frames[:, 0]


def test_few_players_are_stepped_by_a_smaller_program_and_see_the_same_to_the_bit(fresh_programs):
    fresh_programs.setattr(wm.World, "next_frame", row_by_row)
    engine = engine_of(3, has_ladder=True)
    assert set(engine.sizes) >= {2, 3}, "a loop over the rows rounds the same for two of them"
    keys, companies = held(1, 12), [{2}, {0, 2}, {0, 1, 2}, {1, 2}]
    runs = [run_in(engine, keys, [engine.choose(company) for company in companies], companies)]
    assert engine.recompilations == 0
    runs.append(run_in(engine, keys, [range(3)] * 4, companies))
    assert all(np.array_equal(one, other) for one, other in zip(*runs, strict=True))


def run_in(
    engine: Engine, keys: np.ndarray, chosen: list[Sequence[int]], companies: list[set[int]]
) -> list[np.ndarray]:
    """Three frames of each company in turn, each by the program for these slots; what they see and remember."""
    for slot in range(3):
        engine.seat(slot, Opening(slot))
    seen = []
    for index, row in enumerate(keys):
        one = stepped(engine, chosen[index // 3], companies[index // 3], row)
        seen += [one[slot] for slot in sorted(one)]
    return seen + [np.asarray(leaf) for slot in range(3) for leaf in jax.tree.leaves(engine.take(slot).state)]


def stepped(engine: Engine, chosen, company: set[int], row: np.ndarray) -> dict[int, np.ndarray]:
    """One frame of these slots, under the same keys all."""
    active = np.asarray([slot in company for slot in chosen])
    keys = np.where(active[:, None], row, False)
    frames = np.asarray(engine.step(wm.Controls(keys), active, chosen))
    return {slot: frame for slot, frame in zip(chosen, frames, strict=True) if slot in company}


@pytest.fixture
def fresh_programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """For tests that give the world another step: what was traced before counts no more, and afterwards not this."""
    jax.clear_caches()
    yield monkeypatch
    monkeypatch.undo()
    jax.clear_caches()


def test_a_smaller_program_that_rounds_otherwise_is_not_used(fresh_programs):
    def leaning(world, params, state, controls, active, noise):
        """As on a device whose products round by the number of rows."""
        return NEXT_FRAME(world, params, state, controls, active, noise * (1 + 1e-6 * noise.shape[0]))

    fresh_programs.setattr(wm.World, "next_frame", leaning)
    assert engine_of(2, has_ladder=True).sizes == (2,)


class Lost:
    """What was copied of a state that is no more."""

    def block_until_ready(self):
        raise RuntimeError("the device had a bad moment")


def test_a_memory_that_was_lost_fails_alone():
    engine = engine_of(2)
    engine.seat(1, Opening(3))
    with pytest.raises(RuntimeError, match="bad moment"):
        engine.seat(0, Opening(0, memory=Memory(Lost())))
    assert engine.is_sound and stepped(engine, range(2), {1}, held(1, 1)[0])[1].shape == (32, 32, 3)
