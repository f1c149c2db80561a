"""The one address of many servers: seats each player on a replica, finds sessions again, and hands REST calls to their replica.

Frames never pass here: a ticket's `ws_url` is the replica's own, unless `is_proxied`.
"""

import asyncio
import contextlib
import importlib.metadata
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import jax
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import StreamingResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from wm_jax.scale.config import ScaleConfig
from wm_jax.scale.directory import Address, Replica, Whereabouts
from wm_jax.scale.proxy import carry
from wm_jax.serving.app import add_manners
from wm_jax.serving.bodies import Readiness, SessionTicket, SpectatorTicket, Version
from wm_jax.serving.config import ServeConfig
from wm_jax.serving.limits import check_secret
from wm_jax.serving.protocol import ErrorCode, Refusal
from wm_jax.serving.routes import Bearer, accept, add_page, check_origin, turn_away

log = logging.getLogger(__name__)

CONNECT_S = 2.0
ANSWER_S = 60.0
PATIENCE = aiohttp.ClientTimeout(connect=CONNECT_S)
RECORDING = aiohttp.ClientTimeout(connect=CONNECT_S, sock_read=3600.0)
"""A server may take long to dream a whole session again, for the video of its recording."""
LOOK_S = 0.5
"""How often it is looked whether whoever asked for a recording is still there."""
PIECE = 65_536
FULL = 503
HANDED_ON = ("authorization", "content-type", "accept", "if-match", "origin", "traceparent", "x-request-id")
"""Of a request's headers: a token may be good for some pages only, and logs name requests as the client does."""
OWN = ("access-control-", "connection", "content-length", "date", "keep-alive", "server", "transfer-encoding")
"""How headers of an answer begin that are between the replica and this process, which tells the player its own."""

Ask = Callable[..., Awaitable[Any]]
"""Asks the directory: the name of its method, then the arguments."""


class Counts:
    """What the gateway did so far."""

    def __init__(self) -> None:
        self.created = 0
        self.resumed = 0
        self.taken_up = 0
        self.refused = 0
        self.unreachable = 0


