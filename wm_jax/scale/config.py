"""How many servers there are, what each of them needs, and how long it may be silent."""

import dataclasses
import json
from collections.abc import Mapping

from wm_jax.serving.config import ServeConfig, is_loopback


class ScaleError(ValueError):
    """A cluster that cannot be; the message names the setting and the way out."""


@dataclasses.dataclass(frozen=True)
class ScaleConfig:
    """Everything about many servers that is not about one of them.

    Attributes:
      replicas: Servers of this world; each has one device, the first that JAX finds there, and `slots` players.
      max_replicas: More of them where players find too few free slots; None: never more than `replicas`.
      spare_slots: Free slots there should always be, for the next player; what `max_replicas` is used for.
      up_s: Seconds for which more replicas must be wanted until there are more.
      down_s: Seconds for which fewer must be enough until one goes.
      address: An existing Ray cluster ("auto", "ray://head:10001"); None: start one on this machine.
      num_cpus: CPUs that Ray counts for one replica.
      num_gpus: GPUs that Ray counts for one replica, which then sees no other; 0: it takes the first of its machine.
      resources: What else one replica needs, as JSON: '{"TPU": 1}', '{"neuron_cores": 1}'.
      ray_cpus: CPUs of the cluster that is started here; None: all of this machine.
      ray_memory_mb: Ray's shared memory in the cluster that is started here. Nothing large is kept there.
      media_host: The name by which players reach a replica's machine; None: its address in the cluster.
      media_port: First TCP port of the replicas, each takes the next free one of a hundred; 0: any free one.
      media_url: Where a proxy stands between: the address of a replica's sockets, as "wss://play.example/{host}/{port}".
      is_proxied: Sockets go through the gateway as well, for networks that let one port through; every message takes some
        milliseconds longer, and the gateway's process carries every frame.
      beat_s: Seconds from one report of a replica to the next.
      lease_s: Seconds after which a silent replica has lost its sessions. It stops them by itself then.
    """

    replicas: int = 2
    max_replicas: int | None = None
    spare_slots: int = 1
    up_s: float = 5.0
    down_s: float = 300.0
    address: str | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    resources: str = "{}"
    ray_cpus: int | None = None
    ray_memory_mb: int = 100
    media_host: str | None = None
    media_port: int = 0
    media_url: str | None = None
    is_proxied: bool = False
    beat_s: float = 0.5
    lease_s: float = 5.0

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ScaleError(f"replicas is {self.replicas}; there must be at least 1")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ScaleError(f"max_replicas is {self.max_replicas}, fewer than the {self.replicas} replicas")
        if not 0 < self.beat_s <= self.lease_s / 3:
            raise ScaleError(
                f"beat_s is {self.beat_s:g} and lease_s {self.lease_s:g}: a lease must outlive three beats, or one that is late "
                "costs every session of the replica"
            )
        if not 0 <= self.media_port <= 65_436:
            raise ScaleError(f"media_port is {self.media_port}; a hundred ports from there must be below 65536")
        if self.media_url is not None and not self.media_url.startswith(("ws://", "wss://")):
            raise ScaleError(f"media_url is {self.media_url!r}; it must begin with ws:// or wss://")
        if self.media_url is not None and self.is_proxied:
            raise ScaleError("media_url and is_proxied are two ways to a replica's socket: choose one")
        self.needs()

    def needs(self) -> dict[str, float]:
        """What `resources` says.

        Raises:
          ScaleError: it is no JSON object of numbers.
        """
        try:
            found = json.loads(self.resources)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(type(value) in (int, float) for value in found.values()):
            raise ScaleError(
                f"resources is {self.resources!r}; it must be a JSON object of numbers, as '{{\"TPU\": 1}}'"
            )
        return {str(name): float(value) for name, value in found.items()}

    def lacking(self, offered: Mapping[str, float]) -> str | None:
        """What a cluster has too little of for all replicas, and the way out; None: it has enough."""
        flags = {"CPU": "--num-cpus", "GPU": "--num-gpus"}
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.needs()}
        short = [name for name, each in wanted.items() if offered.get(name, 0.0) < self.replicas * each]
        if not short:
            return None
        told = ", ".join(
            f"{self.replicas * wanted[name]:g} {name} (there: {offered.get(name, 0.0):g})" for name in short
        )
        ways = " or ".join(dict.fromkeys(flags.get(name, "--resources") for name in short))
        return f"{self.replicas} replicas want {told}, and some would never start: lower --replicas, or {ways}"


def replica_config(server: ServeConfig, scale: ScaleConfig) -> ServeConfig:
    """How one server of many is served: on a port of its own, for pages that came from the gateway.

    Raises:
      ScaleError: players reach the gateway by a name that nobody told.
    """
    if server.resume_url is None and not is_loopback(server.host):
        raise ScaleError(
            f"host {server.host} says where the gateway listens, not what players call it: pass --resume-url https://..., "
            "the address they type"
        )
    if server.port == 0:
        raise ScaleError("port is 0; players must know where the gateway is: pass --port, as 8000")
    base = server.resume_url or f"http://{server.host}:{server.port}"
    own = [f"http://{name}:{server.port}" for name in ("127.0.0.1", "localhost")] if is_loopback(server.host) else []
    origins = dict.fromkeys([*server.allow_origins, base.rstrip("/"), *own])
    return dataclasses.replace(server, port=scale.media_port, resume_url=base, allow_origins=tuple(origins))
