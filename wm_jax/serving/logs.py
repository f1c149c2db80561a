"""The log of a server: one line an event on standard error, for people or as JSON, and never a secret in it.

The rooms log with the standard library; what they know of an event travels as its `extra`, what a request or a connection
is about as context.
"""

import logging
import re
import secrets
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.types import Processor

from wm_jax.serving.config import LogKind
from wm_jax.serving.limits import header

SECRETS = re.compile(r"(wm\.auth\.|Bearer\s+|#join=[\w-]+\.)[\w.~+/=-]+|\beyJ[\w-]*\.[\w-]*\.[\w-]*")
"""What a token looks like in a header, in an address of the page, or by itself. Nothing of ours logs one; others might."""

TRACE_PARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context, version 00 and those after it."""

NOT_IN_A_NAME = re.compile(r"[^\w.-]", re.ASCII)
MAX_NAME = 64


def configure(kind: LogKind) -> None:
    """Sends every log line of this process to standard error; called once in its life, by whoever starts it."""
    logging.basicConfig(level=logging.INFO, handlers=[handler(kind, sys.stderr)], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def handler(kind: LogKind, stream: TextIO) -> logging.Handler:
    """Writes records of the standard library, with their extras and their context, as one line each."""
    is_json = kind == "json"
    before: list[Processor] = [
        merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        _without_twins,
        structlog.processors.TimeStamper(fmt="iso" if is_json else "%H:%M:%S", utc=is_json),
    ]
    if is_json:
        before = [*before, structlog.stdlib.add_logger_name, structlog.processors.format_exc_info]
    made = logging.StreamHandler(stream)
    made.addFilter(_blame)
    made.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _Redacted(_renderer(kind, stream))],
        )
    )
    return made


def _blame(record: logging.LogRecord) -> bool:
    """What others did leaves one line, and no traceback of ours: bytes that are no text, and a second signal to stop."""
    if record.name != "uvicorn.error":
        return True
    is_unreadable = record.getMessage().startswith("Invalid UTF-8")
    is_told_twice = record.getMessage().rstrip().endswith("asyncio.exceptions.CancelledError")
    if is_told_twice:
        record.msg, record.args = "told to stop a second time: stopped at once", ()
    if is_unreadable or is_told_twice:
        record.levelno, record.levelname, record.exc_info = logging.WARNING, "WARNING", None
    return True


def _without_twins(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drops what says the message again: uvicorn's coloured copy, and what other handlers leave in a record."""
    for twin in ("color_message", "message", "asctime"):
        event.pop(twin, None)
    return event


def _renderer(kind: LogKind, stream: TextIO) -> Processor:
    if kind == "json":
        return structlog.processors.JSONRenderer(default=str)
    # Tracebacks without the values of local variables: tokens are among them.
    return structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )


class _Redacted:
    """A renderer whose lines show no token."""

    def __init__(self, render: Processor) -> None:
        self._render = render

    def __call__(self, logger: Any, name: str, event: MutableMapping[str, Any]) -> str:
        return SECRETS.sub(lambda found: f"{found[1] or ''}[redacted]", str(self._render(logger, name, event)))


def request_id(headers: Mapping[str, str]) -> str:
    """The name of a request: the client's own `X-Request-Id`, the trace of its `traceparent`, or a new one.

    Only letters, digits and `._-` of it are kept: it stands in log lines and in a header of the answer.
    """
    given = NOT_IN_A_NAME.sub("", headers.get("x-request-id", ""))[:MAX_NAME]
    if given:
        return given
    trace = TRACE_PARENT.match(headers.get("traceparent", ""))
    return trace[1] if trace else secrets.token_hex(8)


class Traced:
    """ASGI middleware: what is logged during a request has its name, and the answer tells it in `X-Request-Id`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        known = {name: found for name in ("x-request-id", "traceparent") if (found := header(scope, name.encode()))}
        name = request_id(known)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        with bound_contextvars(request_id=name):
            await self._app(scope, receive, send_named)
