"""The cluster on Ray: what Ray Serve supervises, places, counts and updates. The only file that knows Ray's names."""

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

import wm_jax
from wm_jax.ports.published import Published
from wm_jax.scale.config import ScaleConfig, ScaleError, replica_config
from wm_jax.scale.directory import Beat, Directory, Orders
from wm_jax.scale.heart import DirectoryLost
from wm_jax.scale.replica import SAVE_S, Replica
from wm_jax.serving import logs
from wm_jax.serving.choice import Choice
from wm_jax.serving.config import ServeConfig, is_loopback
from wm_jax.serving.protocol import ErrorCode, Refusal
from wm_jax.serving.server import bind

# Ray counts its users over the network unless it is told not to; it reads this where it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

log = logging.getLogger(__name__)

NAME = "wm_jax"
DIRECTORY = "directory"
HEALTH_S = 2.0
GATEWAY_REQUESTS = 1000
"""That the gateway answers at the same time; its answers wait for replicas and cost it little."""


def require_ray() -> None:
    """Passes where Ray Serve is installed.

    Raises:
      ScaleError: it is not; says how.
    """
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ScaleError(f"Ray Serve is not installed ({error}): pip install -e '.[scale]'") from None
    assert ray.__version__ and serve


class Engine:
    """One replica, as Ray Serve starts, asks and stops it."""

    def __init__(self, choice: Choice, server: ServeConfig, scale: ScaleConfig) -> None:
        import ray
        from ray import serve

        logs.configure(server.log)
        name = serve.get_replica_context().replica_id.unique_id
        node = ray.util.get_node_ip_address()
        host = scale.media_host or ("127.0.0.1" if is_loopback(server.host) else node)
        self._directory = directory(scale.lease_s)
        self._name = name
        self._answer_s = scale.lease_s / 3
        self._replica = Replica(choice, server, scale, name, node, host, self._beat, self._leave)
        self._replica.start()

    def check_health(self) -> None:
        """Ray Serve replaces a replica of which this fails."""
        self._replica.check()

    def __del__(self) -> None:
        """Ray Serve calls this before it ends a replica: in a rolling update, when there are too many, when all stop."""
        replica = self.__dict__.pop("_replica", None)
        if replica is not None:
            replica.stop()

    def _beat(self, beat: Beat) -> Orders:
        import ray
        from ray.exceptions import RayError

        try:
            return ray.get(self._directory.beat.remote(beat), timeout=self._answer_s)
        except RayError as error:
            raise DirectoryLost(str(error).splitlines()[0]) from None

    def _leave(self) -> None:
        import ray
        from ray.exceptions import RayError

        # Where the directory is gone as well, the end of the lease says the same.
        with contextlib.suppress(RayError):
            ray.get(self._directory.leave.remote(self._name), timeout=self._answer_s)


def directory(lease_s: float) -> Any:
    """The one directory of the cluster, an actor that outlives whoever asked for it first."""
    import ray

    options = dict(name=DIRECTORY, namespace=NAME, lifetime="detached", get_if_exists=True)
    made = ray.remote(Directory).options(**options, num_cpus=0, max_restarts=-1, max_task_retries=3)
    return made.remote(lease_s)


