"""Every message on the wire, typed: protocol wm.v1, the only file that knows it (the page's half is generated from it).

Text messages are JSON objects with a `type`; binary messages are frames:
`u32 header length, little-endian | header, JSON in UTF-8 | payloads`. The same in MessagePack: wire.py.
"""

import json
import struct
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

MAJOR = 1
MINOR = 0
SUBPROTOCOL = f"wm.v{MAJOR}"
MSGPACK_SUBPROTOCOL = f"{SUBPROTOCOL}.msgpack"
AUTH_PREFIX = "wm.auth."
MAX_MOUSE = 8.0
"""The farthest one message moves the mouse either way, in heights of the frame."""

Codec = Literal["jpeg", "png", "raw", "h264"]
Mode = Literal["realtime", "stepped"]
Source = Literal["dream", "real"]
Role = Literal["player", "spectator"]
EventId = Annotated[str, Field(max_length=64)] | int


class ErrorCode(StrEnum):
    """What went wrong, for programs; these words do not change within a major version."""

    BAD_MESSAGE = "bad_message"
    UNKNOWN_TYPE = "unknown_type"
    UNKNOWN_KEY = "unknown_key"
    WRONG_DIMENSION = "wrong_dimension"
    WRONG_MODE = "wrong_mode"
    UNSUPPORTED = "unsupported"
    STEP_TOO_LONG = "step_too_long"
    STEP_CONFLICT = "step_conflict"
    BUSY = "busy"
    RATE_LIMITED = "rate_limited"
    BAD_ACK = "bad_ack"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN_ORIGIN = "forbidden_origin"
    READ_ONLY = "read_only"
    TOO_MANY_SESSIONS = "too_many_sessions"
    UNKNOWN_SESSION = "unknown_session"
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_SNAPSHOT = "unknown_snapshot"
    UNKNOWN_ROLLOUT = "unknown_rollout"
    WRONG_VERSION = "wrong_version"
    WRONG_IMAGE = "wrong_image"
    FULL = "full"
    DRAINING = "draining"
    TAKEN_OVER = "taken_over"
    IDLE = "idle"
    CLIENT_STALLED = "client_stalled"
    TOO_LARGE = "too_large"
    GAME_FAILED = "game_failed"
    ENGINE_FAILED = "engine_failed"
    SERVER_FAILED = "server_failed"


class CloseCode(IntEnum):
    """Why a WebSocket ends."""

    NORMAL = 1000
    POLICY = 1008
    TOO_BIG = 1009
    SERVER_FAILED = 1011
    GO_AWAY = 1012
    BUSY = 1013
    UNAUTHORIZED = 4401
    FORBIDDEN_ORIGIN = 4403
    UNKNOWN_SESSION = 4404
    IDLE = 4408
    TAKEN_OVER = 4409
    RATE_LIMITED = 4429


class Refusal(Exception):
    """A message, or a client, that is turned away; becomes an `error` message.

    Attributes:
      code: For programs.
      message: For people; names both sides.
      param: The field it is about.
      event_id: The event it is about.
      retry_after_ms: When trying again may help.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        param: str | None = None,
        event_id: "EventId | None" = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.event_id = event_id
        self.retry_after_ms = retry_after_ms


class Message(BaseModel):
    """A message; unknown fields are ignored, so that a newer minor version can talk to an older one."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


# ---- client to server


class Held(Message):
    """What is held: keys by name, or one number a key in the world's own order; and how far the mouse was moved.

    Attributes:
      mouse: `[right, down]` since the last message that told it, in heights of the frame: it counts in one frame and adds
        up until then, while keys stay held.
    """

    held: list[Annotated[str, Field(max_length=64)]] | None = Field(default=None, max_length=256)
    raw: list[float] | None = Field(default=None, max_length=1024)
    mouse: list[float] | None = None
    axes: list[float] | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_list(cls, value: Any) -> Any:
        """A bare list is taken for `held` (of strings) or `raw` (of numbers)."""
        if not isinstance(value, list):
            return value
        return {"held": value} if all(isinstance(item, str) for item in value) else {"raw": value}


class Action(Held):
    """Keys held from now on, of which the newest win, and movements of the mouse, which add up."""

    type: Literal["action"]
    event_id: EventId | None = None
    seq: int | None = None
    at: Literal["next"] | Annotated[int, Field(ge=0)] = "next"
    client_ts: float | None = None