class Gateway:
    """Finds the replica for a request and hands it over."""

    def __init__(self, config: ServeConfig, ask: Ask, scale: ScaleConfig) -> None:
        self.config = config
        self.counts = Counts()
        self._ask = ask
        self._scale = scale
        self._http: aiohttp.ClientSession | None = None
        self._patient: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Can reach the replicas while the gateway is up."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_S, connect=CONNECT_S)
        # A connection each: one that the replica closes while it is reused would look like a replica that is gone. As many as
        # there are: one that waited for another to end would look so as well.
        fresh, others = (aiohttp.TCPConnector(force_close=True, limit=0) for _ in range(2))
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False, connector=fresh) as self._http,
            aiohttp.ClientSession(timeout=PATIENCE, auto_decompress=False, connector=others) as self._patient,
        ):
            yield

    async def create(self, request: Request) -> Response:
        """Seats a new session on the replica with most room; where that has none any more, on the next one.

        Raises:
          Refusal: no replica is ready.
        """
        answer = await self._seat(request, "/v1/sessions")
        self.counts.created += answer.status_code == 201
        return answer

    async def resume(self, request: Request, session_id: str) -> Response:
        """Tells where a session is: where it was, or on a replica that takes it up from the disk.

        Raises:
          Refusal: its replica is about to let it go, or no replica is ready.
        """
        path = f"/v1/sessions/{session_id}/resume"
        found: Whereabouts | None = await self._ask("find", session_id)
        if found is not None and found.is_leaving:
            text = f"session {session_id} is being written by a server that is about to stop; come again"
            raise Refusal(ErrorCode.DRAINING, text, retry_after_ms=500)
        if found is not None and found.address is not None:
            answer = await self._hand_over(found.address, request, path)
            if answer is not None and answer.status_code != 404:
                self.counts.resumed += answer.status_code == 200
                return answer
        answer = await self._seat(request, path)
        self.counts.taken_up += answer.status_code == 200
        return answer

    async def forward(self, request: Request, session_id: str) -> Response:
        """Hands a request about a session to its replica.

        Raises:
          Refusal: no replica has it.
        """
        found: Whereabouts | None = await self._ask("find", session_id)
        if found is not None and found.address is not None:
            answer = await self._hand_over(found.address, request, request.url.path)
            if answer is not None:
                return answer
        raise _gone()

    async def recording(self, request: Request, session_id: str) -> Response:
        """Hands a session's recording on.

        Raises:
          Refusal: no replica has the session, or its server took too long.
        """
        found: Whereabouts | None = await self._ask("find", session_id)
        if found is not None and found.address is not None:
            answer = await self._pass_on(found.address, request)
            if answer is not None:
                return answer
        raise _gone()

    async def roll_out(self, request: Request) -> Response:
        """Begins a rollout on the replica with most room; where that takes on no more, on the next one.

        Raises:
          Refusal: no replica is ready.
        """
        return await self._seat(request, "/v1/rollouts", place="place_rollout")

    async def rollout(self, request: Request, rollout_id: str, is_recording: bool) -> Response:
        """Hands a request about a rollout to the replica that makes it.

        Raises:
          Refusal: none does, or its server took too long.
        """
        address: Address | None = await self._ask("find_rollout", rollout_id)
        if address is not None:
            path = request.url.path
            handed = self._pass_on(address, request) if is_recording else self._hand_over(address, request, path)
            answer = await handed
            if answer is not None:
                return answer
        if address is not None or await self._ask("is_new"):
            text = "the server of this rollout does not answer now: come again"
            raise Refusal(ErrorCode.BUSY, text, retry_after_ms=1_000)
        text = "no such rollout: it has expired, or its server is gone, and with that what it had made"
        raise Refusal(ErrorCode.UNKNOWN_ROLLOUT, text, param="rollout_id")

    async def carry(self, websocket: WebSocket, session_id: str) -> None:
        """Hands a socket over to the session's replica.

        Raises:
          Refusal: a foreign page's, or no replica has the session.
        """
        check_origin(websocket, self.config)
        assert self._patient is not None, "the gateway is running"
        found: Whereabouts | None = await self._ask("find", session_id)
        if found is not None and found.address is not None:
            try:
                await carry(websocket, self._patient, f"{found.address.url}{websocket.url.path}")
                return
            except aiohttp.ClientConnectionError:
                await self._ask("lost", found.address.replica)
            except aiohttp.ClientError as error:  # it is there, and takes no socket
                log.warning("replica %s at %s takes no socket: %s", found.address.replica, found.address.url, error)
        raise _gone()

    async def anywhere(self, request: Request) -> Response:
        """Hands a request over that every replica answers alike.

        Raises:
          Refusal: no replica is ready.
        """
        for known in await self.replicas():
            if known.beat.load.is_ready and not known.is_lost:
                address = Address(known.beat.replica, known.beat.url)
                answer = await self._hand_over(address, request, request.url.path)
                if answer is not None:
                    return answer
        raise _none_ready()

    async def replicas(self) -> list[Replica]:
        """Every replica that has its lease."""
        return await self._ask("replicas")

    async def sessions(self) -> int:
        """How many sessions are known."""
        return len(await self._ask("sessions"))

    # ---- inside

    async def _seat(self, request: Request, path: str, place: str = "place") -> Response:
        """Asks one replica after the other until one has room, in the order of the directory's method of that name."""
        tried: list[str] = []
        refused: Response | None = None
        while (address := await self._ask(place, tuple(tried))) is not None:
            tried.append(address.replica)
            answer = await self._hand_over(address, request, path)
            if answer is None:
                continue
            if answer.status_code != FULL:
                return answer
            refused = answer
        self.counts.refused += 1
        if refused is not None:
            return refused
        raise _none_ready()

    async def _pass_on(self, address: Address, request: Request) -> Response | None:
        """A recording as it comes: a server may take minutes to make it, and it may be long. None: it cannot be reached.

        Raises:
          Refusal: it can be reached, and is too slow.
        """
        assert self._patient is not None, "the gateway is running"
        async with self._reaching(address):
            url = f"{address.url}{_path(request)}"
            asking = self._patient.get(url, headers=_headers(request), timeout=RECORDING)
            answer = await _while_connected(request, asking)
            if answer is None:
                return Response(status_code=499)  # nobody reads it
            length = {"content-length": str(answer.content_length)} if answer.content_length is not None else {}
            return StreamingResponse(_pieces(answer), answer.status, {**_kept(answer.headers), **length})
        return None

    async def _hand_over(self, address: Address, request: Request, path: str) -> Response | None:
        """The replica's answer; None: it cannot be reached.

        Raises:
          Refusal: it can be reached, and is too slow.
        """
        assert self._http is not None, "the gateway is running"
        body = await request.body()
        async with self._reaching(address):
            url = f"{address.url}{_path(request, path)}"
            async with self._http.request(request.method, url, data=body or None, headers=_headers(request)) as answer:
                content = await answer.read()
            if answer.status in (200, 201) and path.startswith("/v1/sessions"):
                content = await self._seated(address, request, content)
            if answer.status == 201 and path == "/v1/rollouts":
                told = json.loads(content)
                with contextlib.suppress(Refusal):  # else its next beat names it
                    await self._ask("begun", told["rollout_id"], address.replica, told["scripts"])
            return Response(content, answer.status, _kept(answer.headers))
        return None

    @asynccontextmanager
    async def _reaching(self, address: Address) -> AsyncIterator[None]:
        """Ends quietly where the replica cannot be reached, which the directory is told; one that is slow is not lost.

        Raises:
          Refusal: it is slow.
        """
        try:
            yield
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            log.warning("replica %s at %s does not answer: %r", address.replica, address.url, error)
            self.counts.unreachable += 1
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
                raise _slow() from None
            await self._ask("lost", address.replica)

    async def _seated(self, address: Address, request: Request, content: bytes) -> bytes:
        """Enters a new ticket's session into the directory, and its socket's address as players and spectators reach it."""
        told, ticket = _ticket(content)
        if ticket is None:
            return content
        if isinstance(ticket, SessionTicket):
            await self._ask("own", ticket.session_id, address.replica)
            if ticket.webrtc_url is not None:  # what is agreed on goes through the gateway, the frames do not
                told["webrtc_url"] = f"{request.url.scheme}://{request.url.netloc}{urlsplit(ticket.webrtc_url).path}"
        base = self._media_base(address, request)
        if base is not None:
            told["ws_url"] = base.rstrip("/") + urlsplit(ticket.ws_url).path
        return json.dumps(told).encode()

    def _media_base(self, address: Address, request: Request) -> str | None:
        """What stands before a socket's path as players reach it; None: the replica's own address."""
        if self._scale.is_proxied:
            return f"{'wss' if request.url.scheme == 'https' else 'ws'}://{request.url.netloc}"
        if self._scale.media_url is None:
            return None
        replica = urlsplit(address.url)
        return self._scale.media_url.replace("{host}", replica.hostname or "").replace("{port}", str(replica.port))