def application(choice: Choice, server: ServeConfig, scale: ScaleConfig) -> Any:
    """What Ray Serve runs: a gateway, and replicas behind it."""
    from ray import serve
    from ray.exceptions import RayError

    from wm_jax.scale.gateway import make_gateway

    def build() -> Any:
        logs.configure(server.log)
        known = directory(scale.lease_s)

        async def ask(method: str, *arguments: Any) -> Any:
            try:
                return await getattr(known, method).remote(*arguments)
            except RayError as error:
                log.warning("the directory does not answer: %s", error)
                text = "the directory of sessions is being started again"
                raise Refusal(ErrorCode.FULL, text, retry_after_ms=1_000) from None

        log.info("gateway begins", extra={"replicas": scale.replicas})
        return make_gateway(server, ask, scale)

    replica_config(server, scale)  # refuses here, not in a replica that would be started again and again
    environment = {"env_vars": _environment()}
    gateway = serve.deployment(
        serve.ingress(build)(),
        name="gateway",
        max_ongoing_requests=GATEWAY_REQUESTS,
        ray_actor_options={"num_cpus": 0, "runtime_env": environment},
    )
    engine = serve.deployment(
        Engine,
        name="engine",
        ray_actor_options={
            "num_cpus": scale.num_cpus,
            "num_gpus": scale.num_gpus,
            "resources": scale.needs(),
            "runtime_env": environment,
        },
        graceful_shutdown_timeout_s=server.drain_s + SAVE_S + HEALTH_S,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=HEALTH_S,
        **_count(scale),
    )
    return gateway.bind(engine.bind(choice, server, scale))


def build(args: dict[str, Any]) -> Any:
    """The same for a RayService of Kubernetes: `import_path: wm_jax.scale.cluster:build`, and settings under `args`.

    The secret may come from the environment, as WM_JAX_AUTH, so that it does not stand in a manifest.

    Raises:
      ScaleError: `world` is missing, there is no such setting, or it does not take this value.
    """
    given = {"auth": os.environ.get("WM_JAX_AUTH"), **args}
    if "world" not in given:
        raise ScaleError("args of the RayService has no `world`: the folder of the world to serve")
    parts: dict[type[Any], dict[str, Any]] = {ServeConfig: {}, ScaleConfig: {}, Published: {}, Choice: {}}
    for name, value in given.items():
        owner = next((kind for kind in parts if name in {field.name for field in dataclasses.fields(kind)}), None)
        owner = None if name == "published" else owner  # its settings stand beside the others, as in `--help`
        if owner is None:
            raise ScaleError(
                f"args of the RayService has {name!r}, which is no setting; python -m wm_jax.scale --help lists them"
            )
        parts[owner][name] = value
    parts[Choice]["published"] = parts.pop(Published)
    try:
        choice = pydantic.TypeAdapter(Choice).validate_python(parts[Choice])
        server = pydantic.TypeAdapter(ServeConfig).validate_python(parts[ServeConfig])
        scale = pydantic.TypeAdapter(ScaleConfig).validate_python(parts[ScaleConfig])
    except pydantic.ValidationError as error:
        wrong = "; ".join(_told(one) for one in error.errors())
        raise ScaleError(f"args of the RayService: {wrong}; python -m wm_jax.scale --help lists the settings") from None
    return application(choice, server, scale)


def _told(wrong: Any) -> str:
    """What pydantic found, in a line; without the secret."""
    if wrong["type"] == "value_error":  # of a setting's own check, which names it and its value
        return str(wrong["ctx"]["error"])
    name = wrong["loc"][-1]
    return f"{name}: {wrong['msg']}" if name == "auth" else f"{name} is {wrong['input']!r}: {wrong['msg']}"


def start(server: ServeConfig, scale: ScaleConfig) -> None:
    """Starts a cluster on this machine, or joins the one that is named, and has Ray Serve listen on the gateway's address.

    Raises:
      OSError: the address is taken or not this machine's, or no cluster answers at that address.
      ScaleError: this machine has too little for so many replicas, or no other machine could reach them.
    """
    import ray
    from ray import serve

    os.environ.update(_environment())
    if scale.address is None:
        bind(server).close()  # refuses a taken address in our own words, before a cluster is started for it
        ray.init(
            num_cpus=scale.ray_cpus,
            include_dashboard=False,
            object_store_memory=scale.ray_memory_mb * 1_000_000,
            namespace=NAME,
            logging_level=logging.WARNING,
            log_to_driver=False,
            _node_ip_address="127.0.0.1" if is_loopback(server.host) else None,
        )
    else:
        ray.init(address=scale.address, namespace=NAME, logging_level=logging.WARNING, log_to_driver=False)
    try:
        machines = sum(node["Alive"] for node in ray.nodes())
        check_cluster(server, scale, machines, ray.cluster_resources())
    except ScaleError:
        ray.shutdown()  # and nothing else: on a cluster that was joined something may be served
        raise
    serve.start(proxy_location="HeadOnly", http_options={"host": server.host, "port": server.port})


