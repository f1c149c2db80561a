"""What answers where: health and models, sessions, the WebSocket, the page."""

import contextlib
import functools
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jax
from fastapi import Depends, FastAPI, Header, Request, Response, WebSocket
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException
from structlog.contextvars import bound_contextvars

from wm_jax.serving import metrics
from wm_jax.serving.bodies import (
    CreateSession,
    CreateSpectator,
    CreateToken,
    ForkSession,
    ModelInfo,
    ModelList,
    Readiness,
    SessionState,
    SessionTicket,
    SpectatorTicket,
    Token,
    Version,
)
from wm_jax.serving.config import ServeConfig
from wm_jax.serving.limits import is_allowed_origin
from wm_jax.serving.lobby import Place
from wm_jax.serving.protocol import AUTH_PREFIX, SUBPROTOCOL, CloseCode, ErrorCode, Refusal, Snapshotted
from wm_jax.serving.service import Service
from wm_jax.serving.spectator import Spectator
from wm_jax.serving.tokens import bearer, is_signed
from wm_jax.serving.transport import Gone, WebSocketTransport
from wm_jax.serving.websocket import Connection, error_message
from wm_jax.serving.wire import WIRES, choose

if TYPE_CHECKING:
    from wm_jax.serving.webrtc import Peers

PAGE = Path(__file__).parent / "page"

Bearer = Annotated[str | None, Header(alias="Authorization")]

