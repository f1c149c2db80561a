"""The life of the process: its address, uvicorn, and how it leaves; the only file that knows uvicorn."""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from fastapi import FastAPI

from wm_jax.export.artifact import Artifact
from wm_jax.serving import logs
from wm_jax.serving.app import make_app
from wm_jax.serving.config import ServeConfig, compile_cache_dir
from wm_jax.serving.engine import use_compile_cache
from wm_jax.serving.service import Service
from wm_jax.types import Params, Prompt
from wm_jax.world import Playable

log = logging.getLogger(__name__)

PING_S = 20.0
"""How often every socket is asked whether its client is still there."""

STALLED_S = 20.0
"""A client that acknowledges or reads nothing of what was sent to it for so long is gone, as far as we are concerned."""


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

    Its reads are small, so that one flood cannot fill a whole turn of the event loop. Whoever stops reading while there
    is something to read is cut off after `STALLED_S`: only the kernel sees whether a send gets on, and without it
    uvicorn would wait for the last byte for ever. Accepted sockets inherit both.

    Raises:
      OSError: the address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; elsewhere such a client keeps its place for `idle_s`
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1e3 * STALLED_S))
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
        ws_ping_interval=PING_S,
        ws_ping_timeout=STALLED_S,
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
    logs.configure(config.log)
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
