"""The web server: routes, health and the life of the process; the only file that knows FastAPI and uvicorn."""

import asyncio
import contextlib
import functools
import hmac
import importlib.metadata
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import jax
import uvicorn
from fastapi import Depends, FastAPI, Header, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException

from wm_jax import envs
from wm_jax.export.artifact import Artifact
from wm_jax.serving import metrics, models
from wm_jax.serving.batcher import Batcher, Delivery
from wm_jax.serving.config import ServeConfig, compile_cache_dir
from wm_jax.serving.engine import Engine, Scenes, use_compile_cache
from wm_jax.serving.keeper import Keeper, captured, sound
from wm_jax.serving.limits import Guard, is_allowed_origin
from wm_jax.serving.lobby import Lobby, Place
from wm_jax.serving.protocol import (
    AUTH_PREFIX,
    SUBPROTOCOL,
    CloseCode,
    CreateSession,
    Error,
    ErrorCode,
    ForkSession,
    Media,
    ModelInfo,
    ModelList,
    Readiness,
    Refusal,
    SessionCreated,
    SessionState,
    SessionTicket,
    Snapshotted,
    Source,
    Version,
    dump,
)
from wm_jax.serving.real import Arcade
from wm_jax.serving.snapshots import SnapshotStore, fingerprint
from wm_jax.serving.websocket import Connection, error_message
from wm_jax.types import Params, Prompt
from wm_jax.world import Playable

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"

Bearer = Annotated[str | None, Header(alias="Authorization")]

