"""The mouse: what it was moved counts in one frame, in all frames together exactly once; over the socket too."""

import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm_jax.serving.outbox import Outbox
from wm_jax.serving.protocol import MAX_MOUSE, Action, ErrorCode, Held, Refusal, Step
from wm_jax.serving.session import Opening, Session
from wm_jax.types import ControlSpace, KeyBinding

KEYS = (KeyBinding("KeyW", "forward"), KeyBinding("Mouse0", "attack"))
ways = st.integers(-512, 512).map(lambda part: part / 64)  # sums of these are exact
moves = st.tuples(ways, ways).map(list)


def session(mode: Literal["realtime", "stepped"] = "realtime", has_mouse: bool = True) -> Session:
    outbox = Outbox(None if mode == "stepped" else 2)
    return Session(ControlSpace(KEYS, has_mouse), 20.0, outbox, Opening(5), mode=mode, max_step_frames=16)


def press(to: Session, mouse: list[float] | None = None, **fields) -> int:
    return to.press(Action(type="action", **{"held": [], "mouse": mouse, **fields}))


def ask(to: Session, step_id: int, actions: list[list[float] | None], **fields) -> int:
    rows = [Held(held=["KeyW"], mouse=mouse) for mouse in actions]
    return to.ask(Step(type="step", step_id=step_id, actions=rows, **fields))


def taken(player: Session) -> tuple[float, float] | None:
    turn = player.take()
    assert turn is not None
    return turn.mouse


def test_movements_add_up_until_a_frame_takes_them_and_keys_stay_held():
    player = session()
    press(player, [0.25, -0.5], held=["KeyW"])
    press(player, [0.5, 0.0], held=["Mouse0"])
    press(player, held=["Mouse0"])
    turns = [player.take(), player.take()]
    assert [turn and turn.mouse for turn in turns] == [(0.75, -0.5), (0.0, 0.0)]
    assert [turn and turn.keys.tolist() for turn in turns] == [[True, True], [False, True]]


@given(st.lists(st.one_of(st.just("take"), moves, st.tuples(moves, st.integers(0, 12)))))
def test_no_movement_is_lost_or_doubled_however_pressing_and_taking_interleave(events):
    player, wanted, got = session(), dict[int, np.ndarray](), list[tuple[float, float]]()
    for event in events:
        if event == "take":
            got.append(taken(player) or (math.nan, math.nan))
            continue
        mouse, at = event if isinstance(event, tuple) else (event, "next")
        frame = press(player, mouse, at=at)
        assert frame >= len(got)
        wanted[frame] = wanted.get(frame, np.zeros(2)) + mouse
    got += [taken(player) or (math.nan, math.nan) for _ in range(14)]
    assert got == [tuple(wanted.get(frame, np.zeros(2))) for frame in range(len(got))]


@given(st.lists(st.tuples(moves, st.lists(st.one_of(st.none(), moves), max_size=3), st.integers(0, 3)), max_size=6))
def test_a_stepped_mouse_moves_once_in_its_own_frame(script):
    player, wanted = session("stepped"), []
    for number, (before, actions, more) in enumerate(script):
        press(player, before)
        count = max(1, len(actions) + more)
        assert ask(player, number, actions, n=count) == len(wanted)
        rows = [np.asarray(mouse or (0.0, 0.0)) for mouse in actions]
        rows += [np.zeros(2)] * (count - len(rows))
        wanted += [rows[0] + before, *rows[1:]]
    assert [taken(player) for _ in wanted] == [tuple(row) for row in wanted]
    assert player.take() is None


def test_a_steps_last_keys_hold_and_its_last_movement_does_not():
    player = session("stepped")
    ask(player, 1, [[0.5, 0.0]], n=3)
    turns = [player.take() for _ in range(3)]
    assert [turn and turn.mouse for turn in turns] == [(0.5, 0.0), (0.0, 0.0), (0.0, 0.0)]
    assert all(turn is not None and turn.keys.tolist() == [True, False] for turn in turns)


def test_a_step_asked_for_again_with_another_movement_is_refused():
    player = session("stepped")
    assert ask(player, 1, [[0.5, 0.0]]) == ask(player, 1, [[0.5, 0.0]]) == 0
    press(player, [1.0, 1.0])
    ask(player, 1, [[0.5, 0.0]])
    with pytest.raises(Refusal, match="other content") as refusal:
        ask(player, 1, [[0.5, 0.25]])
    assert refusal.value.code == ErrorCode.STEP_CONFLICT
    ask(player, 2, [])
    assert [taken(player), taken(player)] == [(0.5, 0.0), (1.0, 1.0)]


@pytest.mark.parametrize(
    "forget",
    [
        lambda player: player.release_keys(),
        lambda player: player.restart(seed=9),
        lambda player: player.restart(source="real"),
        lambda player: player.pause(True),
    ],
    ids=["released", "restarted", "switched", "paused"],
)
def test_what_was_moved_before_is_forgotten_when(forget):
    player = session()
    press(player, [1.0, 1.0])
    forget(player)
    press(player, [0.25, 0.0])
    assert taken(player) == (0.25, 0.0)


def test_what_was_moved_during_a_pause_is_forgotten_and_a_second_resume_forgets_nothing():
    player = session()
    player.pause(True)
    press(player, [1.0, 1.0])
    player.pause(False)
    press(player, [0.25, 0.0])
    player.pause(False)
    assert taken(player) == (0.25, 0.0)


