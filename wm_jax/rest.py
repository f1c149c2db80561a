"""One REST call of a served world, for whoever plays or measures one from outside."""

import contextlib
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

COME_AGAIN = (502, 503, 504)
AGAIN_S = 0.2


class ServerError(RuntimeError):
    """The server said no; the message is the server's own.

    Attributes:
      status: Of the HTTP answer, if it was one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def request(method: str, url: str, body: Any = None, auth: str | None = None) -> dict[str, Any]:
    """One REST call.

    Raises:
      ServerError: the server answers with an error, in its own words.
    """
    data = None if body is None else json.dumps(body).encode()
    with _answer(method, url, data, auth, timeout=30) as answer:
        return json.load(answer)


def fetch_text(url: str, auth: str | None = None) -> str:
    """What is there, as text.

    Raises:
      ServerError: as `request`.
    """
    with _answer("GET", url, None, auth, timeout=30) as answer:
        return answer.read().decode()


def download(url: str, path: Path, auth: str | None = None, timeout: float | None = None) -> None:
    """Writes what is there to a file, however long the server takes to make it.

    Raises:
      ServerError: as `request`; no file is left.
    """
    with _answer("GET", url, None, auth, timeout) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)


@contextlib.contextmanager
def _answer(method: str, url: str, data: bytes | None, auth: str | None, timeout: float | None) -> Iterator[Any]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {auth}"} if auth else {})
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, headers, method=method), timeout=timeout
        ) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        with error:
            said = error.read().decode(errors="replace")
            raise ServerError(f"{method} {url}: {error.code} {said}", error.code) from None


def socket_url(url: str, ticket: dict[str, Any]) -> str:
    """Where a ticket's socket is; over TLS if the server at `url` has it and need not know, behind a proxy."""
    told, asked = urlsplit(ticket["ws_url"]), urlsplit(url)
    is_wrapped = asked.scheme == "https" and told.netloc == asked.netloc
    return told._replace(scheme="wss" if is_wrapped else told.scheme).geturl()


def come_back(url: str, session_id: str, resume_token: str, patience_s: float = 0.0) -> dict[str, Any]:
    """The ticket of a session that is resumed; asks again while its server is starting, stopping or not there.

    Raises:
      ServerError: there is no such session, or nobody took it up within that time.
      OSError: nobody answered within that time.
    """
    return patiently("POST", f"{url}/v1/sessions/{session_id}/resume", None, resume_token, patience_s)


def patiently(method: str, url: str, body: Any, auth: str | None, patience_s: float) -> dict[str, Any]:
    """One REST call that is made again for so long while nobody answers it, or says to come again.

    Raises:
      ServerError: the server says no, or to come again until the end.
      OSError: nobody answered within that time.
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            return request(method, url, body, auth)
        except (ServerError, OSError) as error:
            is_final = isinstance(error, ServerError) and error.status not in COME_AGAIN
            if is_final or time.monotonic() > until:
                raise
        time.sleep(AGAIN_S)
