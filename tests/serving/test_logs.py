"""What a server logs: a line a session begins, resumes and ends, in the client's own words for it, and no secret."""

import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest
from structlog.contextvars import bound_contextvars

from tests.serving.conftest import Server, Talk, closing_code
from wm_jax.serving import logs
from wm_jax.serving.config import LogKind

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJhdWQiOiJ3bS5wbGF5In0.c2lnbmF0dXJl"


@pytest.fixture
def written() -> Iterator[Callable[[LogKind], io.StringIO]]:
    """Where log lines of that kind go from now on."""
    root, added, level = logging.getLogger(), [], logging.getLogger().level

    def begin(kind: LogKind) -> io.StringIO:
        stream = io.StringIO()
        added.append(logs.handler(kind, stream))
        root.addHandler(added[-1])
        root.setLevel(logging.INFO)
        return stream

    yield begin
    root.setLevel(level)
    for handler in added:
        root.removeHandler(handler)


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_session_leaves_a_line_when_it_begins_resumes_and_ends(server: Server, written):
    stream = written("json")
    asked = {"X-Request-Id": "from the\tclient#7"}
    answer = server.http.post(f"{server.url}/v1/sessions", json={"mode": "stepped"}, headers=asked)
    assert answer.headers["X-Request-Id"] == "fromtheclient7"
    ticket = answer.json()
    with server.connect(ticket) as socket:
        talk = Talk(socket)
        token = talk.wait_for("session.created")["resume_token"]
        talk.send("step", step_id=1, n=3)
        talk.wait_for_frames(3)
    with server.connect(ticket, token) as socket:
        Talk(socket).wait_for("session.created")
        server.delete(ticket)
        closing_code(socket)
    said = [line for line in lines(stream) if line["event"].startswith("session ")]
    assert [line["event"] for line in said] == ["session begins", "session resumes", "session ends"]
    for line in said:
        assert (line["session_id"], line["request_id"]) == (ticket["session_id"], "fromtheclient7")
        assert line["level"] == "info" and line["logger"].startswith("wm_jax.serving") and line["timestamp"]
    assert (said[0]["mode"], said[0]["codec"]) == ("stepped", "jpeg")
    assert (said[1]["frame_id"], said[1]["from"]) == (3, "dropped socket")
    assert (said[2]["reason"], said[2]["frames"], said[2]["dropped"]) == ("deleted", 3, 0) and said[2]["seconds"] > 0


@pytest.mark.parametrize("kind", ["console", "json"])
def test_bytes_that_are_no_text_leave_one_line(server: Server, written, kind):
    stream = written(kind)
    ticket = server.create()
    with server.connect(ticket) as socket:
        Talk(socket).wait_for("session.created")
        socket.send(b"\xff", text=True)
        assert closing_code(socket)[0] == 1007
    server.delete(ticket)
    (line,) = [line for line in stream.getvalue().splitlines() if "UTF-8" in line]
    assert "warning" in line and "Traceback" not in stream.getvalue()


def test_a_second_signal_to_stop_leaves_one_line(written):
    stream = written("json")
    # What uvicorn logs then, as it came from `serve.py`.
    logging.getLogger("uvicorn.error").error(
        "Traceback (most recent call last):\n...\nasyncio.exceptions.CancelledError\n"
    )
    (line,) = lines(stream)
    assert (line["level"], line["event"]) == ("warning", "told to stop a second time: stopped at once")


def test_a_failure_names_the_session_and_the_event(server: Server, written, monkeypatch):
    def fail(message) -> int:
        raise RuntimeError(f"a mistake of ours with wm.auth.{ticket['token']}")

    stream, plain = written("json"), written("console")
    ticket = server.create()
    monkeypatch.setattr(server.service.lobby.find(ticket["session_id"]).session, "press", fail)
    with server.connect(ticket) as socket:
        Talk(socket).send("action", held=[], event_id="e7")
        assert closing_code(socket)[0] == 1011
    (failed,) = [line for line in lines(stream) if line["event"] == "a connection failed"]
    assert (failed["session_id"], failed["event_id"], failed["level"]) == (ticket["session_id"], "e7", "error")
    assert "frame_id" in failed and "a mistake of ours" in failed["exception"]
    for text in (stream.getvalue(), plain.getvalue()):
        assert "Traceback" in text and "wm.auth.[redacted]" in text and ticket["token"] not in text


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"x-request-id": "a-B_7.c"}, "a-B_7.c"),
        ({"x-request-id": 'x"} {"level": "error\r\n\x1b[31m'}, "xlevelerror31m"),
        ({"x-request-id": "7" * 500}, "7" * 64),
        ({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}, TRACE),
        ({"x-request-id": "mine", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}, "mine"),
        ({"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}, None),
        ({"traceparent": f"00-{TRACE}-{'0' * 16}-01"}, None),
        ({"x-request-id": "éß/"}, None),
        ({}, None),
    ],
)
def test_a_request_has_a_name_that_can_stand_in_a_log(headers, name):
    found = logs.request_id(headers)
    assert found == name or (name is None and len(found) == 16 and found.isalnum())


@pytest.mark.parametrize("kind", ["console", "json"])
@pytest.mark.parametrize(
    "secret", ["Bearer open-sesame", "wm.auth.aB-_9", JWT, "http://127.0.0.1:8000/#join=abc_-9.token-9"]
)
def test_what_looks_like_a_token_is_not_written(written, kind, secret):
    stream = written(kind)
    with bound_contextvars(header=secret):
        logging.getLogger("elsewhere").warning("somebody logs %s", secret, extra={"also": secret})
    assert stream.getvalue().count("[redacted]") == 3 and "somebody logs" in stream.getvalue()
    assert secret.split(".")[-1].split(" ")[-1] not in stream.getvalue()
