"""A session over WebRTC: frames as a video track, messages over data channels. Needs the extra `rtc` (aiortc).

WHEP-shaped: `POST /v1/sessions/{id}/webrtc` takes an SDP offer with all its candidates and answers with all of ours; `DELETE`
at the `Location` of the answer hangs up. The client opens two data channels: `control` (ordered) carries the JSON messages of
wm.v1 both ways and the header of every frame, `input` (unordered, sent once) only actions. The picture is encoded by aiortc.
"""

import asyncio
import contextlib
import functools
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from aiortc import (
    InvalidStateError,
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from jaxtyping import UInt8
from structlog.contextvars import bound_contextvars

from wm_jax.serving.config import parse_ice_server
from wm_jax.serving.limits import TokenBucket
from wm_jax.serving.lobby import Place
from wm_jax.serving.outbox import ClientStalled, Outbox, Sending
from wm_jax.serving.protocol import (
    Action,
    ClientMessage,
    CloseCode,
    ErrorCode,
    FrameAck,
    Message,
    Refusal,
    Snapshotted,
    dump,
    parse_client_message,
)
from wm_jax.serving.service import Service
from wm_jax.serving.session import Session
from wm_jax.serving.transport import Eviction, Gone, Said
from wm_jax.serving.video import video_frame
from wm_jax.serving.websocket import Connection, error_message

log = logging.getLogger(__name__)

CLOCK = 90_000
"""Ticks of RTP's clock for video in a second."""

CONNECT_S = 30.0
"""A client that has answered nothing so long after its offer is forgotten."""

OFFERS_PER_S = 1.0
MAX_OFFERS_AT_ONCE = 4
MAX_CANDIDATES = 64
RECEIVING = ("sendrecv", "recvonly")
DIRECTIONS = (*RECEIVING, "sendonly", "inactive")
MAX_UNREAD = 256
"""Messages that may wait to be read; they only pile up within one turn of the event loop."""

MAX_UNSENT_BYTES = 262_144
FAREWELL_S = 1.0
"""A client gets so long to receive the last message."""


class _Shown(NamedTuple):
    pixels: UInt8[np.ndarray, "h w 3"]
    pts_ms: float
    seq: int


class FrameTrack(MediaStreamTrack):
    """The session's frames on its own media clock; at most one waits until the encoder is free, and a newer one replaces it."""

    kind = "video"

    def __init__(self, on_taken: Callable[[int], object]) -> None:
        super().__init__()
        self._on_taken = on_taken
        self._next: asyncio.Queue[_Shown | None] = asyncio.Queue(1)

    def show(self, pixels: UInt8[np.ndarray, "h w 3"], pts_ms: float, seq: int) -> None:
        self._replace(_Shown(pixels, pts_ms, seq))

    async def recv(self) -> Any:
        """The next frame, for aiortc's encoder.

        Raises:
          MediaStreamError: the track has ended.
        """
        shown = await self._next.get() if self.readyState == "live" else None
        if shown is None:
            raise MediaStreamError
        self._on_taken(shown.seq)
        frame = await asyncio.to_thread(video_frame, shown.pixels)
        frame.pts = round(1e-3 * CLOCK * shown.pts_ms)
        frame.time_base = Fraction(1, CLOCK)
        return frame

    def stop(self) -> None:
        super().stop()
        self._replace(None)

    def _replace(self, shown: _Shown | None) -> None:
        if self._next.full():
            self._next.get_nowait()
        self._next.put_nowait(shown)


class RtcTransport:
    """Data channels and a track, as a Connection sees them.

    One frame is on its way at a time: the next one leaves the outbox when the encoder has taken it, so a frame that comes
    too early for the encoder is replaced by a newer one there, and counted as dropped.
    """

    credit_window: int | None = 1

    def __init__(self, hang_up: Callable[[], Awaitable[None]], max_message_bytes: int) -> None:
        self.track = FrameTrack(self._is_taken)
        self._hang_up = hang_up
        self._max_message_bytes = max_message_bytes
        self._control: RTCDataChannel | None = None
        self._input: RTCDataChannel | None = None
        self._outbox: Outbox | None = None
        self._heard: asyncio.Queue[Said | None] = asyncio.Queue()
        self._is_flooded = False
        self._is_closed = asyncio.Event()
        self._newest = -1

    # ---- the peer's side

    def use_control(self, channel: RTCDataChannel) -> None:
        self._control = channel
        channel.on("message", functools.partial(self._hear, _read_control))
        channel.on("close", self.lose)
        channel.on("close", self._is_closed.set)

    def use_input(self, channel: RTCDataChannel) -> None:
        if self._input is not None:
            channel.close()
            return
        self._input = channel
        channel.on("message", functools.partial(self._hear, self._read_input))

    def lose(self) -> None:
        """The client is gone."""
        self._heard.put_nowait(None)

    def _hear(self, read: Callable[[str], ClientMessage | None], data: str | bytes) -> None:
        if self._heard.qsize() >= MAX_UNREAD:
            self._is_flooded = True
        else:
            self._heard.put_nowait(functools.partial(self._read, read, data))

    def _read(self, read: Callable[[str], ClientMessage | None], data: str | bytes) -> ClientMessage | None:
        if isinstance(data, bytes):
            raise Refusal(ErrorCode.BAD_MESSAGE, "messages are JSON text, over a data channel too; this one is binary")
        if len(data) > self._max_message_bytes:
            text = f"a message of {len(data)} characters, this server reads {self._max_message_bytes} bytes"
            raise Eviction(CloseCode.TOO_BIG, ErrorCode.TOO_LARGE, text)
        return read(data)

    def _read_input(self, data: str) -> ClientMessage | None:
        """An action; None: a newer one came first."""
        message = parse_client_message(data)
        if not isinstance(message, Action):
            text = f"the channel `input` is for actions; {message.type} belongs into `control`, where nothing is lost"
            event_id = None if isinstance(message, FrameAck) else message.event_id
            raise Refusal(ErrorCode.UNSUPPORTED, text, param="type", event_id=event_id)
        if message.seq is not None:
            if message.seq <= self._newest:
                return None
            self._newest = message.seq
        return message

    def _is_taken(self, seq: int) -> None:
        assert self._outbox is not None
        self._outbox.acknowledge(seq)

    # ---- the connection's side

    def begin(self, session: Session) -> bool:
        self._outbox = session.outbox
        return True

    async def receive(self) -> Said:
        said = await self._heard.get()
        if self._is_flooded:
            text = f"more than {MAX_UNREAD} messages at once"
            raise Eviction(CloseCode.RATE_LIMITED, ErrorCode.RATE_LIMITED, text)
        if said is None:
            raise Gone
        return said

    async def send(self, item: Message | Sending) -> None:
        if isinstance(item, Message):
            self._say(item)
            return
        header, payload = item
        if isinstance(payload, bytes):  # encoded for the WebSocket that played this session until now
            self._is_taken(header.seq)
            return
        self._say(header.model_copy(update={"codec": "raw", "lengths": []}))
        self.track.show(payload, header.pts_ms, header.seq)

    async def close(self, code: CloseCode, reason: str) -> None:
        """There are no close codes here: the last message says why. What was sent before it still arrives."""
        if self._control is not None and self._is_open:
            self._control.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_closed.wait(), FAREWELL_S)
        await self._hang_up()

    @property
    def _is_open(self) -> bool:
        return self._control is not None and self._control.readyState == "open"

    def _say(self, message: Message) -> None:
        if self._control is None or not self._is_open:
            raise Gone
        if self._control.bufferedAmount > MAX_UNSENT_BYTES:
            raise ClientStalled
        try:
            self._control.send(dump(message))
        except (ValueError, InvalidStateError) as error:  # longer than the client's `max-message-size`, or just closed
            log.info("a client over WebRTC cannot be told %s: %s", type(message).__name__, error)
            raise Gone from None