def test_a_stepped_restart_forgets_and_a_lost_connection_does_not():
    player = session("stepped")
    press(player, [1.0, 1.0])
    player.restart()
    press(player, [0.5, 0.0])
    player.release_keys()
    ask(player, 1, [])
    assert taken(player) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("has_mouse", "mouse", "code", "says"),
    [
        (False, [0.0, 0.0], ErrorCode.UNSUPPORTED, "keys only"),
        (True, [1.0], ErrorCode.WRONG_DIMENSION, "1 numbers"),
        (True, [1.0, 2.0, 3.0], ErrorCode.WRONG_DIMENSION, "3 numbers"),
        (True, [math.nan, 0.0], ErrorCode.BAD_MESSAGE, "nan"),
        (True, [0.0, -math.inf], ErrorCode.BAD_MESSAGE, "inf"),
        (True, [0.0, MAX_MOUSE + 0.5], ErrorCode.BAD_MESSAGE, "at most 8"),
    ],
)
def test_a_mouse_that_cannot_be_is_refused_and_changes_nothing(has_mouse, mouse, code, says):
    for mode in ("realtime", "stepped"):
        player = session(mode, has_mouse)
        with pytest.raises(Refusal, match=says) as refusal:
            press(player, mouse, event_id="e")
        assert (refusal.value.code, refusal.value.param, refusal.value.event_id) == (code, "mouse", "e")
        if mode == "stepped":
            with pytest.raises(Refusal, match=says):
                ask(player, 1, [mouse])
            ask(player, 1, [])
        assert taken(player) == ((0.0, 0.0) if has_mouse else None)


def test_axes_are_refused_also_beside_a_mouse():
    with pytest.raises(Refusal, match="axes") as refusal:
        press(session(), [0.0, 0.0], axes=[1.0])
    assert (refusal.value.code, refusal.value.param) == (ErrorCode.UNSUPPORTED, "axes")


def test_a_world_with_a_mouse_tells_of_it(server, mouse_server):
    (model,) = mouse_server.http.get(f"{mouse_server.url}/v1/models").json()["models"]
    schema = model["action_space"]["properties"]["mouse"]
    assert model["mouse"] is True and (schema["minItems"], schema["maxItems"]) == (2, 2)
    assert schema["items"] == {"type": "number", "minimum": -MAX_MOUSE, "maximum": MAX_MOUSE}
    assert {"code": "Mouse0", "label": "attack"} in model["keymap"]
    with mouse_server.connect(mouse_server.create()) as socket:
        created = mouse_server.talk(socket).wait_for("session.created")
    assert created["capabilities"]["mouse"] is True and created["session"]["mouse"] is True
    (other,) = server.http.get(f"{server.url}/v1/models").json()["models"]
    assert other["mouse"] is False and "mouse" not in other["action_space"]["properties"]


def test_stepped_movements_reach_the_engine_frame_by_frame(mouse_server, told):
    ticket = mouse_server.create(mode="stepped")
    with mouse_server.connect(ticket) as socket:
        talk = mouse_server.talk(socket)
        actions = [{"held": ["KeyW"], "mouse": [0.5, -0.25]}, {"held": ["Mouse0"], "mouse": [0.125, 0]}, ["Digit9"]]
        talk.send("action", held=[], mouse=[1, 1])
        talk.send("step", step_id=1, n=5, actions=actions)
        talk.wait_for_frames(5)
    assert [mouse for _, mouse in told] == [[1.5, 0.75], [0.125, 0.0], *[[0.0, 0.0]] * 3]
    assert [held for held, _ in told] == [["KeyW"], ["Mouse0"], ["Digit9"], ["Digit9"], ["Digit9"]]


def test_realtime_movements_reach_the_engine_exactly_once(mouse_server, told):
    with mouse_server.connect(mouse_server.create()) as socket:
        talk = mouse_server.talk(socket)
        talk.wait_for_frames(2)
        for event in range(60):
            talk.send("action", held=["KeyW"], mouse=[0.25, -0.125], event_id=event)
        last = talk.wait_for("ack", event_id=59)["applied_at_frame"]
        while talk.frames[-1][0]["frame_id"] <= last:
            talk.receive()
    assert np.sum([mouse for _, mouse in told], axis=0).tolist() == [15.0, -7.5]


@pytest.mark.parametrize(
    ("mouse", "code"),
    [
        ("[1]", "wrong_dimension"),
        ("[NaN, 0]", "bad_message"),
        ("[1e999, 0]", "bad_message"),
        ("[0, -8.5]", "bad_message"),
        ('["left", 0]', "bad_message"),
        ("{}", "bad_message"),
    ],
)
def test_a_mouse_that_cannot_be_gets_an_error_and_play_goes_on(mouse_server, mouse, code):
    with mouse_server.connect(mouse_server.create()) as socket:
        talk = mouse_server.talk(socket)
        talk.wait_for_frames(1)
        talk.socket.send(f'{{"type": "action", "held": [], "mouse": {mouse}, "event_id": 4}}')
        error = talk.wait_for("error")
        assert (error["code"], error["event_id"], error["fatal"]) == (code, 4, False)
        assert "mouse" in error["param"]
        talk.wait_for_frames(3)


def test_a_world_without_a_mouse_refuses_one_over_the_socket(talk):
    talk.send("action", held=[], mouse=[0.1, 0.0], event_id=4)
    error = talk.wait_for("error")
    assert (error["code"], error["param"], error["event_id"]) == ("unsupported", "mouse", 4)
    talk.wait_for_frames(2)
