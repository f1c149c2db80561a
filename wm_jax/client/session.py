"""A stepped session for scripts: every call waits for its answer."""

import contextlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import UInt8
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_socket
from websockets.typing import Subprotocol

from wm_jax.client.asynchronous import decode
from wm_jax.client.recordings import record
from wm_jax.rest import ServerError, come_back, request, socket_url
from wm_jax.serving.protocol import AUTH_PREFIX, SUBPROTOCOL, FramesHeader, unpack_frames

PATIENCE = ("rate_limited", "busy")
"""Refusals that only ask to come again later."""

Held = Sequence[str]
"""Names of keys: `KeyboardEvent.code`, as `Session.codes` lists them."""


class Session:
    """One session in stepped mode: the world waits for `step`, and no frame is ever lost.

    Attributes:
      id: Its name on the server.
      codes: The keys of the world.
      fps: Frames a second at which it would be played.
      shape: Of a frame, `(h, w, 3)`.
      resume_token: With it `connect(url, resume=(id, token))` comes back, also after the server was started anew.
      frame_id: Index of the next frame.
      resumed_at: The frame at which it went on from the disk, if another server took it up; frames from there on that were
        made before are forgotten.
    """

    def __init__(self, url: str, ticket: dict[str, Any], auth: str | None) -> None:
        self._url, self._auth = url, auth
        self._numbers = itertools.count()
        self._connect(ticket)

    def _connect(self, ticket: dict[str, Any]) -> None:
        address, self._token = socket_url(self._url, ticket), ticket["token"]
        protocols = [Subprotocol(SUBPROTOCOL), Subprotocol(AUTH_PREFIX + self._token)]
        self._open = contextlib.ExitStack()
        self._socket: ClientConnection = self._open.enter_context(
            connect_socket(address, subprotocols=protocols, max_size=None, compression=None)
        )
        created = json.loads(self._socket.recv())
        if created["type"] != "session.created":
            self._open.close()
            raise ServerError(f"{created.get('code')}: {created.get('message')}")
        world = created["session"]
        self.id: str = world["id"]
        self.codes: tuple[str, ...] = tuple(key["code"] for key in world["keys"])
        self.has_mouse: bool = world["mouse"]
        self.fps: float = world["fps"]
        self.shape: tuple[int, int, int] = (world["height"], world["width"], 3)
        self.resume_token: str = created["resume_token"]
        self.frame_id: int = world["frames"]
        self.resumed_at: int | None = world.get("resumed_at")

    def step(
        self, held: Held = (), frames: int = 1, mouse: tuple[float, float] | None = None
    ) -> UInt8[np.ndarray, "t h w 3"]:
        """The next frames while these keys are held; the mouse (right and down, in heights of the frame) moves in the first.

        Raises:
          ServerError: a key that the world has not, too many frames at once.
        """
        number = f"{self.frame_id}-{next(self._numbers)}"
        action: dict[str, Any] = {"held": list(held)} | ({} if mouse is None else {"mouse": list(mouse)})
        self._send("step", step_id=number, n=frames, actions=[action])
        made = [self._next_frame(number) for _ in range(frames)]
        self.frame_id = made[-1][0].frame_id + 1
        return np.stack([frame for _, frame in made])

    def reset(self, seed: int | None = None) -> None:
        """The next frame begins anew; without a seed with the same one."""
        self._do("control", op="reset", seed=seed)

    def seek(self, frame_id: int) -> int:
        """Goes back to the newest frame that is kept up to this one, and says which.

        Raises:
          ServerError: none that old is kept.
        """
        return self._do("control", op="seek", frame=frame_id)["restored_frame"]

    def snapshot(self) -> str:
        """Writes the session to the server's disk; `connect(url, snapshot=...)` starts from it.

        Raises:
          ServerError: the server was started without `--snapshots`.
        """
        return self._do("session.snapshot", answer="session.snapshotted")["snapshot"]

    def record(self, path: str | Path, video: bool = True) -> Path:
        """Writes the session's recording so far to a file: `python serve.py WORLD --replay FILE` makes every frame again.

        Args:
          video: With a video, which the server makes in a slot that no player needs; this waits for it.

        Raises:
          ServerError: no slot is free for the video, or the server records nothing.
        """
        return record(self._url, self.id, Path(path), self.resume_token, video)

    def fork(self, at: int | None = None) -> "Session":
        """A session of its own that goes on as this one is, or was at the newest kept frame up to `at`.

        Raises:
          ServerError: every slot is taken, or none that old is kept.
        """
        body = {} if at is None else {"at": at}
        ticket = request("POST", f"{self._url}/v1/sessions/{self.id}/fork", body, self._auth or self._token)
        return _seated(self._url, ticket, self._auth)

    def resume(self, patience_s: float = 30.0) -> int:
        """Comes back after the connection was lost, wherever the session is now; the frame it goes on with.

        Behind a gateway that may be another server than before, which took the session up as it was last written.

        Raises:
          ServerError: the session is gone, or nobody took it up within that time.
        """
        self._open.close()
        until = time.monotonic() + patience_s
        while True:
            ticket = come_back(self._url, self.id, self.resume_token, until - time.monotonic())
            try:
                self._connect(ticket)
                return self.frame_id
            except (OSError, WebSocketException):  # that server is gone as well
                self._open.close()
                if time.monotonic() > until:
                    raise

    def close(self, keep: bool = False) -> None:
        """Ends the session; with `keep` it only hangs up, and the session waits to be resumed."""
        self._open.close()
        if not keep:
            # Only tidying up: a session or a server that is gone already hurts nobody.
            with contextlib.suppress(ServerError, OSError):
                request("DELETE", f"{self._url}/v1/sessions/{self.id}", None, self.resume_token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- inside

    def _send(self, kind: str, **fields: Any) -> None:
        known = {name: value for name, value in fields.items() if value is not None}
        with _open_still():
            self._socket.send(json.dumps({"type": kind, **known}))

    def _do(self, kind: str, answer: str = "ack", **fields: Any) -> dict[str, Any]:
        """Sends an event and waits for the answer to it; where the server asks for patience, sends it again later."""
        while True:
            event = f"event-{next(self._numbers)}"
            self._send(kind, event_id=event, **fields)
            got = self._answer_to(event, answer)
            if got["type"] == answer:
                return got
            if got["code"] not in PATIENCE:
                raise ServerError(f"{got['code']}: {got['message']}")
            time.sleep(1e-3 * got.get("retry_after_ms", 100))

    def _answer_to(self, event: str, kind: str) -> dict[str, Any]:
        while True:
            got = self._receive(event)
            if isinstance(got, dict) and got["type"] in (kind, "error") and got.get("event_id") == event:
                return got

    def _next_frame(self, step_id: str) -> tuple[FramesHeader, UInt8[np.ndarray, "h w 3"]]:
        """The next frame of this step; those of one that was interrupted are passed over."""
        while True:
            got = self._receive()
            if not isinstance(got, dict) and got[0].step_id == step_id:
                return got

    def _receive(self, event: str | None = None) -> Any:
        """A message as a dict, or a header and its frame; an error is raised, unless it is about this event."""
        with _open_still():
            data = self._socket.recv()
        if isinstance(data, str):
            message = json.loads(data)
            if message["type"] == "error" and (event is None or message.get("event_id") != event):
                raise ServerError(f"{message['code']}: {message['message']}")
            return message
        header, payloads = unpack_frames(data)
        assert isinstance(header, FramesHeader) and header.n == 1
        return header, decode(header, payloads[0])


@contextlib.contextmanager
def _open_still() -> Iterator[None]:
    try:
        yield
    except ConnectionClosed as closed:
        raise ServerError(f"the connection is closed ({closed}); resume with resume=(id, resume_token)") from None


def connect(
    url: str,
    *,
    seed: int = 0,
    prompt: int | None = None,
    snapshot: str | None = None,
    resume: tuple[str, str] | None = None,
    auth: str | None = None,
    codec: str = "png",
) -> Session:
    """A stepped session of the server at `url`.

    Args:
      seed: Of its dream.
      prompt: A scene that ships with the world, by number; where it is not given the seed's.
      snapshot: Starts from one that `Session.snapshot` made.
      resume: Comes back to a session, by its id and resume token, instead of opening one.
      auth: The server's secret, if it has one.
      codec: How frames travel: png and raw lose nothing, jpeg is small.

    Raises:
      ServerError: the server is full, knows no such snapshot or session, or refuses the connection.
      OSError: nobody answers there.
    """
    url = url.rstrip("/")
    if resume is not None:
        return Session(url, come_back(url, *resume), auth)
    init = {"seed": seed, "prompt": prompt, "snapshot": snapshot}
    body = {"mode": "stepped", "media": {"codec": codec}, "init": {k: v for k, v in init.items() if v is not None}}
    ticket = request("POST", f"{url}/v1/sessions", body, auth)
    return _seated(url, ticket, auth)


def _seated(url: str, ticket: dict[str, Any], auth: str | None) -> Session:
    """The session of this ticket; a script does not wait in line, perhaps behind a session of its own."""
    if ticket["status"] == "queued":
        request("DELETE", f"{url}/v1/sessions/{ticket['session_id']}", None, ticket["token"])
        raise ServerError("full: all slots are taken; try again later, or start the server with more --slots")
    return Session(url, ticket, auth)