class Peer:
    """One client that has made an offer.

    Attributes:
      id: Unguessable; part of the `Location` at which it hangs up.
    """

    def __init__(self, service: Service, place: Place, forget: Callable[["Peer"], None]) -> None:
        self.id = secrets.token_urlsafe(16)
        self.place = place
        self.is_playing = False
        self._service = service
        self._forget = forget
        # Given even when empty: what aiortc does without is to ask a public server for our address.
        self._connection = RTCPeerConnection(RTCConfiguration(ice_servers(service.config.ice_servers)))
        self._transport = RtcTransport(self.hang_up, service.config.max_message_bytes)
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._is_answering = asyncio.Lock()  # what is closed while it still begins would begin all the same
        self._connection.on("datachannel", self._use)
        self._connection.on("connectionstatechange", self._look)

    async def answer(self, offer: str) -> str:
        """The SDP answer, with all our candidates in it.

        Raises:
          Refusal: aiortc cannot read the offer.
        """
        self._patience = asyncio.get_running_loop().call_later(CONNECT_S, self._give_up)
        try:
            async with self._is_answering:
                await self._connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
                self._connection.addTrack(self._transport.track)
                await self._connection.setLocalDescription(await self._connection.createAnswer())
        except Exception as error:  # its parser raises whatever a stranger's text makes it raise
            log.info("an offer could not be answered", exc_info=True)
            await self.hang_up()
            text = f"the offer cannot be answered: {type(error).__name__}: {error}"
            raise Refusal(ErrorCode.BAD_MESSAGE, text[:400], param="sdp") from None
        return self._connection.localDescription.sdp

    async def hang_up(self) -> None:
        """Closes everything; nothing of it is left afterwards."""
        if self._patience is not None:
            self._patience.cancel()
        self._transport.lose()
        self._transport.track.stop()
        async with self._is_answering:
            await self._connection.close()
        self._forget(self)

    def _give_up(self) -> None:
        self._closing = asyncio.ensure_future(self.hang_up())

    def _look(self) -> None:
        if self._connection.connectionState in ("failed", "closed"):
            self._transport.lose()
            if self._task is None:
                self._give_up()

    def _use(self, channel: RTCDataChannel) -> None:
        if channel.label == "input":
            self._transport.use_input(channel)
        elif channel.label == "control" and self._task is None:
            assert self._patience is not None
            self._patience.cancel()
            self._transport.use_control(channel)
            self.is_playing = True
            self._task = asyncio.ensure_future(self._play())
        else:
            channel.close()

    async def _play(self) -> None:
        service, place = self._service, self.place
        snapshot: Callable[[], Awaitable[Snapshotted]] = functools.partial(service.snapshot, place)
        try:
            with bound_contextvars(**place.named):
                await Connection(service.lobby, place, self._transport, service.created(place), snapshot).run()
        except Refusal as refusal:
            with contextlib.suppress(Gone):
                await self._transport.send(error_message(refusal, fatal=True))
                await self._transport.close(CloseCode.POLICY, refusal.code)
        finally:
            await self.hang_up()