class Standing(Collector):
    """How the cluster stands, for Prometheus; what happens on a replica is told by the replica."""

    def __init__(self, replicas: list[Replica], sessions: int, counts: Counts) -> None:
        self._loads = [known.beat.load for known in replicas]
        self._sessions = sessions
        self._counts = counts

    def collect(self) -> list[Metric]:
        """Gauges of all replicas together, counters of this gateway."""
        loads, counts = self._loads, self._counts
        gauges = {
            "replicas": ("Replicas that have their lease", len(loads)),
            "replicas_ready": (
                "Replicas that take players",
                sum(load.is_ready and not load.is_draining for load in loads),
            ),
            "slots": ("Slots of all replicas", sum(load.slots for load in loads)),
            "slots_free": ("Slots nobody sits in", sum(load.free_slots for load in loads)),
            "sessions": ("Sessions that are known", self._sessions),
        }
        counters = {
            "created": ("Sessions that were seated", counts.created),
            "resumed": ("Sessions that were found where they were", counts.resumed),
            "taken_up": ("Sessions that another replica took up from the disk", counts.taken_up),
            "refused": ("Players and rollouts for whom no replica had room", counts.refused),
            "unreachable": ("Calls that a replica did not answer", counts.unreachable),
        }
        told: list[Metric] = [GaugeMetricFamily(f"wm_cluster_{name}", *meaning) for name, meaning in gauges.items()]
        return told + [CounterMetricFamily(f"wm_gateway_{name}", *meaning) for name, meaning in counters.items()]


