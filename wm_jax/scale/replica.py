"""One server of many: the same application as serve.py's, in threads of a process that belongs to somebody else."""

import dataclasses
import os
import socket
import threading
import time
from collections.abc import Callable

from wm_jax.scale.config import ScaleConfig, replica_config
from wm_jax.scale.directory import Beat, Orders
from wm_jax.scale.heart import Heart
from wm_jax.serving.app import make_app
from wm_jax.serving.choice import Choice, check_slots, open_choice
from wm_jax.serving.config import ServeConfig, compile_cache_dir
from wm_jax.serving.engine import use_compile_cache
from wm_jax.serving.server import bind, make_server
from wm_jax.serving.service import Service

PORTS = 100
LOOK_S = 0.05
SAVE_S = 30.0
"""What writing all sessions may take when a server stops."""


class Replica:
    """A server in the background, with its heart.

    Args:
      name: Never used twice in a cluster.
      node: Name of the machine, for `drain`.
      host: By which players and the gateway reach it.
      beat: As `Heart` wants it.
      leave: Told once, after the last session was let go.
    """

    def __init__(
        self, choice: Choice, server: ServeConfig, scale: ScaleConfig, name: str, node: str, host: str,
        beat: Callable[[Beat], Orders], leave: Callable[[], None],
    ) -> None:  # fmt: skip
        config = replica_config(server, scale)
        use_compile_cache(compile_cache_dir(config))
        opened = open_choice(choice)
        check_slots(opened, config.slots)
        app = make_app(config, opened.world, opened.params, opened.prompts, opened.artifact)
        self.name = name
        self._service: Service = app.state.service
        self._server = make_server(config, app)
        self._socket = _listen(config)
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, name="server")
        self._leave = leave
        identity = (name, self.url, node, os.getpid())
        self._heart = Heart(identity, self._service, beat, self._begin_to_drain, scale.beat_s, scale.lease_s)

    def start(self) -> None:
        """Serves, and returns once everything is compiled: a rolling update waits for that before it stops the next one.

        Raises:
          RuntimeError: the world cannot be compiled, or the server ended.
        """
        self._thread.start()
        while self._service.loop is None and self._thread.is_alive():
            time.sleep(LOOK_S)
        while not self._service.batcher.stage.is_ready:
            self.check()
            time.sleep(LOOK_S)
        self._heart.start()

    def check(self) -> None:
        """Passes while it can serve.

        Raises:
          RuntimeError: it cannot; says why.
        """
        failure = self._service.batcher.stage.failure
        if failure is not None:
            raise RuntimeError(f"the world of replica {self.name} failed: {failure}")
        if self._service.batcher.is_stuck:
            raise RuntimeError(f"the device of replica {self.name} does not answer any more")
        if not self._thread.is_alive():
            raise RuntimeError(f"the server of replica {self.name} has ended")

    def stop(self) -> None:
        """Lets the players go, writes their sessions, ends."""
        if self._thread.is_alive():
            self._begin_to_drain()
            self._thread.join(self._service.config.drain_s + SAVE_S)

    def _serve(self) -> None:
        """Until it is told to stop; the heart ends first, so that no late beat brings back who has left."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
            self._heart.stop()
            self._leave()

    def _begin_to_drain(self) -> None:
        loop = self._service.loop
        if loop is not None and not loop.is_closed():
            self._server.drain(loop)


def _listen(config: ServeConfig) -> socket.socket:
    """A socket on the configured port, or on the next free one of a hundred; listens at once, so that it is ours.

    Raises:
      OSError: none is free.
    """
    last = config.port + (PORTS if config.port else 1)
    for port in range(config.port, last):
        try:
            sock = bind(dataclasses.replace(config, port=port))
        except OSError:
            continue
        try:
            sock.listen()
        except OSError:
            sock.close()
            continue
        return sock
    raise OSError(f"no port of {config.host}:{config.port} to {last - 1} is free; try another --media-port")