class Control(Message):
    """Pause, resume, reset or seek: `{"op": "reset", "seed": 7}`, or in the short form `{"reset": {"seed": 7}}`."""

    type: Literal["control"]
    event_id: EventId | None = None
    op: Literal["pause", "resume", "reset", "seek"] = Field(validation_alias=AliasChoices("op", "action", "command"))
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    frame: int | None = Field(default=None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for op in ("pause", "resume", "reset", "seek"):
            given = value.get(op)
            if given is None or given is False:
                continue
            return {**value, "op": op, **(given if isinstance(given, dict) else {})}
        return value


class Step(Message):
    """Stepped mode: n frames, under one action each; the keys of the last one hold for the rest."""

    type: Literal["step"]
    step_id: EventId
    actions: list[Held] = Field(default_factory=list[Held])
    n: int | None = Field(default=None, ge=1)
    event_id: EventId | None = None
    client_ts: float | None = None


class SessionUpdate(Message):
    """Change a running session: play the dream or the real game."""

    type: Literal["session.update"]
    event_id: EventId | None = None
    source: Source | None = None


class FrameAck(Message):
    """The client has shown every frame message up to `seq`: its credit returns."""

    type: Literal["frame.ack"]
    seq: int = Field(ge=0)
    render_ts: float | None = None


class Ping(Message):
    """A question for the other clock; answered by `pong` with the same `event_id` and `client_ts`."""

    type: Literal["ping"]
    event_id: EventId | None = None
    client_ts: float | None = None


class Pong(Message):
    """The answer to `ping`."""

    type: Literal["pong"]
    event_id: EventId | None = None
    client_ts: float | None = None
    server_ts: float | None = None


class NotOffered(Message):
    """Part of wm.v1 that this server does not offer; see the session's capabilities."""

    type: Literal["prompt.set", "image.set", "session.fork"]
    event_id: EventId | None = None


class Snapshot(Message):
    """Write the session to the server's disk as it is; answered by `session.snapshotted`."""

    type: Literal["session.snapshot"]
    event_id: EventId | None = None


ClientMessage = Annotated[
    Action | Control | Step | SessionUpdate | FrameAck | Ping | Pong | Snapshot | NotOffered,
    Field(discriminator="type"),
]
_CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage)

# ---- server to client


class Protocol(Message):
    """The version that is spoken."""

    major: int = MAJOR
    minor: int = MINOR


class KeyInfo(Message):
    """One key of the world: its `KeyboardEvent.code` and what it does."""

    code: str
    label: str


class Capabilities(Message):
    """What this server can do for a session; `control` seeks to one of the newest `kept_frames` kept frames, about every `kept_every`-th.

    Some that are older lie on the server's disk: `GET /v1/sessions/{id}` lists all.
    """

    stepped: bool = True
    fork: bool = True
    snapshot: bool = False
    kept_frames: int = 0
    kept_every: int = 1
    prompt: bool = False
    image: bool = True
    mouse: bool = False
    sources: list[Source]
    codecs: list[Codec]
    credit_window: int
    max_step_frames: int
    messages_per_s: float
    max_message_bytes: int


class SessionInfo(Message):
    """One player's session.

    Attributes:
      frames: Index of its next frame.
      resumed_at: The frame at which it went on from the disk, if the server was started anew since it began: whatever was
        shown from that index on before is forgotten, and other frames get those numbers.
    """

    id: str
    model: str
    mode: Mode
    source: Source
    status: str
    fps: float
    width: int
    height: int
    frames: int = 0
    resumed_at: int | None = None
    seed: int
    codec: Codec
    keys: list[KeyInfo]
    mouse: bool = False


class SessionCreated(Message):
    """Always the first message: version, session, and what can be asked for.

    Attributes:
      role: A spectator is shown what the player sees, and may send `ping`, `pong` and `frame.ack` alone.
      resume_token: Lets the player come back; a spectator gets none.
    """

    type: Literal["session.created"] = "session.created"
    protocol: Protocol = Protocol()
    session: SessionInfo
    capabilities: Capabilities
    role: Role = "player"
    resume_token: str | None = None


class Status(Message):
    """Where the session stands, while it starts how far that is, and how many frames a second there are now: fewer than in
    `session.created` where the device cannot keep up.
    """

    type: Literal["status"] = "status"
    status: str
    stage: str
    progress: float
    fps: float | None = None
    code: ErrorCode | None = None


class Queue(Message):
    """The session waits for a slot: `position` 1 is next, of `size`; `eta_s` is a guess from the sessions that ended."""

    type: Literal["queue"] = "queue"
    position: int
    size: int
    eta_s: float | None = None


class Ack(Message):
    """An event has been applied: it first counts in this frame. After a seek that frame follows from the restored one."""

    type: Literal["ack"] = "ack"
    event_id: EventId
    applied_at_frame: int
    restored_frame: int | None = None


class Error(Message):
    """Something was refused; `fatal` means that the connection ends."""

    type: Literal["error"] = "error"
    code: ErrorCode
    message: str
    event_id: EventId | None = None
    param: str | None = None
    fatal: bool = False
    retry_after_ms: int | None = None


class GoAway(Message):
    """The server stops soon; whether the session can be resumed where it is started again, with the same token.

    Attributes:
      resume_url: Other servers take the session up: `POST` there, the resume token as bearer, tells where to connect.
    """

    type: Literal["session.go_away"] = "session.go_away"
    deadline_ms: int
    reason: str
    resumable: bool = False
    resume_url: str | None = None


