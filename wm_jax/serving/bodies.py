"""What is asked and answered over HTTP, typed: the bodies beside the messages of protocol.py."""

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from wm_jax.serving.protocol import Codec, ErrorCode, Held, KeyInfo, Message, Mode, Protocol, Queue, Source


class SessionInit(Message):
    """What a session starts from: a seed, and a shipped prompt by number or a first image (base64 of PNG or JPEG); or a
    snapshot that this server has written, and then nothing else counts.
    """

    seed: int = Field(default=0, ge=0, lt=2**32)
    prompt: int | None = Field(default=None, ge=0)
    image: str | None = None
    snapshot: str | None = None


class Media(Message):
    """How frames travel."""

    codec: Codec = "jpeg"
    quality: int | None = Field(default=None, ge=1, le=100)
    max_fps: float | None = Field(default=None, ge=0.01)


class CreateSession(Message):
    """Body of `POST /v1/sessions`; every field may be left out."""

    model: str | None = None
    mode: Mode = "realtime"
    source: Source = "dream"
    init: SessionInit = SessionInit()
    media: Media = Media()
    linger_s: float | None = Field(default=None, ge=0, le=600)


class ForkSession(Message):
    """Body of `POST /v1/sessions/{id}/fork`: a new session that goes on as this one is, or was just before frame `at`.

    Mode and media are those of this session where they are left out.
    """

    at: int | None = Field(default=None, ge=0)
    mode: Mode | None = None
    media: Media | None = None
    linger_s: float | None = Field(default=None, ge=0, le=600)


def _origin(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or text != f"{parts.scheme}://{parts.netloc}".lower():
        raise ValueError(f'{text!r} is no origin; browsers name a page\'s as "https://host[:port]", in small letters')
    return text


Origin = Annotated[str, Field(max_length=256), AfterValidator(_origin)]


class CreateToken(Message):
    """Body of `POST /v1/tokens`; every field may be left out.

    Attributes:
      ttl_s: Seconds in which sessions may be opened with it; those that are open live on.
      models: Worlds it may open; where it is not given those of the server.
      origins: Pages it works from; where they are not given whoever holds it may use it.
      max_sessions: Its sessions at once, on one server.
      max_session_s: Seconds after which each of them ends.
    """

    ttl_s: float = Field(default=300.0, ge=1, le=86_400)
    models: list[Annotated[str, Field(max_length=128)]] | None = Field(default=None, min_length=1, max_length=16)
    origins: list[Origin] | None = Field(default=None, min_length=1, max_length=16)
    max_sessions: int = Field(default=1, ge=1, le=1024)
    max_session_s: float | None = Field(default=None, ge=1, le=604_800)


class Token(Message):
    """Answer of `POST /v1/tokens`: `Authorization: Bearer <token>` opens sessions until `expires_at`, seconds since the epoch."""

    token: str
    expires_at: float


class CreateSpectator(Message):
    """Body of `POST /v1/sessions/{id}/spectators`: the ticket lets one in, and in again, for `ttl_s` seconds."""

    ttl_s: float = Field(default=3600.0, ge=1, le=86_400)


class SpectatorTicket(Message):
    """Answer of `POST` and `GET /v1/sessions/{id}/spectators`: where to watch, with which token; it may be shared."""

    ws_url: str
    token: str
    expires_at: float


class SessionTicket(Message):
    """Answer of `POST /v1/sessions`: where to connect, and with which token; `queue` while it waits for a slot."""

    session_id: str
    status: str
    queue: Queue | None = None
    ws_url: str
    webrtc_url: str | None = None
    token: str
    expires_at: float


class SessionState(Message):
    """Answer of `GET /v1/sessions/{id}`. `kept`: the frames that it can go back to, oldest first."""

    session_id: str
    status: str
    code: ErrorCode | None = None
    mode: Mode
    source: Source
    frames: int
    dropped: int
    seconds: float
    kept: list[int]


class ScriptEvent(Held):
    """What is done from a frame on: keys stay held until a later event, the mouse is moved in this frame alone."""

    frame: int = Field(ge=0)


class RolloutScript(Message):
    """One dream: what it starts from, how many frames it has, and what is done in them, in ascending order."""

    init: SessionInit = SessionInit()
    frames: int = Field(ge=1)
    events: list[ScriptEvent] = Field(default_factory=list[ScriptEvent], max_length=100_000)


class CreateRollout(Message):
    """Body of `POST /v1/rollouts`: scripts that are dreamt beside each other.

    Attributes:
      video: Every recording holds `video.mp4`.
      lossless: Every recording holds `frames.npy`, uint8 `[t h w 3]`.
    """

    model: str | None = None
    scripts: list[RolloutScript] = Field(min_length=1, max_length=256)
    video: bool = True
    lossless: bool = False


class RolloutState(Message):
    """Answer of `POST /v1/rollouts` and `GET /v1/rollouts/{id}`.

    Attributes:
      status: queued, running, done, failed or removed.
      position: 1 is next, while it is queued.
      done: Frames so far, of `frames` in all scripts. A script that gave its slot to a player begins again.
      expires_at: Seconds since the epoch when a finished one is removed; earlier if the server needs the room.
    """

    rollout_id: str
    status: str
    code: ErrorCode | None = None
    message: str | None = None
    position: int | None = None
    scripts: int
    frames: int
    done: int
    expires_at: float | None = None


class Limits(Message):
    """What a client may ask for."""

    slots: int
    slots_free: int
    credit_window: int
    max_step_frames: int
    messages_per_s: float
    max_message_bytes: int


class ModelInfo(Message):
    """Answer of `GET /v1/models/{id}`: a world, and what it listens to."""

    id: str
    fps: float
    width: int
    height: int
    frames_per_step: int = 1
    action_space: dict[str, Any]
    keymap: list[KeyInfo]
    prompts: int
    prompt: bool = False
    image: bool = True
    mouse: bool = False
    fork: bool = False
    stepped: bool = True
    sources: list[Source]
    codecs: list[Codec]
    limits: Limits


class ModelList(Message):
    """Answer of `GET /v1/models`."""

    models: list[ModelInfo]


class Version(Message):
    """Answer of `GET /v1/version`."""

    wm_jax: str
    jax: str
    protocol: Protocol = Protocol()


class Readiness(Message):
    """Answer of `GET /readyz`: 200 when a session would play at once, else 503."""

    ready: bool
    status: str
    stage: str
    progress: float