HTTP_STATUS = {
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.FORBIDDEN_ORIGIN: 403,
    ErrorCode.UNKNOWN_SESSION: 404,
    ErrorCode.UNKNOWN_MODEL: 404,
    ErrorCode.UNKNOWN_SNAPSHOT: 404,
    ErrorCode.FULL: 503,
    ErrorCode.DRAINING: 503,
    ErrorCode.ENGINE_FAILED: 503,
}
CLOSE_CODES = {
    ErrorCode.UNAUTHORIZED: CloseCode.UNAUTHORIZED,
    ErrorCode.FORBIDDEN_ORIGIN: CloseCode.FORBIDDEN_ORIGIN,
    ErrorCode.UNKNOWN_SESSION: CloseCode.UNKNOWN_SESSION,
    ErrorCode.FULL: CloseCode.BUSY,
    ErrorCode.DRAINING: CloseCode.GO_AWAY,
}
# The page itself never evaluates text; browser drivers that wait for a condition in it do.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-eval'; img-src 'self' blob: data:; connect-src 'self' ws: wss:; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Service:
    """One world being served: engine, device loop and lobby, joined."""

    def __init__(
        self,
        config: ServeConfig,
        world: Playable[Any],
        params: Params,
        prompts: Prompt,
        artifact: Artifact | None = None,
    ) -> None:
        self.config = config
        self.world = world.config
        self.scenes = Scenes(prompts)
        self.takes_image = world.takes_image or self.scenes.count > 0
        has_game = self.world.env in envs.NAMES and envs.is_installed(self.world.env)
        self.sources: list[Source] = ["dream", "real"] if has_game else ["dream"]
        self.loop: asyncio.AbstractEventLoop | None = None
        engine = Engine(world, params, self.scenes, config.slots, artifact)
        arcade = Arcade(self.world.env, self._deliver)
        fps = config.fps or self.world.fps
        self.batcher = Batcher(engine, arcade, fps, self._deliver)
        self.keeper = _keeper(config, world, params, self.scenes.count, self.batcher)
        self.lobby = Lobby(config, self.world.controls, fps, self.batcher, engine.memory_bytes, self.keeper)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compiles and plays in the background while the server is up."""
        self.loop = asyncio.get_running_loop()
        self.batcher.begin()
        forever = [asyncio.create_task(self.lobby.sweep_forever())]
        if self.keeper is not None:
            forever.append(asyncio.create_task(self.lobby.keep_forever()))
        try:
            yield
        finally:
            for task in forever:
                task.cancel()
            await self.lobby.drain()
            await asyncio.to_thread(self.batcher.stop)

    def _deliver(self, delivery: Delivery) -> None:
        if delivery and self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(_show_all, delivery)

    async def create(self, body: CreateSession) -> Place:
        """Seats a new session, or refuses to."""
        opening = models.check_request(body, self.world, self.sources, self.scenes.count, self.takes_image)
        if body.init.snapshot is not None:
            _, moment = await self._kept("init.snapshot").load(body.init.snapshot)
            opening = moment.opening
        return self.lobby.create(body, opening)

    async def come_back(self, session_id: str, resume_token: str) -> Place:
        """The session of that name, from the disk if it is not here; whoever comes must know its token.

        Raises:
          Refusal: there is none, it is another token's, or every slot is taken.
        """
        try:
            return self.lobby.find(session_id)
        except Refusal:
            if self.keeper is None:
                raise
            record, moment = await self.keeper.find(session_id, resume_token)
            return self.lobby.resume(record, moment, resume_token)

    async def snapshot(self, place: Place) -> Snapshotted:
        """Writes a session to the disk under a name of its own.

        Raises:
          Refusal: this server keeps no snapshots, the session plays the real game, or the disk is full.
        """
        keeper = self._kept("snapshot")
        try:
            name, record, size = await keeper.snapshot(place.session, place.resume_token, place.linger_s)
        except OSError as error:
            log.warning("a snapshot could not be written: %s", error)
            raise Refusal(ErrorCode.BUSY, "the server's disk takes no snapshot now", retry_after_ms=10_000) from None
        expires_at = record.saved_at + self.config.snapshot_age_s
        return Snapshotted(snapshot=name, frame_id=record.frame_id, bytes=size, expires_at=expires_at)

    def _kept(self, param: str) -> Keeper:
        if self.keeper is None:
            text = "this server keeps no snapshots: it was started without --snapshots"
            raise Refusal(ErrorCode.UNSUPPORTED, text, param=param)
        return self.keeper

    async def fork(self, place: Place, body: ForkSession) -> Place:
        """Seats a new session that goes on as this one is, or was just before a frame that is kept.

        Raises:
          Refusal: that frame is not kept, the session has ended, every slot is taken, or the server is busy or about to stop.
        """
        session = place.session
        self.lobby.check_room()
        if session.source == "real":
            raise Refusal(ErrorCode.UNSUPPORTED, "this session plays the real game, which cannot be copied")
        if body.at is None:
            opening = (await captured(self.batcher.capture(session))).opening
        else:
            opening = await sound(session.opening_at(body.at))
        mode = session.mode if body.mode is None else body.mode
        media = body.media or Media(codec=session.codec, quality=session.quality)
        forked = self.lobby.create(CreateSession(mode=mode, media=media, linger_s=body.linger_s), opening)
        if body.media is None:
            forked.session.stride = session.stride
        return forked

    def info(self) -> ModelInfo:
        """The world, as the model list shows it."""
        free = self.batcher.free_slots
        return models.model_info(self.world, self.config, self.sources, self.scenes.count, self.takes_image, free)

    def created(self, place: Place) -> SessionCreated:
        """The first message of a connection."""
        return SessionCreated(
            session=models.session_info(self.world, place.session, self.lobby.status(place)),
            capabilities=models.capabilities(
                self.world, self.config, self.sources, self.takes_image, self.lobby.kept_frames
            ),
            resume_token=place.resume_token,
        )

    def check_bearer(self, authorization: str | None, place: Place | None = None) -> None:
        """Lets the server's secret, or the session's own token, pass; everyone where no secret is set."""
        if self.config.auth is None:
            return
        token = (authorization or "").removeprefix("Bearer ").encode()
        allowed = [self.config.auth] if place is None else [self.config.auth, place.token, place.resume_token]
        if not any(hmac.compare_digest(token, known.encode()) for known in allowed):
            raise Refusal(ErrorCode.UNAUTHORIZED, "this server wants `Authorization: Bearer <its --auth secret>`")


def _keeper(config: ServeConfig, world: Playable[Any], params: Params, scenes: int, batcher: Batcher) -> Keeper | None:
    if config.snapshots is None:
        return None
    folder = Path(config.snapshots).expanduser()
    known = fingerprint(world, params)
    store = SnapshotStore(folder, world, known, scenes, config.snapshot_mb, config.snapshot_age_s)
    return Keeper(store, batcher.capture)


def _show_all(delivery: Delivery) -> None:
    for session, frame in delivery:
        session.show(frame)


def make_app(
    config: ServeConfig, world: Playable[Any], params: Params, prompts: Prompt, artifact: Artifact | None = None
) -> FastAPI:
    """The whole server as an ASGI application; it compiles once it runs."""
    service = Service(config, world, params, prompts, artifact)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(title="wm_jax", version="1.0", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_middleware(Guard, config=config)
    app.add_exception_handler(Refusal, _answer_refusal)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    _add_health(app, service)
    _add_sessions(app, service)
    _add_socket(app, service)
    _add_page(app)
    return app


async def _answer_refusal(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    headers: dict[str, str] = {}
    if refusal.retry_after_ms is not None:
        headers["Retry-After"] = str(math.ceil(refusal.retry_after_ms / 1000))
    body = error_message(refusal, fatal=True).model_dump(mode="json", exclude_none=True)
    return JSONResponse(body, HTTP_STATUS.get(refusal.code, 422), headers)


async def _answer_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    body = Error(code=ErrorCode.BAD_MESSAGE, message=f"{where or 'body'}: {first['msg']}", param=where or None)
    return JSONResponse(body.model_dump(mode="json", exclude_none=True), 422)


async def _answer_http(request: Request, error: Exception) -> Response:
    """What FastAPI refuses by itself: a body it cannot read, a path or a method there is not."""
    assert isinstance(error, HTTPException)
    body = Error(code=ErrorCode.BAD_MESSAGE, message=f"{request.method} {request.url.path}: {error.detail}", fatal=True)
    return JSONResponse(body.model_dump(mode="json", exclude_none=True), error.status_code, error.headers)


def _add_health(app: FastAPI, service: Service) -> None:
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
        """200 once everything is compiled and nobody asked the server to stop."""
        stage = service.batcher.stage
        is_ready = stage.is_ready and not service.lobby.is_draining
        status = "ready" if is_ready else "draining" if service.lobby.is_draining else "starting"
        if stage.failure is not None:
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


def _add_sessions(app: FastAPI, service: Service) -> None:
    def place_of(session_id: str, authorization: Bearer = None) -> Place:
        place = service.lobby.find(session_id)
        service.check_bearer(authorization, place)
        return place

    def ticket(request: Request, place: Place) -> SessionTicket:
        path = f"/v1/sessions/{place.session.id}/ws"
        scheme = "wss" if request.url.scheme == "https" else "ws"
        return SessionTicket(
            session_id=place.session.id,
            status=service.lobby.status(place),
            queue=service.lobby.queue(place),
            ws_url=f"{scheme}://{request.url.netloc}{path}",
            token=place.token,
            expires_at=place.expires_at,
        )

    @app.post("/v1/sessions", status_code=201)
    async def create(  # pyright: ignore[reportUnusedFunction]
        request: Request, body: CreateSession | None = None, authorization: Bearer = None
    ) -> SessionTicket:
        """A seat, and where to connect."""
        service.check_bearer(authorization)
        return ticket(request, await service.create(body or CreateSession()))

    @app.post("/v1/sessions/{session_id}/fork", status_code=201)
    async def fork(  # pyright: ignore[reportUnusedFunction]
        session_id: str, request: Request, body: ForkSession | None = None, authorization: Bearer = None
    ) -> SessionTicket:
        """A seat for a session that goes on as another one is or was; it costs a slot, so it wants the server's secret."""
        service.check_bearer(authorization)
        return ticket(request, await service.fork(service.lobby.find(session_id), body or ForkSession()))

    @app.post("/v1/sessions/{session_id}/snapshot", status_code=201)
    async def snapshot(place: Annotated[Place, Depends(place_of)]) -> Snapshotted:  # pyright: ignore[reportUnusedFunction]
        """Writes a session to this server's disk, for `init.snapshot` of later ones."""
        return await service.snapshot(place)

    @app.get("/v1/sessions/{session_id}")
    async def show(place: Annotated[Place, Depends(place_of)]) -> SessionState:  # pyright: ignore[reportUnusedFunction]
        """How a session stands."""
        return service.lobby.state(place)

    @app.delete("/v1/sessions/{session_id}")
    async def end(place: Annotated[Place, Depends(place_of)]) -> SessionState:  # pyright: ignore[reportUnusedFunction]
        """Ends a session; its slot is free at once."""
        service.lobby.end(place, "deleted")
        return service.lobby.state(place)


