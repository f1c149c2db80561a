"""What a class of controls is, and that a world gets credit for visible control only."""

import numpy as np

from wm_jax.eval.control import classes_of, heads_of, mean_over_heads, score
from wm_jax.types import ControlSpace, KeyBinding

COINRUN = ControlSpace(tuple(KeyBinding(label, label) for label in ("left", "right", "jump", "down")))
HEADS = heads_of(COINRUN)


def judged(classes: np.ndarray, sure: np.ndarray, count: int) -> np.ndarray:
    """Probabilities of a judge that says these classes, and is sure of some."""
    top = np.where(sure, 0.95, 0.6)
    likely = np.repeat(((1 - top) / (count - 1))[:, None], count, axis=1)
    likely[np.arange(len(classes)), classes] = top
    return likely


def play(frames: int = 600) -> np.ndarray:
    return np.random.default_rng(0).random((frames, 4)) < 0.4


def test_opposite_keys_are_one_head_and_the_others_their_own() -> None:
    assert [head.name for head in HEADS] == ["left/right", "jump", "down"]
    doom = ControlSpace(tuple(KeyBinding(n, n) for n in ("forward", "back", "turn left", "turn right", "attack")))
    assert [head.name for head in heads_of(doom)] == ["forward/back", "turn left/turn right", "attack"]


def test_opposite_keys_cancel() -> None:
    keys = np.array([[0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0]], bool)
    np.testing.assert_array_equal(classes_of(HEADS, keys), [[0, 0, 0], [1, 1, 0], [2, 0, 1], [0, 0, 0]])


def test_a_perfect_dream_scores_like_the_recording_and_a_frozen_one_like_chance() -> None:
    keys = play()
    truth, sure = classes_of(HEADS, keys), np.ones(len(keys), bool)
    perfect = [judged(truth[:, i], sure, head.classes) for i, head in enumerate(HEADS)]
    frozen = [judged(np.zeros(len(keys), int), sure, head.classes) for head in HEADS]
    for row, head in zip(score(HEADS, keys, perfect, frozen), HEADS, strict=True):
        assert row.real == 1 and row.shown == 1
        np.testing.assert_allclose(row.dreamed, 1 / head.classes)
    assert mean_over_heads(score(HEADS, keys, perfect, perfect), "dreamed") == 1


def test_frames_in_which_the_recording_shows_nothing_do_not_count() -> None:
    keys = play()
    truth, sure = classes_of(HEADS, keys), np.arange(len(keys)) % 2 == 0
    # Where the real judge is unsure, the dream may show anything.
    said = [np.where(sure, truth[:, i], (truth[:, i] + 1) % head.classes) for i, head in enumerate(HEADS)]
    likely = [judged(said[i], sure, head.classes) for i, head in enumerate(HEADS)]
    for row in score(HEADS, keys, likely, likely):
        assert row.shown == 0.5 and row.real == row.dreamed == 1
        assert row.dreamed_all < 0.7


def test_a_head_of_which_one_class_shows_is_no_test() -> None:
    keys = play()
    truth = classes_of(HEADS, keys)
    # The judge is sure that down is not held, and never that it is.
    likely = [judged(truth[:, i], truth[:, 2] == 0, head.classes) for i, head in enumerate(HEADS)]
    rows = score(HEADS, keys, likely, likely)
    assert [row.is_counted for row in rows] == [True, True, False]


def test_a_key_that_never_shows_is_left_out_of_the_mean() -> None:
    keys = play()
    truth = classes_of(HEADS, keys)
    sure = np.array([True, True, False])
    likely = [judged(truth[:, i], np.full(len(keys), sure[i]), head.classes) for i, head in enumerate(HEADS)]
    rows = score(HEADS, keys, likely, likely)
    assert [row.is_counted for row in rows] == [True, True, False]
    assert mean_over_heads(rows, "real") == 1
