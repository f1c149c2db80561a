"""The whole server as an ASGI application: its routes, its guard, and how it refuses."""

import contextlib
import math
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from wm_jax.export.artifact import Artifact
from wm_jax.serving.config import ServeConfig
from wm_jax.serving.limits import Guard
from wm_jax.serving.logs import Traced
from wm_jax.serving.protocol import Error, ErrorCode, Refusal
from wm_jax.serving.recording_routes import add_recordings, add_rollouts
from wm_jax.serving.routes import add_health, add_page, add_sessions, add_socket, add_tokens, add_webrtc
from wm_jax.serving.service import Service
from wm_jax.serving.websocket import error_message
from wm_jax.types import Params, Prompt
from wm_jax.world import Playable

HTTP_STATUS = {
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.FORBIDDEN_ORIGIN: 403,
    ErrorCode.UNKNOWN_SESSION: 404,
    ErrorCode.UNKNOWN_MODEL: 404,
    ErrorCode.UNKNOWN_SNAPSHOT: 404,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.TOO_MANY_SESSIONS: 429,
    ErrorCode.UNKNOWN_ROLLOUT: 404,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.FULL: 503,
    ErrorCode.BUSY: 503,
    ErrorCode.DRAINING: 503,
    ErrorCode.ENGINE_FAILED: 503,
    ErrorCode.SERVER_FAILED: 500,
    ErrorCode.GAME_FAILED: 500,
}

CROSS_ORIGIN: dict[str, Any] = {
    "allow_methods": ["GET", "POST", "DELETE"],
    "allow_headers": ["Authorization", "Content-Type", "X-Request-Id", "traceparent"],
    "expose_headers": ["Link", "Location", "Retry-After", "X-Request-Id"],
}
"""What a page of one of `--allow-origins` may ask and read; a browser asks first whether it may."""


def make_app(
    config: ServeConfig, world: Playable[Any], params: Params, prompts: Prompt, artifact: Artifact | None = None
) -> FastAPI:
    """The whole server as an ASGI application; it compiles once it runs."""
    service = Service(config, world, params, prompts, artifact)

    peers = None
    if service.has_webrtc:
        from wm_jax.serving.webrtc import Peers

        peers = Peers(service)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield
        if peers is not None:
            await peers.close()

    refused: dict[int | str, dict[str, Any]] = {"default": {"model": Error, "description": "What is refused, and why"}}
    app = FastAPI(
        title="wm_jax", version="1.0", lifespan=lifespan, docs_url=None, redoc_url=None, responses=refused
    )  # fmt: skip
    app.state.service = service
    add_manners(app, config)
    add_health(app, service)
    add_tokens(app, service)
    add_sessions(app, service)
    add_recordings(app, service)
    add_rollouts(app, service)
    add_socket(app, service)
    if peers is not None:
        add_webrtc(app, service, peers)
    add_page(app)
    return app


def add_manners(app: FastAPI, config: ServeConfig) -> None:
    """What every server of ours does before and after its routes: the guard, the names of requests, and typed refusals."""
    app.add_middleware(Guard, config=config)
    app.add_middleware(Traced)
    # The outermost, so that a page of another site can read why it was refused as well.
    app.add_middleware(CORSMiddleware, allow_origins=config.allow_origins, **CROSS_ORIGIN)
    app.add_exception_handler(Refusal, _answer_refusal)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)


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