def check_cluster(server: ServeConfig, scale: ScaleConfig, machines: int, offered: Mapping[str, float]) -> None:
    """Passes where all replicas could start and be reached; on a cluster that may yet grow, too little is only told.

    Args:
      machines: How many it has.
      offered: What Ray counts on all of them.

    Raises:
      ScaleError: they could not.
    """
    if machines > 1 and is_loopback(server.host):
        raise ScaleError(
            f"this cluster has {machines} machines, and host {server.host} can be reached from one: pass --host 0.0.0.0 "
            "--auth SECRET --resume-url https://..., the address that players type"
        )
    lacking = scale.lacking(offered)
    if lacking is not None and scale.address is None:
        raise ScaleError(lacking)
    if lacking is not None:
        log.warning("%s, or wait for machines that come", lacking)


def deploy(choice: Choice, server: ServeConfig, scale: ScaleConfig) -> None:
    """Runs the application, and waits until every replica plays; where it runs already, replaces replica after replica.

    Raises:
      RuntimeError: a replica cannot be started.
    """
    from ray import serve

    serve.run(application(choice, server, scale), name=NAME, route_prefix="/")


def stop(scale: ScaleConfig) -> None:
    """Lets all players go and ends the application; with it the cluster, where it was started here."""
    import ray
    from ray import serve

    if not ray.is_initialized():
        return  # it never came so far
    if scale.address is None:
        serve.shutdown()
        ray.shutdown()
        return
    serve.delete(NAME)
    ray.kill(directory(scale.lease_s))
    ray.shutdown()


def drain(target: str | None, address: str, patience_s: float) -> list[str]:
    """Has every replica of a node, or one replica, let its players go; returns when they have, with their names.

    Raises:
      ConnectionError: no cluster answers at that address.
      TimeoutError: they are still there after that time.
    """
    import ray

    ray.init(address=address, namespace=NAME, logging_level=logging.WARNING, log_to_driver=False)
    known = ray.get_actor(DIRECTORY, namespace=NAME)
    named: list[str] = ray.get(known.drain.remote(target or ray.util.get_node_ip_address()))
    until = time.monotonic() + patience_s
    while left := {one.beat.replica for one in ray.get(known.replicas.remote())} & set(named):
        if time.monotonic() > until:
            raise TimeoutError(f"{', '.join(sorted(left))} did not let go within {patience_s:g} s")
        time.sleep(0.2)
    return named


def _count(scale: ScaleConfig) -> dict[str, Any]:
    """The number of replicas, fixed or between two limits."""
    if scale.max_replicas is None or scale.max_replicas == scale.replicas:
        return {"num_replicas": scale.replicas}
    policy = {
        "policy_function": "wm_jax.scale.autoscale:SlotPolicy",
        "policy_kwargs": {"spare_slots": scale.spare_slots, "lease_s": scale.lease_s},
    }
    limits = {"min_replicas": scale.replicas, "max_replicas": scale.max_replicas, "initial_replicas": scale.replicas}
    delays = {"upscale_delay_s": scale.up_s, "downscale_delay_s": scale.down_s}
    return {"autoscaling_config": {**limits, **delays, "policy": policy}}


def _environment() -> dict[str, str]:
    """What Ray's workers must know to be as this process is: where wm_jax lies, and how JAX was set up here."""
    room = str(Path(wm_jax.__file__).resolve().parents[1])
    paths = [room, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    own = {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))}
    return {**own, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "RAY_USAGE_STATS_ENABLED": "0"}
