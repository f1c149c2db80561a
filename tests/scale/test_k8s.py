"""The manifests of docs/k8s: their fields, and that the code they are for reads every setting in them."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from wm_jax.ports.published import Published
from wm_jax.scale import cluster
from wm_jax.scale.config import ScaleConfig, ScaleError, replica_config
from wm_jax.serving.choice import Choice
from wm_jax.serving.config import ServeConfig

REPLICAS_OF_A_POD = {"gpu": 1, "tpu": 1, "trainium": 2}
POOLS = {"gpu": "nvidia.com/gpu", "tpu": "google.com/tpu", "trainium": "aws.amazon.com/neuron"}


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "docs" / "k8s"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def chosen(manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Choice, ServeConfig, ScaleConfig]:
    """What the cluster would be asked for."""
    monkeypatch.setenv("WM_JAX_AUTH", "secret")
    monkeypatch.setattr(cluster, "application", lambda *parts: parts)
    (application,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    assert application["import_path"] == "wm_jax.scale.cluster:build" and application["route_prefix"] == "/"
    return cluster.build(application["args"])


def test_every_document_is_named_and_of_a_known_kind(folder):
    known = {
        ("v1", "PersistentVolumeClaim"), ("v1", "ConfigMap"), ("v1", "Service"), ("apps/v1", "Deployment"),
        ("networking.k8s.io/v1", "NetworkPolicy"), ("ray.io/v1", "RayService"),
    }  # fmt: skip
    found = [(path.name, one) for path in sorted(folder.glob("*.yaml")) for one in documents(path)]
    assert len(found) == 9 and all(
        (one["apiVersion"], one["kind"]) in known and one["metadata"]["name"] for _, one in found
    )
    (claim,) = [one for _, one in found if one["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"] and claim["spec"]["resources"]["requests"]["storage"]
    assert claim["spec"]["storageClassName"], "the default one of most clusters gives no ReadWriteMany"


@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_has_what_kuberay_and_the_servers_need(folder, pool, monkeypatch):
    (manifest,) = documents(folder / f"{pool}.yaml")
    choice, server, scale = chosen(manifest, monkeypatch)
    spec = manifest["spec"]["rayClusterConfig"]
    (group,) = spec["workerGroupSpecs"]
    head, pod = spec["headGroupSpec"]["template"]["spec"], group["template"]["spec"]
    (container,) = pod["containers"]
    # Fields without which KubeRay takes no RayService.
    assert spec["rayVersion"] and group["groupName"] and isinstance(group["rayStartParams"], dict)
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert head["containers"][0]["image"] == container["image"]
    # A device each: as many replicas as the accelerators of all pods, which cannot be overcommitted.
    most = scale.max_replicas
    assert (group["minReplicas"] * REPLICAS_OF_A_POD[pool], group["maxReplicas"] * REPLICAS_OF_A_POD[pool]) == (
        scale.replicas,
        most,
    )
    limits, requests = container["resources"]["limits"], container["resources"]["requests"]
    assert int(limits[POOLS[pool]]) == int(requests[POOLS[pool]]) >= 1
    # Everybody sees the folder; nobody else reads the secret.
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    for path in (server.snapshots, server.cache_dir):
        assert any(str(path).startswith(mount + "/") for mount in mounted)
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    assert spec["authOptions"] == {"mode": "token"}, "nobody else speaks to Ray"
    assert head["securityContext"]["fsGroup"] == pod["securityContext"]["fsGroup"], "both write to the folder"
    assert server.auth == "secret" and "secret" not in manifest["spec"]["serveConfigV2"]
    assert {entry["name"] for entry in container["env"]} >= {"WM_JAX_AUTH", "RAY_USAGE_STATS_ENABLED"}
    # The drain fits into the time that the kubelet gives.
    assert "wm_jax.scale.drain" in " ".join(container["lifecycle"]["preStop"]["exec"]["command"])
    assert pod["terminationGracePeriodSeconds"] > 60 + server.drain_s
    assert container["ports"][0]["containerPort"] == scale.media_port == replica_config(server, scale).port
    assert choice.world == Path("/worlds/coinrun") and choice.device in {"cuda", "tpu", "neuron"}


def test_ray_counts_the_accelerators_that_the_pod_has(folder, monkeypatch):
    (gpu,), (tpu,), (trainium,) = (documents(folder / f"{pool}.yaml") for pool in POOLS)
    assert chosen(gpu, monkeypatch)[2].num_gpus == 1
    group = tpu["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    pod = group["template"]["spec"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = int(pod["containers"][0]["resources"]["limits"]["google.com/tpu"])
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] and group["numOfHosts"] * chips == rows * columns
    assert chosen(tpu, monkeypatch)[2].needs() == {"TPU": chips} == {"TPU": 1}, "a server computes on one"
    group = trainium["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    offered = json.loads(json.loads(group["rayStartParams"]["resources"]))
    needed = chosen(trainium, monkeypatch)[2].needs()
    assert needed == {"neuron_cores": 1} and offered == {"neuron_cores": REPLICAS_OF_A_POD["trainium"]}


def test_the_proxy_lets_the_sockets_through_that_tickets_name_and_nothing_else(folder, monkeypatch):
    (gpu,) = documents(folder / "gpu.yaml")
    _, server, scale = chosen(gpu, monkeypatch)
    assert scale.media_url is not None and server.resume_url is not None
    config = next(one for one in documents(folder / "media.yaml") if one["kind"] == "ConfigMap")["data"]["default.conf"]
    (pattern,) = re.findall(r"location ~ (\S+) \{", config)
    compiled = re.compile(pattern.replace("(?<", "(?P<"))
    base = scale.media_url.replace("{host}", "10.8.0.7").replace("{port}", str(scale.media_port))
    path = base.removeprefix(server.resume_url.replace("https", "wss")) + "/v1/sessions/a-b_C9/ws"
    found = compiled.match(path)
    assert found is not None and found.groupdict() == {
        "pod": "10.8.0.7",
        "port": "9000",
        "socket": "/v1/sessions/a-b_C9/ws",
    }
    for other in (
        "/media/169.254.169.254/9000/v1/sessions/a/ws",
        "/media/10.8.0.7/6379/v1/sessions/a/ws",
        "/media/10.8.0.7/9000/metrics",
    ):
        assert compiled.match(other) is None


def test_who_reaches_replicas_and_head(folder, monkeypatch):
    (gpu,) = documents(folder / "gpu.yaml")
    _, _, scale = chosen(gpu, monkeypatch)
    policies = [one["spec"] for one in documents(folder / "media.yaml") if one["kind"] == "NetworkPolicy"]
    media = {"podSelector": {"matchLabels": {"app": "wm-jax-media"}}}
    cluster_itself = {"podSelector": {"matchExpressions": [{"key": "ray.io/cluster", "operator": "Exists"}]}}
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    operator = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay"}}}
    proxy, dashboard = ({"protocol": "TCP", "port": port} for port in (8000, 8265))
    sockets = {"protocol": "TCP", "port": scale.media_port, "endPort": scale.media_port + 99}
    found = {
        tuple(policy["podSelector"]["matchLabels"].values()): [
            (who, rule.get("ports", "all")) for rule in policy["ingress"] for who in rule["from"]
        ]
        for policy in policies
    }
    assert found == {
        ("wm-jax-replica",): [
            (media, [proxy, sockets]),
            (cluster_itself, "all"),
            (monitoring, [proxy, sockets]),
        ],
        ("head",): [
            (cluster_itself, "all"),
            (media, [proxy]),
            (monitoring, [proxy]),
            (operator, [dashboard, proxy]),
        ],
    }
    assert gpu["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["metadata"]["labels"] == {
        "app": "wm-jax-replica"
    }


def test_the_image_has_the_ray_of_the_manifests(folder):
    image = re.search(r"^FROM rayproject/ray:([\d.]+)-", (folder / "Dockerfile").read_text(), re.MULTILINE)
    assert image is not None
    for pool in POOLS:
        (manifest,) = documents(folder / f"{pool}.yaml")
        assert manifest["spec"]["rayClusterConfig"]["rayVersion"] == image[1]


def test_settings_that_are_none_are_refused(monkeypatch):
    monkeypatch.setattr(cluster, "application", lambda *parts: parts)
    with pytest.raises(ScaleError, match="no `world`"):
        cluster.build({})
    with pytest.raises(ScaleError, match="'slot'"):
        cluster.build({"world": "x", "slot": 3})
    with pytest.raises(ScaleError, match="'published'"):
        cluster.build({"world": "x", "published": {"steps": 5}})
    for name, value in {
        "eight_bits": "int3",
        "solver": "euler",
        "slots": "many",
        "world": None,
        "allow_origins": 3,
    }.items():
        with pytest.raises(ScaleError, match=f"{name} is {value!r}"):
            cluster.build({"world": "x", name: value})
    for name in ("slots", "replicas"):
        with pytest.raises(ScaleError, match=f"{name} is 0; ") as told:
            cluster.build({"world": "x", "auth": "a secret", name: 0})
        assert "a secret" not in str(told.value)
    with pytest.raises(ScaleError, match="auth: ") as told:
        cluster.build({"world": "x", "auth": 12345678})
    assert "12345678" not in str(told.value)
    choice, server, scale = cluster.build(
        {"world": "x", "slots": 3, "replicas": 4, "allow_origins": ["https://a"], "steps": 5, "weights": "/weights",
         "prompt": None}
    )  # fmt: skip
    assert (choice.world, choice.published, server.slots, server.allow_origins, scale.replicas) == (
        Path("x"),
        Published(steps=5, weights=Path("/weights")),
        3,
        ("https://a",),
        4,
    )
    assert dataclasses.replace(server, slots=1, allow_origins=()) == ServeConfig()


def test_without_ray_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ScaleError, match=r"pip install -e '\.\[scale\]'"):
        cluster.require_ray()
