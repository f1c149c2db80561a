"""What the clients say, hear and remember, without a socket: each call is a generator of deeds, which `Session` does and `Client` awaits."""

import base64
import contextlib
import dataclasses
import functools
import itertools
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.typing import Subprotocol

from wm_jax.rest import AGAIN_S, ServerError, come_back, request, socket_url
from wm_jax.serving.codec import decode_image, encode
from wm_jax.serving.protocol import AUTH_PREFIX, FramesHeader, Mode
from wm_jax.serving.video import H264Decoder
from wm_jax.serving.wire import JsonWire, MsgpackWire, Wire

PATIENCE = ("rate_limited", "busy")
"""Refusals that only ask to come again later."""

AT_ONCE_S = 1e-3
"""Whatever has come by then was there already: an event loop needs a turn to fetch it."""

HELD_BACK_S = 1.0
"""How long a frame may take that is certain to come, unless the world stands still."""

Held = Sequence[str]
"""Names of keys: `KeyboardEvent.code`, as `codes` lists them."""

WireName = Literal["json", "msgpack"]
Shown = tuple[FramesHeader, UInt8[np.ndarray, "h w 3"]]
Heard = dict[str, Any] | tuple[FramesHeader, list[UInt8[np.ndarray, "h w 3"]]]


class ConnectionLost(ServerError):
    """The connection is closed; the session may be resumed."""


# ---- deeds: all that a client does outside itself


@dataclasses.dataclass(frozen=True)
class Say:
    """Send this."""

    data: str | bytes


@dataclasses.dataclass(frozen=True)
class Listen:
    """What comes next; None if nothing did within `patience_s`."""

    patience_s: float | None = None


@dataclasses.dataclass(frozen=True)
class Wait:
    """Let so much time pass."""

    seconds: float


@dataclasses.dataclass(frozen=True)
class Call:
    """What this function returns, which may take a while."""

    function: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Dial:
    """Open the socket."""

    address: str
    protocols: list[Subprotocol]


@dataclasses.dataclass(frozen=True)
class HangUp:
    """Close the socket, if there is one."""


Deed = Say | Listen | Wait | Call | Dial | HangUp
T = TypeVar("T")
Talk = Generator[Deed, Any, T]
"""Deeds in order, each answered by what came of it or by the error it raised; ends with a result."""