class Peers:
    """Every client that plays over WebRTC, or is about to. Used by the event loop alone."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._peers: dict[str, Peer] = {}
        self._buckets: dict[str, TokenBucket] = {}

    async def offer(self, session_id: str, token: str, origin: str | None, offer: str) -> tuple[Peer, str]:
        """A new client of a session, and the answer to its offer; one that is still waiting for its answer gives way.

        Raises:
          Refusal: the token is not the session's or not this page's, the session is stepped, or the offer is not what we expect.
        """
        place = await self._service.join(session_id, token, origin)
        if place.session.mode == "stepped":
            text = "video may lose a frame, and a stepped session must not: play it over the WebSocket"
            raise Refusal(ErrorCode.WRONG_MODE, text, param="mode")
        check_offer(offer)
        self._check_rate(session_id)
        self._service.lobby.await_client(place, CONNECT_S)
        for older in [peer for peer in self._peers.values() if peer.place is place and not peer.is_playing]:
            await older.hang_up()
        peer = Peer(self._service, place, self._forget)
        self._peers[peer.id] = peer
        return peer, await peer.answer(offer)

    def find(self, session_id: str, peer_id: str) -> Peer:
        """The client of that name.

        Raises:
          Refusal: it has hung up, or there never was one.
        """
        peer = self._peers.get(peer_id)
        if peer is None or peer.place.session.id != session_id:
            raise Refusal(ErrorCode.UNKNOWN_SESSION, "no such WebRTC connection, or it has ended")
        return peer

    async def close(self) -> None:
        """Hangs up on everybody; the sessions are another's business."""
        for peer in list(self._peers.values()):
            await peer.hang_up()

    def _forget(self, peer: Peer) -> None:
        self._peers.pop(peer.id, None)

    def _check_rate(self, session_id: str) -> None:
        known = self._service.lobby.ids
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if name in known}
        wait = self._buckets.setdefault(session_id, TokenBucket(OFFERS_PER_S, MAX_OFFERS_AT_ONCE)).take()
        if wait > 0.0:
            text = f"a session takes at most {OFFERS_PER_S:g} offers a second"
            raise Refusal(ErrorCode.RATE_LIMITED, text, retry_after_ms=max(1, round(1e3 * wait)))


