"""The latch: what is pressed counts in a frame that is known at once."""

import asyncio
from typing import Literal, cast

import numpy as np
import pytest

from wm_jax.serving.outbox import EncodedFrame, Outbox, Sending, Spent
from wm_jax.serving.protocol import Action, ErrorCode, Held, Refusal, Step
from wm_jax.serving.session import MAX_WAITING_STEPS, Opening, Session
from wm_jax.types import ControlSpace, KeyBinding

KEYS = ControlSpace((KeyBinding("ArrowLeft", "left"), KeyBinding("ArrowRight", "right"), KeyBinding("Space", "fire")))


def session(mode: Literal["realtime", "stepped"] = "realtime") -> Session:
    return Session(KEYS, 30.0, Outbox(None if mode == "stepped" else 2), Opening(5), mode=mode, max_step_frames=16)


def ask(to: Session, step_id: int, **fields) -> int:
    return to.ask(Step(type="step", step_id=step_id, **fields))


def press(to: Session, **fields) -> int:
    return to.press(Action(type="action", **fields))


def keys_of(taken) -> list[bool]:
    assert taken is not None
    return taken.keys.tolist()


def test_the_newest_action_stays_held():
    player = session()
    assert press(player, held=["ArrowRight"], event_id=1) == 0
    assert press(player, held=["ArrowRight", "Space"], event_id=2, client_ts=7.5) == 0
    first, second = player.take(), player.take()
    assert keys_of(first) == keys_of(second) == [False, True, True]
    assert first is not None and (first.event_id, first.client_ts, first.frame_id) == (2, 7.5, 0)
    assert press(player, held=[]) == 2


def test_a_tap_between_two_frames_counts_once_and_a_release_at_once():
    player = session()
    press(player, held=["Space"])
    press(player, held=["ArrowLeft"])
    press(player, held=[])
    assert [keys_of(player.take()) for _ in range(2)] == [[True, False, True], [False] * 3]
    press(player, held=["Space"])
    player.take()
    press(player, held=[])
    assert keys_of(player.take()) == [False] * 3


def test_raw_is_the_worlds_own_row():
    player = session()
    press(player, raw=[0, 1, 0.9])
    assert keys_of(player.take()) == [False, True, True]


def test_an_action_may_be_scheduled_for_a_later_frame():
    player = session()
    assert press(player, held=["Space"], at=2, event_id="later") == 2
    assert [keys_of(player.take())[2] for _ in range(4)] == [False, False, True, True]
    assert press(player, held=[], at=1) == 4


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"held": ["KeyQ"]}, ErrorCode.UNKNOWN_KEY, "ArrowLeft, ArrowRight, Space"),
        ({"raw": [1.0]}, ErrorCode.WRONG_DIMENSION, "1 numbers, this world has 3"),
        ({}, ErrorCode.BAD_MESSAGE, "held"),
        ({"held": [], "mouse": [1.0, 2.0]}, ErrorCode.UNSUPPORTED, "mouse"),
    ],
)
def test_a_refused_action_names_both_sides_and_changes_nothing(fields, code, says):
    player = session()
    press(player, held=["Space"])
    with pytest.raises(Refusal, match=says) as refusal:
        press(player, **fields)
    assert refusal.value.code == code
    assert keys_of(player.take()) == [False, False, True]


def test_a_session_starts_once_and_again_when_reset():
    player = session()
    first, second = player.take(), player.take()
    assert first is not None and first.opening == Opening(5)
    assert second is not None and second.opening is None
    assert player.restart(seed=9) == 2
    third = player.take()
    assert third is not None and third.opening == Opening(9) and third.frame_id == 2


def test_a_step_makes_its_frames_and_the_last_action_holds():
    player = session("stepped")
    assert player.take() is None
    actions = [Held(held=["ArrowLeft"]), Held(held=["Space"])]
    assert player.ask(Step(type="step", step_id="a", actions=actions, n=4)) == 0
    assert player.ask(Step(type="step", step_id="b", n=1)) == 4
    rows = [keys_of(player.take()) for _ in range(5)]
    assert [row[0] for row in rows] == [True, False, False, False, False]
    assert [row[2] for row in rows[:4]] == [False, True, True, True]
    assert player.take() is None