def make_gateway(config: ServeConfig, ask: Ask, scale: ScaleConfig) -> FastAPI:
    """The gateway as an ASGI application."""
    gateway = Gateway(config, ask, scale)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = FastAPI(title="wm_jax gateway", version="1.0", lifespan=lifespan, docs_url=None, redoc_url=None)
    add_manners(app, config)
    _add_health(app, gateway)
    _add_sessions(app, gateway)
    if scale.is_proxied:
        _add_socket(app, gateway)
    add_page(app)
    return app


def _add_health(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """The gateway is alive; with how many replicas report to it."""
        return {"status": "ok", "replicas": len(await gateway.replicas())}

    @app.get("/readyz")
    async def readyz(response: Response) -> Readiness:  # pyright: ignore[reportUnusedFunction]
        """200 while any replica takes players."""
        known = await gateway.replicas()
        ready = sum(one.beat.load.is_ready and not one.beat.load.is_draining for one in known)
        response.status_code = 200 if ready else 503
        stage = f"{ready} of {len(known)} replicas"
        return Readiness(
            ready=ready > 0, status="ready" if ready else "starting", stage=stage, progress=ready / max(len(known), 1)
        )

    @app.get("/v1/version")
    async def version() -> Version:  # pyright: ignore[reportUnusedFunction]
        """What runs here."""
        return Version(wm_jax=importlib.metadata.version("wm_jax"), jax=jax.__version__)

    @app.get("/v1/replicas")
    async def replicas(authorization: Bearer = None) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Every replica as its last beat told; with `--auth` it needs the secret as its bearer token."""
        check_secret(gateway.config, authorization)
        return {"replicas": [_shown(known) for known in await gateway.replicas()]}

    @app.get("/metrics")
    async def metrics(authorization: Bearer = None) -> Response:  # pyright: ignore[reportUnusedFunction]
        """The cluster, for Prometheus; with `--auth` it needs the secret as its bearer token."""
        check_secret(gateway.config, authorization)
        registry = CollectorRegistry()
        registry.register(Standing(await gateway.replicas(), await gateway.sessions(), gateway.counts))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @app.get("/metrics/targets")
    async def targets(authorization: Bearer = None) -> list[dict[str, Any]]:  # pyright: ignore[reportUnusedFunction]
        """The replicas' own `/metrics`, as Prometheus' http_sd_configs reads them."""
        check_secret(gateway.config, authorization)
        known = [one.beat for one in await gateway.replicas()]
        return [{"targets": [urlsplit(beat.url).netloc], "labels": {"wm_replica": beat.replica}} for beat in known]


def _add_sessions(app: FastAPI, gateway: Gateway) -> None:
    @app.post("/v1/sessions", status_code=201, response_model=SessionTicket)
    async def create(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """A seat, and where to connect: straight to the replica."""
        return await gateway.create(request)

    @app.post("/v1/sessions/{session_id}/resume", response_model=SessionTicket)
    async def resume(request: Request, session_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Where to connect again, for the bearer of the session's resume token."""
        return await gateway.resume(request, session_id)

    @app.get("/v1/sessions/{session_id}/recording", include_in_schema=False)
    async def recording(request: Request, session_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        return await gateway.recording(request, session_id)

    @app.post("/v1/rollouts", include_in_schema=False)
    async def roll_out(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return await gateway.roll_out(request)

    async def rollout(request: Request, rollout_id: str) -> Response:
        return await gateway.rollout(request, rollout_id, is_recording=False)

    app.add_api_route("/v1/rollouts/{rollout_id}", rollout, methods=["GET", "DELETE"], include_in_schema=False)

    @app.get("/v1/rollouts/{rollout_id}/recordings/{index}", include_in_schema=False)
    async def result(request: Request, rollout_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        return await gateway.rollout(request, rollout_id, is_recording=True)

    async def forward(request: Request, session_id: str) -> Response:
        return await gateway.forward(request, session_id)

    for path in ("/v1/sessions/{session_id}", "/v1/sessions/{session_id}/{rest:path}"):
        app.add_api_route(path, forward, methods=["GET", "POST", "PATCH", "DELETE"], include_in_schema=False)

    async def anywhere(request: Request) -> Response:
        return await gateway.anywhere(request)

    app.add_api_route("/v1/models", anywhere, methods=["GET"], include_in_schema=False)
    app.add_api_route("/v1/models/{model_id}", anywhere, methods=["GET"], include_in_schema=False)

    @app.post("/v1/tokens", include_in_schema=False)
    async def tokens(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        if gateway.config.auth is None:
            raise _unsigned()
        return await gateway.anywhere(request)


def _add_socket(app: FastAPI, gateway: Gateway) -> None:
    @app.websocket("/v1/sessions/{session_id}/ws")
    async def connect(websocket: WebSocket, session_id: str) -> None:  # pyright: ignore[reportUnusedFunction]
        try:
            await gateway.carry(websocket, session_id)
        except Refusal as refusal:
            await turn_away(await accept(websocket), refusal)


def _shown(known: Replica) -> dict[str, Any]:
    beat, load = known.beat, known.beat.load
    return {
        "replica": beat.replica,
        "url": beat.url,
        "node": beat.node,
        "pid": beat.pid,
        "sessions": len(beat.epochs),
        "slots": load.slots,
        "slots_free": load.free_slots,
        "fps": load.fps,
        "missed_ticks": load.missed,
        "ready": load.is_ready,
        "draining": load.is_draining or known.must_drain,
    }


def _path(request: Request, path: str | None = None) -> str:
    """What a replica is asked for: the path of this request, or another, with its query."""
    return f"{path or request.url.path}{f'?{request.url.query}' if request.url.query else ''}"


def _headers(request: Request) -> dict[str, str]:
    return {name: request.headers[name] for name in HANDED_ON if name in request.headers}


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if not name.lower().startswith(OWN)}


def _ticket(content: bytes) -> tuple[Any, SessionTicket | SpectatorTicket | None]:
    """What a replica answered, and the ticket that it is, if it is one."""
    told = None
    for kind in (SessionTicket, SpectatorTicket):
        with contextlib.suppress(ValueError):
            told = json.loads(content)
            return told, kind.model_validate(told)
    return told, None


async def _while_connected(
    request: Request, asking: Awaitable[aiohttp.ClientResponse]
) -> aiohttp.ClientResponse | None:
    """The head of an answer; None: whoever asked has gone, so it is not waited for, and the replica notices."""
    task = asyncio.ensure_future(asking)
    try:
        while not (await asyncio.wait([task], timeout=LOOK_S))[0]:
            if await request.is_disconnected():
                return None
        return task.result()
    finally:
        task.cancel()


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The body of an answer as it comes, and with its end that of the connection."""
    async with answer:
        async for piece in answer.content.iter_chunked(PIECE):
            yield piece


def _slow() -> Refusal:
    text = "the server of this request did not answer in time, but is still there: come again"
    return Refusal(ErrorCode.BUSY, text, retry_after_ms=5_000)


def _unsigned() -> Refusal:
    text = (
        "there are no tokens without --auth: each server signs with a key of its own then, and wants no token to play"
    )
    return Refusal(ErrorCode.UNSUPPORTED, text)


def _gone() -> Refusal:
    text = "no such session, or its server is gone: POST /v1/sessions/{id}/resume with its resume token brings it back"
    return Refusal(ErrorCode.UNKNOWN_SESSION, text, param="session_id")


def _none_ready() -> Refusal:
    text = "no server is ready to take a player: they are starting, stopping, or gone; /readyz says when one is"
    return Refusal(ErrorCode.FULL, text, retry_after_ms=5_000)
