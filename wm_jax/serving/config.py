"""How a world is served: address, slots, limits and patience, each with its default."""

import dataclasses
import ipaddress
import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

ICE_SERVER = re.compile(
    r"(?P<scheme>stun|turns?):((?P<username>[^:@]+):(?P<credential>[^@]+)@)?(?P<host>[^:@?,<>]+(:\d+)?(\?transport=(udp|tcp))?)"
)
LogKind = Literal["console", "json"]


class ServeConfigError(ValueError):
    """A server that would be unsafe or impossible; the message names the setting and the way out."""


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Everything about a server that is not the world.

    Attributes:
      host: Address to listen on. Anything but this machine itself needs `auth`.
      port: TCP port; 0 lets the system choose a free one.
      slots: Players at once: the rows of the one batched world. Each row costs time in every frame, so a CPU that
        plays alone is fastest with 1.
      ladder: Whether there are programs for fewer players than slots as well (1, 2, 4, ...), so that few wait less. Each
        costs a compile at the start; one whose frames would differ by a bit from those of all slots is not used.
      queue: Players who may wait for a slot once all are taken; more are sent away.
      fps: Frames a second of realtime sessions; None: as many as the world was made for. Where the device is too slow all
        get evenly fewer.
      auth: Secret that a client must show (`Authorization: Bearer ...`) to open a session; None on this machine only.
      allow_origins: Web pages of other sites that may play, as "https://host[:port]". The served page always may.
      cache_dir: Where compiled worlds are kept between starts; None: a folder of this user's own.
      credit_window: Frames that may be on their way to a client that has not acknowledged them.
      quality: JPEG quality, 1 to 100, where the client does not say.
      token_s: Seconds in which a new session must be connected.
      linger_s: Seconds a session outlives its dropped connection, where the client does not say.
      spectators: Sockets that may watch one session, beside its player's.
      idle_s: Seconds of silence after which a client is sent away.
      log: How log lines look on standard error: for people, or a JSON object each.
      drain_s: Seconds players get to leave when the server is told to stop.
      max_message_bytes: The longest message a client may send over the WebSocket.
      max_body_bytes: The longest body of an HTTP request.
      messages_per_s: Messages a client may send, on average.
      burst: Messages a client may send at once.
      max_step_frames: Frames one `step` may ask for.
      history: States of a session that are kept, to go back to, to fork from and to begin again at after a failed frame.
      history_every: Frames from one kept state to the next.
      history_mb: What those of one session may occupy on the device, the newest of them; the others are moved to the host.
      history_host_mb: What those of one session may occupy on the host, and those of all at most half of its memory; a world
        with large states keeps fewer.
      history_disk: With `snapshots`: states with which a session was written there before, one every `snapshot_every_s`, that
        stay to go back to, also in another process. They are the first to make room.
      snapshots: Folder in which sessions outlive this process; None: they end with it. Whoever reads it can read what
        they dreamt and go on with it.
      resume_url: Where players are told to come back to when this server stops, if others serve the same world:
        "https://host[:port]"; None: to this one.
      snapshot_every_s: Seconds from one writing of a session to the next.
      snapshot_mb: What that folder may hold; the oldest make room, snapshots before sleeping sessions. A session in every
        slot must fit; where several servers share the folder, one in every slot of all: those that are played are never removed.
      snapshot_age_s: Seconds after which what is written there is removed.
      ice_servers: Over WebRTC, for players behind a NAT: "stun:host:port", "turn:user:password@host:port". Who may play is
        told them. None by default: then players must reach this machine's own addresses, by UDP.
      record_frames: The newest frames of a session that a recording holds: the keys of each are kept, no pixels. 0: there are
        no recordings.
      rollouts: Offline rollouts that may wait or run at once.
      rollout_frames: Frames that the scripts of one may have together.
      rollout_mb: What the recordings of finished ones may occupy on the disk; the oldest make room.
      rollout_age_s: Seconds after which they are removed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    slots: int = 1
    ladder: bool = True
    queue: int = 8
    fps: float | None = None
    auth: str | None = None
    allow_origins: tuple[str, ...] = ()
    cache_dir: str | None = None
    credit_window: int = 2
    quality: int = 90
    token_s: float = 60.0
    linger_s: float = 60.0
    spectators: int = 8
    idle_s: float = 300.0
    log: LogKind = "console"
    drain_s: float = 3.0
    max_message_bytes: int = 65_536
    max_body_bytes: int = 1_048_576
    messages_per_s: float = 240.0
    burst: int = 240
    max_step_frames: int = 256
    history: int = 64
    history_every: int = 15
    history_mb: float = 64.0
    history_host_mb: float = 1024.0
    history_disk: int = 24
    resume_url: str | None = None
    snapshots: str | None = None
    snapshot_every_s: float = 5.0
    snapshot_mb: float = 4096.0
    snapshot_age_s: float = 86_400.0
    ice_servers: tuple[str, ...] = ()
    record_frames: int = 18_000
    rollouts: int = 8
    rollout_frames: int = 18_000
    rollout_mb: float = 1024.0
    rollout_age_s: float = 3600.0

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ServeConfigError(f"slots is {self.slots}; a server needs at least 1")
        if self.queue < 0:
            raise ServeConfigError(f"queue is {self.queue}; 0 lets nobody wait")
        if self.fps is not None and not 0.1 <= self.fps <= 1000:
            raise ServeConfigError(f"fps is {self.fps}; a media clock runs at 0.1 to 1000 frames a second")
        if not 1 <= self.quality <= 100:
            raise ServeConfigError(f"quality is {self.quality}; JPEG knows 1 to 100")
        if not 0 <= self.port <= 65_535:
            raise ServeConfigError(f"port is {self.port}; there are 0 (any free one) to 65535")
        if not self.messages_per_s > 0:
            raise ServeConfigError(f"messages_per_s is {self.messages_per_s}; it must be more than 0")
        if self.history < 0 or self.history_every < 1 or not min(self.history_mb, self.history_host_mb) >= 0:
            raise ServeConfigError(
                f"history is {self.history}, every {self.history_every} frames, {self.history_mb} MB on the device, "
                f"{self.history_host_mb} MB on the host: they must be at least 0, 1, 0 and 0"
            )
        if self.history_disk < 0:
            raise ServeConfigError(f"history_disk is {self.history_disk}; 0 leaves nothing there to go back to")
        if not self.snapshot_every_s > 0 or not self.snapshot_mb > 0 or not self.snapshot_age_s > 0:
            raise ServeConfigError("snapshot_every_s, snapshot_mb and snapshot_age_s must be more than 0")
        for server in self.ice_servers:
            parse_ice_server(server)
        if self.spectators < 0:
            raise ServeConfigError(f"spectators is {self.spectators}; 0 lets nobody watch")
        if self.record_frames < 0 or self.rollouts < 0:
            raise ServeConfigError(
                f"record_frames is {self.record_frames}, rollouts {self.rollouts}; 0 is none, fewer there are not"
            )
        if self.rollout_frames < 1 or not self.rollout_mb > 0 or not self.rollout_age_s > 0:
            raise ServeConfigError("rollout_frames, rollout_mb and rollout_age_s must be more than 0")
        if self.credit_window < 1:
            raise ServeConfigError(f"credit_window is {self.credit_window}; without 1 frame on its way nothing moves")
        if not is_loopback(self.host) and not self.auth:
            raise ServeConfigError(
                f"host {self.host} can be reached from other machines and auth is not set: pass --auth SECRET, "
                "or listen on 127.0.0.1"
            )


class IceServer(NamedTuple):
    """A server that finds a way for WebRTC: STUN tells us our address, TURN carries our packets."""

    url: str
    username: str | None
    credential: str | None


def parse_ice_server(text: str) -> IceServer:
    """The server of one `ice_servers` entry.

    Raises:
      ServeConfigError: it is not written as one.
    """
    found = ICE_SERVER.fullmatch(text)
    if found is None or (found["scheme"] != "stun") != (found["username"] is not None):
        raise ServeConfigError(
            f'ice_servers has {text!r}; it takes "stun:host:port" and "turn:user:password@host:port"'
        )
    return IceServer(f"{found['scheme']}:{found['host']}", found["username"], found["credential"])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def compile_cache_dir(config: ServeConfig) -> Path:
    """The folder of compiled worlds: the one asked for, or this user's own cache."""
    if config.cache_dir is not None:
        return Path(config.cache_dir).expanduser()
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "wm_jax" / "compiled"