def _add_socket(app: FastAPI, service: Service) -> None:
    @app.websocket("/v1/sessions/{session_id}/ws")
    async def connect(websocket: WebSocket, session_id: str) -> None:  # pyright: ignore[reportUnusedFunction]
        offered: list[str] = websocket.scope.get("subprotocols", [])
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        try:
            place = await _admit(service, websocket, session_id, offered)
            created, snapshot = service.created(place), functools.partial(service.snapshot, place)
            await Connection(service.lobby, place, websocket, created, snapshot).run()
        except Refusal as refusal:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await websocket.send_text(dump(error_message(refusal, fatal=True)))
                await websocket.close(CLOSE_CODES.get(refusal.code, CloseCode.POLICY), refusal.code)


async def _admit(service: Service, websocket: WebSocket, session_id: str, offered: list[str]) -> Place:
    """The session this socket may have, by its origin, its version and its token."""
    origin, host = websocket.headers.get("origin"), websocket.headers.get("host", "")
    if not is_allowed_origin(origin, host, service.config):
        text = f"a page of {origin} may not play here ({host}); allow it with --allow-origins {origin}"
        raise Refusal(ErrorCode.FORBIDDEN_ORIGIN, text)
    if SUBPROTOCOL not in offered:
        spoken = [name for name in offered if not name.startswith(AUTH_PREFIX)]
        text = f"this server speaks {SUBPROTOCOL}, the client offers {', '.join(spoken) or 'no subprotocol'}"
        raise Refusal(ErrorCode.WRONG_VERSION, text)
    token = next((name.removeprefix(AUTH_PREFIX) for name in offered if name.startswith(AUTH_PREFIX)), "")
    place = await service.come_back(session_id, token)
    service.lobby.check_token(place, token)
    return place


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:  # pyright: ignore[reportUnusedFunction]
        return FileResponse(PAGE / "index.html", headers=HEADERS)

    app.mount("/page", StaticFiles(directory=PAGE), name="page")