@pytest.mark.parametrize(
    ("mode", "step", "code"),
    [
        ("realtime", {"n": 1}, ErrorCode.WRONG_MODE),
        ("stepped", {"n": 17}, ErrorCode.STEP_TOO_LONG),
        ("stepped", {"n": 1, "actions": [Held(held=[]), Held(held=[])]}, ErrorCode.WRONG_DIMENSION),
        ("stepped", {"actions": [Held(raw=[1.0])]}, ErrorCode.WRONG_DIMENSION),
    ],
)
def test_a_step_that_cannot_be_is_refused(mode, step, code):
    with pytest.raises(Refusal) as refusal:
        session(mode).ask(Step(type="step", step_id=1, **step))
    assert refusal.value.code == code


def test_a_step_id_is_not_used_for_two_things():
    player = session("stepped")
    player.ask(Step(type="step", step_id=1, n=2))
    player.ask(Step(type="step", step_id=1, n=2))
    with pytest.raises(Refusal, match="other content"):
        player.ask(Step(type="step", step_id=1, n=3))
    assert sum(player.take() is not None for _ in range(4)) == 2


def test_a_step_asked_for_again_and_again_does_not_pile_up_frames():
    player = session("stepped")
    player.is_connected = True
    ask(player, 1, n=16)
    for number in range(16):
        assert player.take() is not None
        player.show(EncodedFrame(b"x", "jpeg", 8, 8, number, 0.0, None, None, 1, Spent()))
    with pytest.raises(Refusal, match="sent again once") as refusal:
        for _ in range(100):
            ask(player, 1, n=16)
    assert refusal.value.code == ErrorCode.BUSY and refusal.value.event_id == 1
    assert len(player.outbox._frames) < 100


def make(player: Session) -> int:
    """Makes and shows all that was asked for; how many frames that was."""
    turns = list(iter(player.take, None))
    for turn in turns:
        player.show(EncodedFrame(b"x", "raw", 8, 8, turn.frame_id, 0.0, None, None, turn.step_id, Spent()))
    return len(turns)


def kept(player: Session) -> int:
    """Frames that any step holds, also one that is only remembered to be taken back."""
    return sum(
        len(work.frames) for work in {id(work): work for work in (*player._kept.values(), *player._done)}.values()
    )


def test_no_more_frames_are_kept_than_two_of_the_longest_steps_have():
    player = session("stepped")
    for number in range(MAX_WAITING_STEPS):
        ask(player, number, n=16)
    assert len(player._kept) == MAX_WAITING_STEPS, "what is still to be made is not forgotten"
    assert make(player) == 16 * MAX_WAITING_STEPS and kept(player) == 32
    for number in range(8, 20):
        ask(player, number, n=16)
        make(player)
        assert kept(player) == 32
    assert [ask(player, number, n=16) for number in (18, 19)] == [288, 304] and make(player) == 0, (
        "sent again, not made"
    )
    assert ask(player, 0, n=16) == 320 and make(player) == 16


def test_of_short_steps_every_one_that_may_wait_is_kept():
    player = session("stepped")
    for _ in range(2):  # the second time its client has come back and got none of them
        assert [ask(player, number, n=4) for number in range(MAX_WAITING_STEPS)] == list(range(0, 32, 4))
        make(player)
    assert player.frames == 32 == kept(player)


def test_a_frame_taken_back_belongs_to_the_newest_step_of_its_name():
    player = session("stepped")
    for name in (0, 1, 2, 0):
        ask(player, name, n=16, actions=[Held(held=["Space"] if player.next_frame else [])])
        if player.next_frame < 64:
            make(player)
    turns = list(iter(player.take, None))
    player.give_back(turns[-1])
    assert keys_of(player.take()) == [False, False, True]


