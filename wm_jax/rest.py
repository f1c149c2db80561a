"""One REST call of a served world, for whoever plays or measures one from outside."""

import contextlib
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class ServerError(RuntimeError):
    """The server said no; the message is the server's own."""


def request(method: str, url: str, body: Any = None, auth: str | None = None) -> dict[str, Any]:
    """One REST call.

    Raises:
      ServerError: the server answers with an error, in its own words.
    """
    data = None if body is None else json.dumps(body).encode()
    with _answer(method, url, data, auth, timeout=30) as answer:
        return json.load(answer)


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
            raise ServerError(f"{method} {url}: {error.code} {error.read().decode(errors='replace')}") from None