class DrainingServer(uvicorn.Server):
    """uvicorn, but told to stop it first lets the players go."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second one stops at once."""
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        self.drain(asyncio.get_running_loop())

    def drain(self, loop: asyncio.AbstractEventLoop) -> None:
        """Lets the players go, then stops; from any thread, `loop` is the one that serves."""
        loop.call_soon_threadsafe(self._begin_to_drain, loop)

    def _begin_to_drain(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._draining is None:
            self._draining = loop.create_task(self._drain())

    async def _drain(self) -> None:
        await self._service.lobby.drain()
        if not self._service.batcher.stage.is_ready:
            _leave()  # a compile cannot be told to stop, and waiting for one keeps whoever pressed Ctrl-C for minutes
        self.should_exit = True


def bind(config: ServeConfig) -> socket.socket:
    """The server's socket, bound and not yet listening.

    Its reads are small, so that one flood cannot fill a whole turn of the event loop.

    Raises:
      OSError: the address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    try:
        sock.bind((config.host, config.port))
    except OSError as error:
        sock.close()
        raise OSError(f"cannot listen on {config.host}:{config.port} ({error.strerror}); try another --port") from None
    return sock


def make_server(config: ServeConfig, app: FastAPI) -> DrainingServer:
    """uvicorn around the app, with the limits of wm.v1."""
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        ws="auto",
        ws_max_size=config.max_message_bytes,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=math.ceil(config.drain_s) + 2,
    )
    return DrainingServer(settings, app.state.service)


def serve(
    config: ServeConfig,
    world: Playable[Any],
    params: Params,
    prompts: Prompt,
    announce: Callable[[str], None] = log.info,
    artifact: Artifact | None = None,
) -> None:
    """Serves a world until told to stop; `announce` is told the URL once the address is ours, just before it listens.

    Raises:
      OSError: the address is taken or not this machine's.
    """
    use_compile_cache(compile_cache_dir(config))
    signal.signal(signal.SIGTERM, lambda *_: _leave())  # until uvicorn takes over: there is nobody to let go yet
    with contextlib.closing(bind(config)) as sock:
        host = f"[{config.host}]" if ":" in config.host else config.host
        announce(f"http://{host}:{sock.getsockname()[1]}")
        make_server(config, make_app(config, world, params, prompts, artifact)).run(sockets=[sock])


def _leave() -> NoReturn:
    """Ends the process well and at once; an exception could be lost in whatever callback the signal came into."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
