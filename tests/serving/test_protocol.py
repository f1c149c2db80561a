"""The wire: what is packed is what is unpacked, and what is wrong is refused with a name."""

import json

import pytest

from wm_jax.serving import javascript
from wm_jax.serving.protocol import (
    Ack,
    Action,
    Control,
    Error,
    ErrorCode,
    FramesHeader,
    Refusal,
    Step,
    dump,
    pack_frames,
    parse_client_message,
    unpack_frames,
)


def header(**fields) -> FramesHeader:
    sizes = {"seq": 3, "frame_id": 9, "n": 2, "codec": "raw", "w": 4, "h": 2, "lengths": [3, 5], "pts_ms": 300.0}
    return FramesHeader(**{**sizes, **fields})


def test_bytes_survive_the_wire():
    sent = header(last_event_id="é", last_client_ts=12.5, dropped=4)
    got, payloads = unpack_frames(pack_frames(sent, [b"abc", b"defgh"]))
    assert got == sent
    assert payloads == [b"abc", b"defgh"]


@pytest.mark.parametrize("cut", [2, 10, -1])
def test_a_truncated_frames_message_is_refused(cut):
    with pytest.raises(ValueError, match="bytes"):
        unpack_frames(pack_frames(header(), [b"abc", b"defgh"])[:cut])


def test_generated_protocol_is_fresh():
    fresh = "python -m wm_jax.serving.javascript"
    assert javascript.TARGET.read_text() == javascript.generate(), f"protocol.py changed: run {fresh}"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", ErrorCode.BAD_MESSAGE),
        ("[]", ErrorCode.BAD_MESSAGE),
        pytest.param("[" * 60_000, ErrorCode.BAD_MESSAGE, id="nested too deeply"),
        ('"hello"', ErrorCode.BAD_MESSAGE),
        ("{}", ErrorCode.BAD_MESSAGE),
        ('{"type": "dance"}', ErrorCode.UNKNOWN_TYPE),
        ('{"type": "action", "held": "KeyW"}', ErrorCode.BAD_MESSAGE),
        ('{"type": "control"}', ErrorCode.BAD_MESSAGE),
        ('{"type": "control", "op": "explode"}', ErrorCode.BAD_MESSAGE),
        ('{"type": "control", "op": "reset", "seed": -1}', ErrorCode.BAD_MESSAGE),
        ('{"type": "step", "step_id": 1, "n": 0}', ErrorCode.BAD_MESSAGE),
        ('{"type": "frame.ack", "seq": "x"}', ErrorCode.BAD_MESSAGE),
    ],
)
def test_what_is_wrong_is_refused_with_a_code(message, code):
    with pytest.raises(Refusal) as refusal:
        parse_client_message(message)
    assert refusal.value.code == code
    assert refusal.value.message


def test_a_refusal_can_be_sent_whatever_the_event_is_called():
    with pytest.raises(Refusal) as refusal:
        parse_client_message('{"type":"ping","event_id":"a\\ud800"}')
    assert refusal.value.event_id == "a?"
    assert dump(Error(code=refusal.value.code, message=refusal.value.message, event_id=refusal.value.event_id))


def test_a_refusal_names_the_event_and_the_field():
    with pytest.raises(Refusal) as refusal:
        parse_client_message('{"type": "action", "event_id": "e7", "held": 3}')
    assert refusal.value.event_id == "e7"
    assert refusal.value.param is not None and "held" in refusal.value.param


def test_control_has_a_long_and_a_short_form():
    long = parse_client_message('{"type": "control", "op": "reset", "seed": 7}')
    assert parse_client_message('{"type": "control", "reset": {"seed": 7}}') == long
    assert isinstance(long, Control)
    pause = parse_client_message('{"type": "control", "pause": true}')
    assert isinstance(pause, Control) and pause.op == "pause"


def test_step_actions_may_be_objects_or_bare_lists():
    text = json.dumps({"type": "step", "step_id": 1, "actions": [{"held": ["KeyW"]}, ["KeyW"], [1, 0]]})
    step = parse_client_message(text)
    assert isinstance(step, Step)
    assert [action.held for action in step.actions] == [["KeyW"], ["KeyW"], None]
    assert step.actions[2].raw == [1, 0]


def test_unknown_fields_of_a_newer_minor_version_are_ignored():
    action = parse_client_message('{"type": "action", "held": [], "invented_later": 1}')
    assert isinstance(action, Action) and action.held == []


def test_absent_fields_do_not_travel():
    assert json.loads(dump(Ack(event_id=1, applied_at_frame=2))) == {
        "type": "ack",
        "event_id": 1,
        "applied_at_frame": 2,
    }
    assert "retry_after_ms" not in dump(Error(code=ErrorCode.BUSY, message="x"))