class SessionEnded(Message):
    """The last message of a session; one that is `resumable` only sleeps."""

    type: Literal["session.ended"] = "session.ended"
    reason: str
    frames: int
    seconds: float
    resumable: bool = False


class Snapshotted(Message):
    """The session is on the disk: `snapshot` starts any number of others, by `init.snapshot`, until it expires.

    Also the answer of `POST /v1/sessions/{id}/snapshot`.

    Attributes:
      frame_id: The first frame they will make.
      expires_at: Seconds since the epoch; earlier if the server needs the room.
    """

    type: Literal["session.snapshotted"] = "session.snapshotted"
    event_id: EventId | None = None
    snapshot: str
    frame_id: int
    bytes: int
    expires_at: float


ServerMessage = SessionCreated | Status | Queue | Ack | Error | GoAway | SessionEnded | Snapshotted | Ping | Pong


class FrameTimes(Message):
    """Where the time of a frame went, in milliseconds; decode is part of step. `host` is this process' own share."""

    queue: float = 0.0
    step: float = 0.0
    decode: float = 0.0
    encode: float = 0.0
    host: float = 0.0


class FramesHeader(Message):
    """The header of a binary message: n frames, the first with index `frame_id`.

    Attributes:
      seq: Number of this message; what `frame.ack` names.
      w: Width that is to be seen; h264 pictures have even sides, and what was added is to be cut off.
      h: Height that is to be seen.
      key: Whether it can be understood without the frames before.
      config: The codec of a key frame of h264 as WebCodecs names it: "avc1.42c01e".
      pts_ms: When the first frame is due on the session's media clock.
      last_event_id: The newest event that these frames obey.
      last_client_ts: That event's own clock, echoed: now minus this is the key-to-pixel latency.
      dropped: Frames dropped so far because the client did not keep up.
      step_id: In stepped mode, the step that asked for them.
    """

    type: Literal["frames"] = "frames"
    seq: int
    frame_id: int
    n: int
    codec: Codec
    w: int
    h: int
    lengths: list[int]
    key: bool = True
    config: str | None = None
    pts_ms: float
    last_event_id: EventId | None = None
    last_client_ts: float | None = None
    dropped: int = 0
    t: FrameTimes = FrameTimes()
    step_id: EventId | None = None


def parse_client_message(text: str) -> ClientMessage:
    """The typed message, or a typed refusal.

    Raises:
      Refusal: the text is no JSON object, has an unknown type, or a field is missing or out of range.
    """
    try:
        return _CLIENT.validate_json(text)
    except ValidationError as error:
        raise _refusal(text, error) from None


def _refusal(text: str, error: ValidationError) -> Refusal:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    code = ErrorCode.UNKNOWN_TYPE if first["type"] == "union_tag_invalid" else ErrorCode.BAD_MESSAGE
    return Refusal(code, f"{where or 'message'}: {first['msg']}"[:400], param=where or None, event_id=_event_id(text))


def _event_id(text: str) -> "EventId | None":
    """The event that a broken message speaks of, if that much can be read."""
    if not text.lstrip().startswith("{"):
        return None  # only an object names one, and garbage is not worth the reading
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # nested too deeply
        return None
    found = value.get("event_id", value.get("step_id")) if isinstance(value, dict) else None
    if isinstance(found, bool) or not isinstance(found, (str, int)):
        return None
    if isinstance(found, str):
        # json reads half of a surrogate pair, which no answer could carry.
        return found.encode(errors="replace").decode()[:64]
    return found


def dump(message: Message) -> str:
    """The message as it travels; absent fields are left out."""
    return message.model_dump_json(exclude_none=True)


def pack_frames(header: FramesHeader, payloads: list[bytes]) -> bytes:
    """The binary message of these frames."""
    head = dump(header).encode()
    return b"".join((struct.pack("<I", len(head)), head, *payloads))


def unpack_frames(data: bytes) -> tuple[FramesHeader, list[bytes]]:
    """The header and the payloads of a binary message.

    Raises:
      ValueError: the bytes are no whole frames message.
    """
    if len(data) < 4:
        raise ValueError(f"a frames message of {len(data)} bytes has no room for its 4-byte header length")
    (length,) = struct.unpack_from("<I", data)
    if 4 + length > len(data):
        raise ValueError(f"the header claims {length} bytes, the message has {len(data) - 4} after its length")
    header = FramesHeader.model_validate_json(data[4 : 4 + length])
    payloads: list[bytes] = []
    start = 4 + length
    for size in header.lengths:
        payloads.append(data[start : start + size])
        start += size
    if start != len(data):
        raise ValueError(f"the header speaks of {start} bytes, the message has {len(data)}")
    return header, payloads
