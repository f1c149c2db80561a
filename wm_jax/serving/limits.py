"""What a client may not do: speak too fast, send too much, or come from another site's page."""

import hmac
import time
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wm_jax.serving.config import ServeConfig, is_loopback
from wm_jax.serving.protocol import Error, ErrorCode, Refusal, dump


class TokenBucket:
    """Allows `rate` events a second on average and `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._level = burst
        self._at = time.monotonic()

    def take(self) -> float:
        """0 and one event is allowed; otherwise the seconds after which one will be."""
        now = time.monotonic()
        self._level = min(self.burst, self._level + (now - self._at) * self.rate)
        self._at = now
        if self._level < 1.0:
            return (1.0 - self._level) / self.rate
        self._level -= 1.0
        return 0.0


def is_allowed_origin(origin: str | None, host: str, config: ServeConfig) -> bool:
    """Whether a request with this `Origin` header may act.

    No origin: not a browser. Otherwise the page must be our own; on a server for this machine only, our own means by a
    loopback name, so that a foreign name that resolves to 127.0.0.1 gains nothing.
    """
    if origin is None or origin in config.allow_origins:
        return True
    page = urlsplit(origin)
    if page.scheme not in ("http", "https") or page.netloc != host:
        return False
    return not is_loopback(config.host) or is_loopback(page.hostname or "")


def check_secret(config: ServeConfig, authorization: str | None) -> None:
    """Lets the bearer of the server's secret pass; everyone where none is set.

    Raises:
      Refusal: it is another secret, or none.
    """
    token = (authorization or "").removeprefix("Bearer ").encode()
    if config.auth is not None and not hmac.compare_digest(token, config.auth.encode()):
        raise Refusal(ErrorCode.UNAUTHORIZED, "this server wants `Authorization: Bearer <its --auth secret>`")


def header(scope: Scope, name: bytes) -> str | None:
    """A header of the request, or None."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


class Guard:
    """ASGI middleware: refuses long bodies, and writing requests from foreign pages."""

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self._app = app
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin, host = header(scope, b"origin"), header(scope, b"host") or ""
        if scope["method"] not in ("GET", "HEAD") and not is_allowed_origin(origin, host, self._config):
            text = f"a page of {origin} may not use this server ({host}); allow it with --allow-origins {origin}"
            await _refuse(send, 403, ErrorCode.FORBIDDEN_ORIGIN, text)
            return
        body = await self._read(receive)
        if body is None:
            text = f"the body is longer than {self._config.max_body_bytes} bytes"
            await _refuse(send, 413, ErrorCode.TOO_LARGE, text)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body, or None if it is longer than allowed."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b"".join(chunks)
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._config.max_body_bytes:
                return None
            if not message.get("more_body", False):
                return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting = [body]

    async def once() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return once


async def _refuse(send: Send, status: int, code: ErrorCode, text: str) -> None:
    body = dump(Error(code=code, message=text, fatal=True)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