def scripted(launched_between: int) -> tuple[list[int], list[tuple]]:
    """One event log, with a device that is this fast between the events: the acks, and all that decides the frames."""
    player, turns = session("stepped"), []

    def launch(count: int) -> None:
        turns.extend(turn for turn in (player.take() for _ in range(count)) if turn is not None)

    acks = []
    for say in (
        lambda: ask(player, 1, n=3, actions=[Held(held=["ArrowLeft"]), Held(held=["Space"])]),
        lambda: ask(player, 2, n=2),
        lambda: player.restart(seed=9),
        lambda: ask(player, 3, n=2),
        lambda: press(player, held=["ArrowRight"], event_id="e"),
        lambda: ask(player, 4, n=2),
        lambda: player.restart(source="real"),
        lambda: ask(player, 5, n=2, actions=[Held(held=[])]),
        lambda: ask(player, 2, n=2),
    ):
        acks.append(say())
        launch(launched_between)
    player.release_keys()
    acks.append(ask(player, 6))
    launch(99)
    return acks, [(turn.frame_id, turn.step_id, turn.keys.tolist(), turn.source, turn.opening) for turn in turns]


def test_a_stepped_session_is_what_was_asked_of_it_however_fast_the_device_is():
    acks, turns = scripted(launched_between=0)
    assert [scripted(count) for count in (1, 2, 99)] == [(acks, turns)] * 3
    assert acks == [0, 3, 5, 5, 7, 7, 9, 9, 3, 11]
    left, right, fire, none = [True, False, False], [False, True, False], [False, False, True], [False] * 3
    assert [turn[2] for turn in turns] == [left, *[fire] * 6, *[right] * 2, *[none] * 3]
    assert [turn[4] for turn in turns if turn[4] is not None] == [Opening(5), Opening(9), Opening(9)]
    assert [turn[0] for turn in turns if turn[4] is not None] == [0, 5, 9]
    assert [turn[3] for turn in turns] == ["dream"] * 9 + ["real"] * 3


def test_a_stepped_session_refuses_an_action_at_a_frame():
    player = session("stepped")
    with pytest.raises(Refusal, match="stepped.*frame 3.*realtime") as refusal:
        press(player, held=["Space"], at=3, event_id="e")
    assert (refusal.value.code, refusal.value.param, refusal.value.event_id) == (ErrorCode.WRONG_MODE, "at", "e")


def test_stepped_frames_are_sent_in_order_whoever_makes_them():
    player = session("stepped")
    ask(player, 1, n=3)
    player.is_connected = True
    for frame_id in (1, 2, 0):
        player.show(EncodedFrame(b"pixels", "raw", 1, 2, frame_id, 0.0, None, None, 1, Spent()))

    async def sent() -> list[int]:
        return [cast(Sending, await player.outbox.next()).header.frame_id for _ in range(3)]

    assert asyncio.run(sent()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("fps", "max_fps", "stride"), [(30.0, None, 1), (30.0, 60.0, 1), (30.0, 10.0, 3), (30.0, 25.0, 2), (17.5, 15.0, 2)]
)
def test_no_more_frames_are_sent_than_the_client_allows(fps, max_fps, stride):
    player = Session(KEYS, fps, Outbox(2), Opening(5), max_fps=max_fps)
    assert player.stride == stride
    assert max_fps is None or fps / player.stride <= max_fps


def test_waiting_steps_are_bounded():
    player = session("stepped")
    for step in range(MAX_WAITING_STEPS):
        player.ask(Step(type="step", step_id=step))
    with pytest.raises(Refusal) as refusal:
        player.ask(Step(type="step", step_id=99))
    assert refusal.value.code == ErrorCode.BUSY


def test_a_player_who_left_holds_nothing():
    player = session()
    press(player, held=["Space"])
    player.release_keys()
    assert not np.any(keys_of(player.take()))
