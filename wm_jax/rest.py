"""One REST call of a served world, for whoever plays or measures one from outside."""

import json
import urllib.error
import urllib.request
from typing import Any


class ServerError(RuntimeError):
    """The server said no; the message is the server's own."""


def request(method: str, url: str, body: Any = None, auth: str | None = None) -> dict[str, Any]:
    """One REST call.

    Raises:
      ServerError: the server answers with an error, in its own words.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {auth}"} if auth else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise ServerError(f"{method} {url}: {error.code} {error.read().decode(errors='replace')}") from None
