"""The directory of replicas and sessions, with a clock of its own and no cluster."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wm_jax.ports.published import Published
from wm_jax.scale import cluster
from wm_jax.scale.__main__ import ScaleArgs, resolved
from wm_jax.scale.autoscale import wanted
from wm_jax.scale.cluster import check_cluster
from wm_jax.scale.config import ScaleConfig, ScaleError, replica_config
from wm_jax.scale.directory import ORPHAN_S, Address, Beat, Directory, Load, Orders
from wm_jax.serving.config import ServeConfig

LEASE_S = 5.0
IDLE = Load(slots=4, free_slots=4, waiting=0, fps=30.0, wanted_fps=30.0, missed=0, is_ready=True, is_draining=False)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(clock: Clock) -> Directory:
    return Directory(LEASE_S, clock)


def beat(name: str, epochs: dict[str, int] | None = None, saved: dict[str, int] | None = None, **load) -> Beat:
    epochs = epochs or {}
    load = {"free_slots": 4 - len(epochs), **load}
    return Beat(name, f"http://{name}", f"node-{name}", 1, dataclasses.replace(IDLE, **load), epochs, saved or {})


def owner(directory: Directory, session: str) -> str | None:
    found = directory.find(session)
    return None if found is None or found.address is None else found.address.replica


def test_the_next_player_sits_where_most_slots_are_free_and_frames_are_on_time(directory):
    assert directory.place() is None, "nobody is there"
    directory.beat(beat("a", free_slots=2))
    directory.beat(beat("b", free_slots=3))
    directory.beat(beat("starting", is_ready=False))
    directory.beat(beat("leaving", is_draining=True))
    directory.beat(beat("slow", free_slots=4, fps=15.0))
    placed = [address.replica for _ in range(5) if (address := directory.place())]
    assert sorted(placed) == ["a", "a", "b", "b", "b"], "a promised slot is not promised twice"
    assert directory.place().replica == "slow", "fewer frames are better than none"
    assert directory.place(("a", "b", "slow")) is None


def test_a_rollout_is_known_from_its_start_on_and_by_a_new_directory_as_well(directory, clock):
    directory.beat(beat("a", free_slots=4, scripts=3))
    directory.beat(beat("b", free_slots=2))
    assert directory.place_rollout() == Address("b", "http://b") and directory.place_rollout(("b",)) == Address(
        "a", "http://a"
    )
    assert directory.find_rollout("roll") is None
    directory.begun("roll", "b", 3)
    assert directory.place_rollout() == Address("a", "http://a"), "promised until b tells"
    directory.beat(beat("b"))
    assert directory.find_rollout("roll") == Address("b", "http://b"), "begun while that beat was made"
    names = dataclasses.replace(beat("b"), rollouts=("roll",))
    directory.beat(names)
    directory.beat(beat("b"))
    assert directory.find_rollout("roll") is None, "it was named, and is not any more"
    fresh = Directory(LEASE_S, clock)
    assert fresh.is_new()
    fresh.beat(names)
    assert fresh.find_rollout("roll") == Address("b", "http://b")
    clock.now += LEASE_S + 0.1
    assert not fresh.is_new() and fresh.find_rollout("roll") is None and fresh.place_rollout() is None


def test_a_silent_replica_loses_its_sessions_and_another_takes_them_up(directory, clock):
    directory.beat(beat("a", {"s": 0}, {"s": 7}))
    found = directory.find("s")
    assert found is not None and (owner(directory, "s"), found.saved, found.is_leaving) == ("a", 7, False)
    clock.now += LEASE_S + 0.1
    found = directory.find("s")
    assert found is not None and found.address is None and found.saved == 7
    directory.own("s", "b")
    directory.beat(beat("b", {"s": 1}))
    assert directory.beat(beat("a", {"s": 0, "t": 0})) == Orders(stop=("s",)), "it was only slow, and is too late"
    assert (owner(directory, "s"), owner(directory, "t")) == ("b", "a")


def test_two_that_tell_the_same_epoch_wait_for_the_one_who_took_the_session_up(directory):
    directory.beat(beat("a", {"s": 3}))
    directory.beat(beat("b"))
    directory.own("s", "b")
    assert directory.beat(beat("a", {"s": 3})) == Orders(), "b has not yet told its epoch"
    assert owner(directory, "s") == "b"
    assert directory.beat(beat("b", {"s": 4})) == Orders()
    assert directory.beat(beat("a", {"s": 3})).stop == ("s",)


def test_the_higher_epoch_wins_whoever_tells_it_first(directory):
    directory.beat(beat("a", {"s": 2}))
    assert directory.beat(beat("b", {"s": 1})).stop == ("s",)
    assert directory.beat(beat("b", {"s": 3})).stop == ()
    assert directory.beat(beat("a", {"s": 2})).stop == ("s",)


def test_a_directory_started_anew_knows_all_after_one_beat_each(clock):
    anew = Directory(LEASE_S, clock)
    assert anew.find("s") is None
    anew.beat(beat("a", {"s": 5}, {"s": 9}))
    anew.beat(beat("b", {"t": 0}))
    assert {name: (lease.replica, lease.epoch) for name, lease in anew.sessions().items()} == {
        "s": ("a", 5),
        "t": ("b", 0),
    }


def test_a_session_that_ended_is_forgotten_and_one_just_seated_is_not(directory):
    directory.beat(beat("a"))
    directory.own("s", "a")
    directory.beat(beat("a"))  # sent before the session was seated
    assert owner(directory, "s") == "a"
    directory.beat(beat("a", {"s": 0}))
    for _ in range(2):
        directory.beat(beat("a"))
    assert directory.find("s") is None


def test_nothing_is_remembered_for_ever(directory, clock):
    for index in range(100):
        directory.beat(beat(f"r{index}", {f"s{index}": 0}))
        clock.now += LEASE_S + 1
    assert directory.replicas() == []
    clock.now += ORPHAN_S + 1
    directory.beat(beat("last"))
    assert directory.sessions() == {}


def test_nobody_is_sent_to_one_who_does_not_answer_until_it_beats_again(directory):
    directory.beat(beat("a", {"s": 0}))
    directory.lost("a")
    assert directory.place() is None and owner(directory, "s") is None
    directory.beat(beat("a", {"s": 0}))
    assert directory.place() is not None and owner(directory, "s") == "a"


def test_a_drain_is_ordered_by_node_or_by_name_until_the_replica_has_left(directory):
    directory.beat(beat("a", {"s": 0}))
    directory.beat(beat("b"))
    assert directory.drain("node-a") == ["a"] and directory.drain("nobody") == []
    assert [directory.beat(beat("a", {"s": 0})).drain for _ in range(2)] == [True, True]
    found = directory.find("s")
    assert found is not None and found.is_leaving
    assert {directory.place().replica for _ in range(3)} == {"b"}
    directory.leave("a")
    found = directory.find("s")
    assert found is not None and found.address is None and not found.is_leaving


def replicas(directory: Directory, **loads) -> list:
    for name, load in loads.items():
        directory.beat(beat(name, **load))
    return directory.replicas()


def test_there_are_as_many_replicas_as_players_need(directory):
    idle = replicas(directory, a={}, b={})
    assert wanted(idle, 2, spare_slots=1) == 1
    assert wanted(idle, 2, spare_slots=5) == 2
    assert wanted(idle, 3, spare_slots=9) == 3, "one is starting: what it brings is not known yet"
    assert wanted(replicas(directory, a={"free_slots": 0}, b={"free_slots": 1}), 2, 1) == 2
    assert wanted(replicas(directory, a={"free_slots": 0}, b={"free_slots": 0}), 2, 1) == 3
    assert wanted(replicas(directory, a={"free_slots": 0, "waiting": 6}, b={"free_slots": 0}), 2, 1) == 4


def test_one_goes_only_where_its_players_find_slots_on_the_others(directory):
    assert wanted(replicas(directory, a={"free_slots": 2}, b={"free_slots": 3}), 2, 1) == 1
    assert wanted(replicas(directory, a={"free_slots": 2}, b={"free_slots": 2}), 2, 1) == 2
    assert wanted(replicas(directory, a={}, b={}, c={}, d={}), 4, 1) == 3, "one at a time"
    assert wanted(replicas(directory, a={}, b={"scripts": 1}), 2, 1) == 2, "a rollout would end with its server"


def test_where_all_are_too_slow_there_is_one_more(directory, clock):
    slow = {"free_slots": 3, "fps": 15.0}
    assert wanted(replicas(directory, a=slow, b=slow), 2, 1) == 3
    assert wanted(replicas(directory, a=slow, b={"free_slots": 3}), 2, 1) == 1
    directory.beat(beat("a", free_slots=3, missed=0))
    clock.now += 1.0
    assert wanted(replicas(directory, a={"free_slots": 3, "missed": 4}, b=slow), 2, 1) == 3, "ticks are missed"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, as it is imported
def test_ray_serve_asks_the_policy_that_it_was_given(directory, monkeypatch):
    """As its controller does: by the name in the settings of `--max-replicas`, from what it pickled of it."""
    import ray
    from ray.exceptions import RayError
    from ray.serve.config import AutoscalingConfig

    settings = cluster._count(ScaleConfig(replicas=2, max_replicas=3, spare_slots=1, lease_s=LEASE_S))
    told = AutoscalingConfig(**settings["autoscaling_config"])
    assert (told.min_replicas, told.max_replicas, told.initial_replicas) == (2, 3, 2)
    policy = told.policy.get_policy()(**told.policy.policy_kwargs)
    answers: list[Any] = [replicas(directory, a={"free_slots": 0}, b={"free_slots": 0}), RayError()]

    def get(_, timeout):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    actor = SimpleNamespace(replicas=SimpleNamespace(remote=lambda: None))
    monkeypatch.setattr(cluster, "directory", lambda lease_s: {LEASE_S: actor}[lease_s])
    monkeypatch.setattr(ray, "get", get)
    context = SimpleNamespace(target_num_replicas=2)
    assert policy(context) == (3, {}), "every slot is taken"
    assert policy(context) == (2, {}), "what the directory does not tell changes nothing"
    assert cluster._count(ScaleConfig(replicas=2)) == {"num_replicas": 2}


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"replicas": 0}, "at least 1"),
        ({"max_replicas": 1}, "fewer than the 2"),
        ({"lease_s": 1.0}, "three beats"),
        ({"resources": "TPU"}, "JSON object"),
        ({"resources": '{"TPU": "4"}'}, "JSON object"),
        ({"media_port": 65_500}, "hundred ports"),
        ({"media_url": "play.example"}, "ws://"),
        ({"media_url": "wss://play.example", "is_proxied": True}, "choose one"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(setting, text):
    with pytest.raises(ScaleError, match=text):
        ScaleConfig(**setting)


@pytest.mark.parametrize(
    ("setting", "offered", "text"),
    [
        ({}, {"CPU": 1.0}, r"2 replicas want 2 CPU \(there: 1\).*--num-cpus"),
        ({"num_cpus": 0.5}, {"CPU": 1.0}, None),
        ({"num_gpus": 1}, {"CPU": 8.0}, r"2 GPU \(there: 0\).*--num-gpus"),
        ({"replicas": 4, "resources": '{"TPU": 1}'}, {"CPU": 8.0, "TPU": 4.0}, None),
        ({"replicas": 5, "resources": '{"TPU": 1}'}, {"CPU": 8.0, "TPU": 4.0}, r"5 TPU \(there: 4\).*--resources"),
    ],
)
def test_what_a_cluster_has_too_little_of_is_told(setting, offered, text, caplog):
    here, joined = ScaleConfig(**setting), ScaleConfig(**setting, address="auto")
    if text is None:
        check_cluster(ServeConfig(), here, 1, offered)
    else:
        with pytest.raises(ScaleError, match=text):
            check_cluster(ServeConfig(), here, 1, offered)
    check_cluster(ServeConfig(), joined, 1, offered)  # it may yet grow
    assert bool(caplog.records) == (text is not None)


def test_of_several_machines_each_must_be_reached_by_the_others():
    offered = {"CPU": 8.0}
    with pytest.raises(ScaleError, match="--host 0.0.0.0"):
        check_cluster(ServeConfig(), ScaleConfig(address="auto"), 2, offered)
    check_cluster(ServeConfig(host="0.0.0.0", auth="x"), ScaleConfig(address="auto"), 2, offered)


def test_replicas_are_given_whole_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "world").mkdir()
    server = ServeConfig(snapshots="kept", cache_dir="~/compiled")
    whole = resolved(ScaleArgs(Path("world"), None, Path("first.png"), Published(weights=Path("w")), server))
    assert (whole.world, whole.prompt, whole.published.weights) == tuple(
        tmp_path / name for name in ("world", "first.png", "w")
    )
    assert (whole.server.snapshots, whole.server.cache_dir) == (f"{tmp_path}/kept", f"{tmp_path}/me/compiled")
    assert resolved(ScaleArgs(Path("oasis-500m"))) == ScaleArgs(Path("oasis-500m"))


def test_pages_that_come_from_the_gateway_may_play_on_a_replica():
    local = replica_config(ServeConfig(port=8123), ScaleConfig())
    assert (local.port, local.resume_url) == (0, "http://127.0.0.1:8123")
    assert local.allow_origins == ("http://127.0.0.1:8123", "http://localhost:8123")
    public = ServeConfig(host="0.0.0.0", auth="x", resume_url="https://play.example/", allow_origins=("https://other",))
    far = replica_config(public, ScaleConfig(media_port=9000))
    with pytest.raises(ScaleError, match="pass --port"):
        replica_config(ServeConfig(port=0), ScaleConfig())
    with pytest.raises(ScaleError, match="--resume-url"):
        replica_config(ServeConfig(host="0.0.0.0", auth="x"), ScaleConfig())
    assert (far.port, far.allow_origins) == (9000, ("https://other", "https://play.example"))