def check_offer(offer: str) -> None:
    """Passes an offer of one video and the data channels, of reasonable length.

    Raises:
      Refusal: something is missing, or there is more than we would ever use.
    """
    lines = offer.splitlines()
    media = sorted(line[2:].partition(" ")[0] for line in lines if line.startswith("m="))
    if media != ["application", "video"]:
        text = f"the offer has {', '.join(media) or 'no media'}; one video to receive and one data channel section are wanted"
        raise Refusal(ErrorCode.BAD_MESSAGE, text, param="sdp")
    direction = _direction(lines)
    if direction not in RECEIVING:
        text = f"the video of the offer is {direction}; it must be received: {' or '.join(RECEIVING)}"
        raise Refusal(ErrorCode.BAD_MESSAGE, text, param="sdp")
    candidates = sum(line.startswith("a=candidate:") for line in lines)
    if candidates > MAX_CANDIDATES:
        text = f"the offer has {candidates} candidates, {MAX_CANDIDATES} are enough"
        raise Refusal(ErrorCode.TOO_LARGE, text, param="sdp")


def _direction(lines: list[str]) -> str:
    """Which way the video of an offer goes: as its section says, else as the whole offer does, else both (RFC 8866)."""
    section, found = "", {"": "sendrecv", "video": ""}
    for line in lines:
        if line.startswith("m="):
            section = line[2:].partition(" ")[0]
        elif section in found and line.removeprefix("a=") in DIRECTIONS:
            found[section] = line.removeprefix("a=")
    return found["video"] or found[""]


def _read_control(data: str) -> ClientMessage | None:
    """A message; None: of a frame, whose credit comes back when the encoder takes it and not when a client says so."""
    message = parse_client_message(data)
    return None if isinstance(message, FrameAck) else message


def ice_servers(given: tuple[str, ...]) -> list[RTCIceServer]:
    """The STUN and TURN servers as aiortc wants them."""
    parsed = [parse_ice_server(text) for text in given]
    return [RTCIceServer(server.url, server.username, server.credential) for server in parsed]


def ice_links(given: tuple[str, ...]) -> str:
    """The same for the client, as WHEP tells them in the header `Link`."""
    links: list[str] = []
    for server in map(parse_ice_server, given):
        secret = "" if server.username is None else (
            f"; username={json.dumps(server.username)}; credential={json.dumps(server.credential)}"
            '; credential-type="password"'
        )  # fmt: skip
        links.append(f'<{server.url}>; rel="ice-server"{secret}')
    return ", ".join(links)
