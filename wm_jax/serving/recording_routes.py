"""What answers at `/v1/sessions/{id}/recording` and `/v1/rollouts`."""

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send

from wm_jax.serving.bodies import CreateRollout, RolloutState
from wm_jax.serving.rollouts import Rollout
from wm_jax.serving.service import Service

LOOK_S = 0.5
"""How often it is looked whether whoever asked for a recording is still there."""

Bearer = Annotated[str | None, Header(alias="Authorization")]

MEDIA_TYPE = "application/zip"

ZIP: dict[int | str, dict[str, Any]] = {
    200: {"content": {MEDIA_TYPE: {}}, "description": "session.json, events.jsonl and video.mp4"}
}


def add_recordings(app: FastAPI, service: Service) -> None:
    @app.get("/v1/sessions/{session_id}/recording", response_class=FileResponse, responses=ZIP)
    async def recording(  # pyright: ignore[reportUnusedFunction]
        session_id: str,
        request: Request,
        video: Annotated[bool, Query(description="false: no video, and so no wait for it")] = True,
        authorization: Bearer = None,
    ) -> Response:
        """All that decided the frames of a session, and the video that follows from it."""
        place = service.lobby.find(session_id)
        service.check_bearer(authorization, place)
        making = asyncio.create_task(service.record(place, video))
        await _while_connected(request, making)
        if making.cancelled():
            return Response(status_code=499)  # nobody reads it
        when = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        return _Once(making.result(), media_type=MEDIA_TYPE, filename=f"{service.world.name}-{when}.zip")


def add_rollouts(app: FastAPI, service: Service) -> None:
    def rollout_of(rollout_id: str, authorization: Bearer) -> Rollout:
        service.check_bearer(authorization)
        return service.rollouts.find(rollout_id)

    @app.post("/v1/rollouts", status_code=201)
    async def create(body: CreateRollout, authorization: Bearer = None) -> RolloutState:  # pyright: ignore[reportUnusedFunction]
        """Scripts to be dreamt when no player needs the slots; they cost the device, so all of this wants the server's secret."""
        service.check_bearer(authorization)
        return service.rollouts.state(await service.roll_out(body))

    @app.get("/v1/rollouts/{rollout_id}")
    async def show(rollout_id: str, authorization: Bearer = None) -> RolloutState:  # pyright: ignore[reportUnusedFunction]
        """How it stands."""
        return service.rollouts.state(rollout_of(rollout_id, authorization))

    @app.get("/v1/rollouts/{rollout_id}/recordings/{index}", response_class=FileResponse, responses=ZIP)
    async def result(rollout_id: str, index: int, authorization: Bearer = None) -> Response:  # pyright: ignore[reportUnusedFunction]
        """The recording of one script, as soon as that one is done."""
        path = service.rollouts.result(rollout_of(rollout_id, authorization), index)
        return FileResponse(path, media_type=MEDIA_TYPE, filename=f"{service.world.name}-{rollout_id[-6:]}-{index}.zip")

    @app.delete("/v1/rollouts/{rollout_id}")
    async def end(rollout_id: str, authorization: Bearer = None) -> RolloutState:  # pyright: ignore[reportUnusedFunction]
        """Stops a rollout and removes what it has made."""
        rollout = rollout_of(rollout_id, authorization)
        await service.rollouts.forget(rollout)
        return service.rollouts.state(rollout)


async def _while_connected(request: Request, making: "asyncio.Task[Path]") -> None:
    """Waits for it, and stops it when nobody waits for the answer any more."""
    try:
        while not (await asyncio.wait([making], timeout=LOOK_S))[0]:
            if await request.is_disconnected():
                making.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await making
    finally:
        making.cancel()


class _Once(FileResponse):
    """A file that is removed when it was sent, or could not be, or not as it was asked for."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # a background task is left out after an answer to a bad range
            Path(self.path).unlink(missing_ok=True)