CLOSE_CODES = {
    ErrorCode.UNAUTHORIZED: CloseCode.UNAUTHORIZED,
    ErrorCode.FORBIDDEN_ORIGIN: CloseCode.FORBIDDEN_ORIGIN,
    ErrorCode.UNKNOWN_SESSION: CloseCode.UNKNOWN_SESSION,
    ErrorCode.FULL: CloseCode.BUSY,
    ErrorCode.DRAINING: CloseCode.GO_AWAY,
}
# The page itself never evaluates text; browser drivers that wait for a condition in it do.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-eval'; worker-src 'self'; img-src 'self' blob: data:; connect-src 'self' ws: wss:; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """The process is alive; with what its device loop measures."""
        pulse = service.batcher.pulse
        return {
            "status": "ok",
            "frames": pulse.frames,
            "rows": pulse.rows,
            "recompilations": service.batcher.engine.recompilations,
            "fps": service.batcher.pace.fps,
            "missed_ticks": service.batcher.pace.missed,
            "step_ms": round(1e3 * pulse.step_s, 3),
            "launch_ms": round(1e3 * pulse.launch_s, 3),
            "encode_ms": round(1e3 * pulse.encode_s, 3),
            "host_us": round(1e6 * pulse.host_s, 1),
        }

    @app.get("/metrics")
    async def show_metrics(authorization: Bearer = None) -> Response:  # pyright: ignore[reportUnusedFunction]
        """For Prometheus; with `--auth` it needs the secret as its bearer token."""
        service.check_bearer(authorization)
        standing = metrics.Standing(service.batcher, service.lobby)
        return Response(metrics.text(service.batcher.times, standing), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @app.get("/v1/version")
    async def version() -> Version:  # pyright: ignore[reportUnusedFunction]
        """What runs here."""
        return Version(wm_jax=importlib.metadata.version("wm_jax"), jax=jax.__version__)

    @app.get("/readyz")
    async def readyz(response: Response) -> Readiness:  # pyright: ignore[reportUnusedFunction]
        """200 once everything is compiled, while the device answers and nobody asked the server to stop."""
        stage = service.batcher.stage
        is_ready = stage.is_ready and not service.lobby.is_draining and not service.batcher.is_stuck
        status = "ready" if is_ready else "draining" if service.lobby.is_draining else "starting"
        if stage.failure is not None or (stage.is_ready and service.batcher.is_stuck):
            status = "failed"
        response.status_code = 200 if is_ready else 503
        return Readiness(ready=is_ready, status=status, stage=stage.name, progress=stage.progress)

    @app.get("/v1/models")
    async def list_models() -> ModelList:  # pyright: ignore[reportUnusedFunction]
        """Every world served here: one."""
        return ModelList(models=[service.info()])

    @app.get("/v1/models/{model_id}")
    async def show_model(model_id: str) -> ModelInfo:  # pyright: ignore[reportUnusedFunction]
        """One world."""
        if model_id != service.world.name:
            text = f"model {model_id!r} is not served here, {service.world.name!r} is"
            raise Refusal(ErrorCode.UNKNOWN_MODEL, text)
        return service.info()


def add_tokens(app: FastAPI, service: Service) -> None:
    @app.post("/v1/tokens", status_code=201)
    async def create_token(  # pyright: ignore[reportUnusedFunction]
        body: CreateToken | None = None, authorization: Bearer = None
    ) -> Token:
        """A token for a page or a program that is not to know the server's secret; it wants that secret itself."""
        service.check_bearer(authorization)
        token, expires_at = service.tokens.to_play(body or CreateToken())
        return Token(token=token, expires_at=expires_at)


def add_sessions(app: FastAPI, service: Service) -> None:
    def place_of(session_id: str, authorization: Bearer = None) -> Place:
        place = service.lobby.find(session_id)
        service.check_bearer(authorization, place)
        return place

    def ws_url(request: Request, place: Place) -> str:
        scheme = "wss" if request.url.scheme == "https" else "ws"
        return f"{scheme}://{request.url.netloc}/v1/sessions/{place.session.id}/ws"

    def ticket(request: Request, place: Place) -> SessionTicket:
        return SessionTicket(
            session_id=place.session.id,
            status=service.lobby.status(place),
            queue=service.lobby.queue(place),
            ws_url=ws_url(request, place),
            webrtc_url=webrtc_url(request, place),
            token=place.token,
            expires_at=place.expires_at,
        )

    def webrtc_url(request: Request, place: Place) -> str | None:
        """Where an offer is taken: only with the extra `rtc`, and of sessions that may lose a frame."""
        if not service.has_webrtc or place.session.mode == "stepped":
            return None
        return f"{request.url.scheme}://{request.url.netloc}/v1/sessions/{place.session.id}/webrtc"

    @app.post("/v1/sessions", status_code=201)
    async def create(  # pyright: ignore[reportUnusedFunction]
        request: Request,
        body: CreateSession | None = None,
        authorization: Bearer = None,
    ) -> SessionTicket:
        """A seat, and where to connect; for the server's secret, or for an ephemeral token what that allows."""
        permit = service.permit(authorization, request.headers.get("origin"))
        return ticket(request, await service.create(body or CreateSession(), permit))

    @app.post("/v1/sessions/{session_id}/fork", status_code=201)
    async def fork(  # pyright: ignore[reportUnusedFunction]
        session_id: str,
        request: Request,
        body: ForkSession | None = None,
        authorization: Bearer = None,
    ) -> SessionTicket:
        """A seat for a session that goes on as another one is or was; it costs a slot, so it wants what opening one wants."""
        permit = service.permit(authorization, request.headers.get("origin"))
        return ticket(request, await service.fork(service.lobby.find(session_id), body or ForkSession(), permit))

    @app.post("/v1/sessions/{session_id}/snapshot", status_code=201)
    async def snapshot(place: Annotated[Place, Depends(place_of)]) -> Snapshotted:  # pyright: ignore[reportUnusedFunction]
        """Writes a session to this server's disk, for `init.snapshot` of later ones."""
        return await service.snapshot(place)

    @app.post("/v1/sessions/{session_id}/spectators", status_code=201)
    async def invite(  # pyright: ignore[reportUnusedFunction]
        request: Request, place: Annotated[Place, Depends(place_of)], body: CreateSpectator | None = None
    ) -> SpectatorTicket:
        """A token for watching a session; any number may be asked for, `--spectators` of them in use at once."""
        token, expires_at = service.tokens.to_watch(place.session.id, (body or CreateSpectator()).ttl_s)
        return SpectatorTicket(ws_url=ws_url(request, place), token=token, expires_at=expires_at)

    @app.get("/v1/sessions/{session_id}/spectators")
    async def watch(session_id: str, request: Request, authorization: Bearer = None) -> SpectatorTicket:  # pyright: ignore[reportUnusedFunction]
        """Where to watch now, for the bearer of a token for watching: of many servers another one may have the session."""
        token = bearer(authorization)
        expires_at = service.tokens.check_watches(token, session_id)
        return SpectatorTicket(
            ws_url=ws_url(request, service.lobby.find(session_id)), token=token, expires_at=expires_at
        )

    @app.post("/v1/sessions/{session_id}/resume")
    async def resume(session_id: str, request: Request, authorization: Bearer = None) -> SessionTicket:  # pyright: ignore[reportUnusedFunction]
        """Where to connect again, for the bearer of the session's resume token; takes it up from the disk if it is not here."""
        place = await service.join(session_id, bearer(authorization), request.headers.get("origin"))
        service.lobby.admit(place)
        return ticket(request, place)

    @app.get("/v1/sessions/{session_id}")
    async def show(place: Annotated[Place, Depends(place_of)]) -> SessionState:  # pyright: ignore[reportUnusedFunction]
        """How a session stands."""
        return service.lobby.state(place)

    @app.delete("/v1/sessions/{session_id}")
    async def end(place: Annotated[Place, Depends(place_of)]) -> SessionState:  # pyright: ignore[reportUnusedFunction]
        """Ends a session; its slot is free at once."""
        service.lobby.end(place, "deleted")
        return service.lobby.state(place)


def add_socket(app: FastAPI, service: Service) -> None:
    @app.websocket("/v1/sessions/{session_id}/ws")
    async def connect(websocket: WebSocket, session_id: str) -> None:  # pyright: ignore[reportUnusedFunction]
        transport = await accept(websocket)
        try:
            connection = await _admit(service, websocket, transport, session_id)
            with bound_contextvars(**connection.named):
                await connection.run()
        except Refusal as refusal:
            await turn_away(transport, refusal)


async def accept(websocket: WebSocket) -> WebSocketTransport:
    """Opens a socket, in the first of the client's subprotocols that is spoken here."""
    wire = choose(websocket.scope.get("subprotocols", []))
    await websocket.accept(None if wire is None else wire.subprotocol)
    return WebSocketTransport(websocket, wire or WIRES[SUBPROTOCOL])


async def turn_away(transport: WebSocketTransport, refusal: Refusal) -> None:
    """Tells an open socket why it may not stay, and closes it."""
    with contextlib.suppress(Gone):
        await transport.send(error_message(refusal, fatal=True))
        await transport.close(CLOSE_CODES.get(refusal.code, CloseCode.POLICY), refusal.code)


def check_origin(websocket: WebSocket, config: ServeConfig) -> None:
    """Lets our own pages pass, and whoever is no browser.

    Raises:
      Refusal: it is another site's page.
    """
    origin, host = websocket.headers.get("origin"), websocket.headers.get("host", "")
    if not is_allowed_origin(origin, host, config):
        text = f"a page of {origin} may not play here ({host}); allow it with --allow-origins {origin}"
        raise Refusal(ErrorCode.FORBIDDEN_ORIGIN, text)


async def _admit(service: Service, websocket: WebSocket, transport: WebSocketTransport, session_id: str) -> Connection:
    """What this socket may be to a session, by its origin, its version and its token: player or spectator."""
    check_origin(websocket, service.config)
    origin, offered = websocket.headers.get("origin"), websocket.scope.get("subprotocols", [])
    if choose(offered) is None:
        spoken = [name for name in offered if not name.startswith(AUTH_PREFIX)]
        text = f"this server speaks {SUBPROTOCOL}, the client offers {', '.join(spoken) or 'no subprotocol'}"
        raise Refusal(ErrorCode.WRONG_VERSION, text)
    token = next((name.removeprefix(AUTH_PREFIX) for name in offered if name.startswith(AUTH_PREFIX)), "")
    if is_signed(token):
        service.tokens.check_watches(token, session_id)
        place = service.lobby.find(session_id)
        return Spectator(service.lobby, place, transport, service.created(place, "spectator"))
    place = await service.join(session_id, token, origin)
    return Connection(
        service.lobby, place, transport, service.created(place), functools.partial(service.snapshot, place)
    )


def add_webrtc(app: FastAPI, service: Service, peers: "Peers") -> None:
    from wm_jax.serving.webrtc import ice_links

    @app.post("/v1/sessions/{session_id}/webrtc", status_code=201)
    async def offer(request: Request, session_id: str, authorization: Bearer = None) -> Response:  # pyright: ignore[reportUnusedFunction]
        """An SDP offer with all its candidates; the answer has all of ours."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/sdp":
            raise HTTPException(415, "an offer is SDP: send it with Content-Type: application/sdp")
        text = (await request.body()).decode(errors="replace")
        peer, answer = await peers.offer(session_id, bearer(authorization), request.headers.get("origin"), text)
        headers = {"Location": f"/v1/sessions/{session_id}/webrtc/{peer.id}"}
        if service.config.ice_servers:
            headers["Link"] = ice_links(service.config.ice_servers)
        return Response(answer, 201, headers, "application/sdp")

    @app.patch("/v1/sessions/{session_id}/webrtc/{peer_id}")
    async def trickle(session_id: str, peer_id: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Candidates that come later are not taken."""
        text = "no trickle ICE here: wait until iceGatheringState is complete and send one offer with all candidates"
        raise HTTPException(405, text, {"Allow": "DELETE"})

    @app.delete("/v1/sessions/{session_id}/webrtc/{peer_id}")
    async def hang_up(session_id: str, peer_id: str, authorization: Bearer = None) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Ends the connection; the session waits for another one, as it does when a socket drops."""
        peer = peers.find(session_id, peer_id)
        service.lobby.check_token(peer.place, bearer(authorization))
        await peer.hang_up()
        return Response(status_code=200)


def add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:  # pyright: ignore[reportUnusedFunction]
        return FileResponse(PAGE / "index.html", headers=HEADERS)

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