@dataclasses.dataclass
class Step:
    """A step that was asked for, and its frames so far.

    Attributes:
      first: Index of its first frame.
      begins: The frame with which the server begins what goes by this `step_id`; after `first` where another server went on
        in its middle.
      is_asked: Whether it was sent over this connection.
    """

    step_id: str
    held: tuple[str, ...]
    n: int
    mouse: tuple[float, float] | None
    first: int
    begins: int
    frames: list[UInt8[np.ndarray, "h w 3"]] = dataclasses.field(default_factory=list[np.ndarray])
    is_asked: bool = False

    @property
    def message(self) -> dict[str, Any]:
        """The same for the same `step_id`; the mouse moves in the first frame alone."""
        is_whole = self.begins == self.first
        action = {"held": list(self.held), **({"mouse": list(self.mouse)} if self.mouse and is_whole else {})}
        return {"step_id": self.step_id, "n": self.first + self.n - self.begins, "actions": [action]}

    def confirm(self, frame_id: int) -> None:
        """The server says where it begins."""
        if not self.frames:
            self.first = self.begins = frame_id
        assert frame_id == self.begins, f"step {self.step_id} begins with frame {self.begins}, then with {frame_id}"

    def take(self, header: FramesHeader, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        """A frame, if it is the next of this step: one that is sent again was taken before, or comes once more in order."""
        if header.step_id == self.step_id and header.frame_id == self.first + len(self.frames) < self.first + self.n:
            self.frames.append(frame)

    def after_resume(self, frame_id: int, is_elsewhere: bool, step_id: str) -> "Step | None":
        """What is to be asked for now that the session goes on with this frame; None: frames of it were lost.

        Args:
          is_elsewhere: On a server that knows of no step: what it made before is on the disk or gone.
          step_id: For what it has to make anew.
        """
        if not is_elsewhere or frame_id == self.begins:
            return dataclasses.replace(self, is_asked=False)
        if not self.first <= frame_id <= self.first + len(self.frames):
            return None
        return dataclasses.replace(self, step_id=step_id, begins=frame_id, is_asked=False)


class Dialogue:
    """One session as its client knows it, over any connection.

    Attributes:
      created: The newest first message, `session.created`.
      id: Its name on the server.
      mode: "stepped" or "realtime".
      codes: The keys of the world.
      has_mouse: Whether the world listens to a mouse.
      fps: Frames a second at which it is played.
      shape: Of a frame, `(h, w, 3)`.
      resume_token: With it `connect(url, resume=(id, token))` comes back, also after the server was started anew.
      frame_id: Index of the next frame that the caller is given.
      resumed_at: The frame at which it went on from the disk, if another server took it up; frames from there on that were
        made before are forgotten.
    """

    def __init__(self, url: str, auth: str | None, wire: Wire) -> None:
        self.wire = wire
        self._url, self._auth = url.rstrip("/"), auth
        # Of this object alone: a step that another one left unfinished is none of its own.
        self._prefix, self._numbers = secrets.token_hex(4), itertools.count()
        self._unfinished: Step | None = None
        self._restarted_at = -1
        self._video: H264Decoder | None = None
        self._is_closed = True

    # ---- coming and going

    def _opening(self, body: dict[str, Any], may_wait: bool = False) -> Talk[None]:
        ticket = yield Call(functools.partial(request, "POST", f"{self._url}/v1/sessions", body, self._auth))
        yield from self._beginning(ticket, may_wait)

    def _returning(self, session_id: str, resume_token: str) -> Talk[None]:
        yield from self._entering((yield Call(functools.partial(come_back, self._url, session_id, resume_token))))

    def _beginning(self, ticket: dict[str, Any], may_wait: bool = False) -> Talk[None]:
        """Connects a new session, which ends if that fails.

        Raises:
          ServerError: no slot is free, and it may not wait in line for one, perhaps behind a session of its own.
        """
        try:
            if ticket["status"] == "queued" and not may_wait:
                raise ServerError("full: all slots are taken; try again later, or start the server with more --slots")
            yield from self._entering(ticket)
        except BaseException:
            yield from self._ending(ticket["session_id"], ticket["token"])
            raise

    def _entering(self, ticket: dict[str, Any]) -> Talk[None]:
        self._token: str = ticket["token"]
        protocols = [Subprotocol(self.wire.subprotocol), Subprotocol(AUTH_PREFIX + self._token)]
        yield Dial(socket_url(self._url, ticket), protocols)
        try:
            created = self.wire.hear((yield Listen()))
            assert isinstance(created, dict), "frames before session.created"
            if created["type"] != "session.created":
                raise ServerError(f"{created.get('code')}: {created.get('message')}")
        except BaseException:
            yield HangUp()
            raise
        self._know(created)
        self._is_closed = False

    def _know(self, created: dict[str, Any]) -> None:
        world = created["session"]
        self.created = created
        self.id: str = world["id"]
        self.mode: Mode = world["mode"]
        self.codes: tuple[str, ...] = tuple(key["code"] for key in world["keys"])
        self.has_mouse: bool = world["mouse"]
        self.fps: float = world["fps"]
        self.shape: tuple[int, int, int] = (world["height"], world["width"], 3)
        self.resume_token: str = created["resume_token"]
        self.resumed_at: int | None = world.get("resumed_at")
        self._video = None  # a stream begins anew with its connection
        frame_id: int = world["frames"]
        is_elsewhere = self.resumed_at == frame_id
        if is_elsewhere and frame_id <= self._restarted_at:
            self._unfinished = None  # that server may know nothing of the new beginning
        if self._unfinished is not None:
            self._unfinished = self._unfinished.after_resume(frame_id, is_elsewhere, self._new_id())
        self.frame_id = frame_id if self._unfinished is None else self._unfinished.first

    def _resuming(self, patience_s: float) -> Talk[None]:
        yield HangUp()
        until = time.monotonic() + patience_s
        while True:
            left = until - time.monotonic()
            ticket = yield Call(functools.partial(come_back, self._url, self.id, self.resume_token, left))
            try:
                return (yield from self._entering(ticket))
            except (OSError, WebSocketException):  # that server is gone as well
                yield HangUp()
                if time.monotonic() > until:
                    raise
                yield Wait(AGAIN_S)

    def _forking(self, at: int | None) -> Talk[dict[str, Any]]:
        where = f"{self._url}/v1/sessions/{self.id}/fork"
        body = {} if at is None else {"at": at}
        return (yield Call(functools.partial(request, "POST", where, body, self._auth or self._token)))

    def _looking_back(self) -> Talk[list[int]]:
        where = f"{self._url}/v1/sessions/{self.id}"
        return (yield Call(functools.partial(request, "GET", where, None, self._auth or self._token)))["kept"]

    def _closing(self, keep: bool) -> Talk[None]:
        self._is_closed = True
        try:
            yield HangUp()
        finally:
            if not keep:
                # Good as long as the session is, which the ticket's token and `auth` may not be.
                yield from self._ending(self.id, self.resume_token)

    def _leaving(self) -> Talk[None]:
        """Ends the session with its block, unless that was done in it, or only hung up."""
        if not self._is_closed:
            yield from self._closing(keep=False)

    def _ending(self, session_id: str, token: str) -> Talk[None]:
        """Only tidying up: a session or a server that is gone already must not hide why it was left."""
        with contextlib.suppress(ServerError, OSError):
            yield Call(functools.partial(request, "DELETE", f"{self._url}/v1/sessions/{session_id}", None, token))

    # ---- what is asked of the world

    def _stepping(
        self, held: Held, frames: int, mouse: tuple[float, float] | None
    ) -> Talk[UInt8[np.ndarray, "t h w 3"]]:
        step = Step(self._new_id(), tuple(held), frames, mouse, self.frame_id, self.frame_id)
        left = self._unfinished
        if left is not None and (left.held, left.n, left.mouse) != (step.held, step.n, step.mouse):
            raise ServerError(
                f"unfinished: frames {left.first} to {left.first + left.n - 1}, asked for before, have not all come; "
                "finish() gives them, and so does the same step again; reset() and seek() give them up"
            )
        self._unfinished = left or step
        return (yield from self._finishing())

    def _finishing(self) -> Talk[UInt8[np.ndarray, "t h w 3"]]:
        """All frames of the unfinished step; asks for it where this connection has not, and again where it was too early."""
        step = self._unfinished
        if step is None:
            raise ServerError("finished: every step has been given whole; finish() is for one that was interrupted")
        while len(step.frames) < step.n:
            if not step.is_asked:
                yield from self._saying("step", **step.message)
                step.is_asked = True
            try:
                heard = yield from self._listening(step.step_id)
            except BaseException:  # by the keyboard: a frame that was received may not have come as far as the step
                step.is_asked = False
                raise
            if isinstance(heard, dict) and heard.get("event_id") == step.step_id:
                yield from self._answered(step, heard)
        self._unfinished = None
        self.frame_id = step.first + step.n
        return np.stack(step.frames)

    def _answered(self, step: Step, heard: dict[str, Any]) -> Talk[None]:
        """The server's word on the unfinished step."""
        if heard["type"] == "ack":
            step.confirm(heard["applied_at_frame"])
        elif heard["code"] in PATIENCE:
            step.is_asked = False
            yield _later(heard)
        else:
            self._unfinished = None
            raise _error(heard)

    def _acting(self, held: Held, mouse: tuple[float, float] | None) -> Talk[str]:
        self._check_mode("realtime", "act")
        event = self._new_id()
        yield from self._saying("action", event_id=event, held=list(held), mouse=None if mouse is None else list(mouse))
        return event

    def _seeing(self) -> Talk[Shown]:
        """The newest frame: the next that comes, and whatever came after it by now."""
        self._check_mode("realtime", "frame")
        newest, came = None, 0
        while True:
            heard = yield from self._listening(patience_s=self._patience_s(came))
            if heard is None and newest is not None:
                return newest
            if isinstance(heard, tuple):
                *_, newest = singles(*heard)
                came += 1

    def _patience_s(self, came: int) -> float | None:
        """How long to wait for a newer frame after so many."""
        # With so many on their way the server waited for this client: what it made meanwhile follows the acknowledgement.
        was_held_back = came == max(2, self.created["capabilities"]["credit_window"])
        return None if came == 0 else HELD_BACK_S if was_held_back else AT_ONCE_S

    def _restarting(self, op: str, **fields: Any) -> Talk[dict[str, Any]]:
        """Begins anew or goes back, before the next frame; what was not finished is given up."""
        ack = yield from self._asking("control", op=op, **fields)
        self._unfinished = None
        self.frame_id = self._restarted_at = ack["applied_at_frame"]
        return ack

    def _asking(self, kind: str, answer: str = "ack", **fields: Any) -> Talk[dict[str, Any]]:
        """Sends an event and waits for the answer to it; where the server asks for patience, sends it again later."""
        while True:
            event = self._new_id()
            yield from self._saying(kind, event_id=event, **fields)
            got = yield from self._answer_to(event, answer)
            if got["type"] == answer:
                return got
            if got["code"] not in PATIENCE:
                raise _error(got)
            yield _later(got)

    def _answer_to(self, event: str, kind: str) -> Talk[dict[str, Any]]:
        while True:
            got = yield from self._listening(event)
            if isinstance(got, dict) and got["type"] in (kind, "error") and got.get("event_id") == event:
                return got

    # ---- one message

    def _saying(self, kind: str, **fields: Any) -> Talk[None]:
        known = {name: value for name, value in fields.items() if value is not None}
        with _open_still():
            yield Say(self.wire.say({"type": kind, **known}))

    def _listening(self, event: str | None = None, patience_s: float | None = None) -> Talk[Heard | None]:
        """A message, or frames, decoded and acknowledged; an error is raised, unless it is about this event."""
        with _open_still():
            data = yield Listen(patience_s)
        if data is None:
            return None
        heard = self.wire.hear(data)
        if isinstance(heard, dict):
            if heard["type"] == "error" and (event is None or heard.get("event_id") != event):
                raise _error(heard)
            return heard
        header, payloads = heard
        if self.mode == "realtime":  # a stepped session sends all there is, whatever was shown
            yield from self._saying("frame.ack", seq=header.seq)
            self.frame_id = header.frame_id + header.n
        frames = [self._decode(header, payload) for payload in payloads]
        if self._unfinished is not None:
            for shown in singles(header, frames):
                self._unfinished.take(*shown)
        return header, frames

    def _check_mode(self, wanted: Mode, call: str) -> None:
        if self.mode != wanted:
            raise ServerError(
                f'wrong_mode: {call}() is for {wanted} sessions, this one is {self.mode}; connect with mode="{wanted}"'
            )

    def _new_id(self) -> str:
        return f"{self._prefix}-{next(self._numbers)}"

    def _decode(self, header: FramesHeader, payload: bytes) -> UInt8[np.ndarray, "h w 3"]:
        if header.codec == "h264":
            self._video = self._video or H264Decoder()
            return self._video.decode(payload, header.h, header.w)
        if header.codec == "raw":
            return np.frombuffer(payload, np.uint8).reshape(header.h, header.w, 3)
        return (
            simplejpeg.decode_jpeg(payload) if header.codec == "jpeg" else decode_image(payload, (header.h, header.w))
        )


def singles(header: FramesHeader, frames: list[UInt8[np.ndarray, "h w 3"]]) -> Iterator[Shown]:
    """The frames of one message, each with a header of its own."""
    for index, frame in enumerate(frames):
        yield header.model_copy(update={"frame_id": header.frame_id + index}), frame


def session_body(
    mode: Mode,
    codec: str,
    seed: int,
    prompt: int | None,
    image: UInt8[np.ndarray, "h w 3"] | None,
    snapshot: str | None,
) -> dict[str, Any]:
    """Body of `POST /v1/sessions`."""
    picture = None if image is None else base64.b64encode(encode(np.asarray(image), "png", 100)).decode()
    init = {"seed": seed, "prompt": prompt, "image": picture, "snapshot": snapshot}
    return {"mode": mode, "media": {"codec": codec}, "init": {k: v for k, v in init.items() if v is not None}}


def wire_named(name: WireName) -> Wire:
    """How messages travel."""
    return MsgpackWire() if name == "msgpack" else JsonWire()


def _later(said: dict[str, Any]) -> Wait:
    return Wait(1e-3 * said.get("retry_after_ms", 100))


def _error(said: dict[str, Any]) -> ServerError:
    return ServerError(f"{said['code']}: {said['message']}")


@contextlib.contextmanager
def _open_still() -> Iterator[None]:
    try:
        yield
    except ConnectionClosed as closed:
        text = f"the connection is closed ({closed}); resume with resume=(id, resume_token)"
        raise ConnectionLost(text) from closed
