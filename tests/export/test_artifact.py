"""A world exported for this machine plays as it did; what is not whole, or not for here, is refused by name."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import wm_jax as wm
from wm_jax import checkpoint
from wm_jax.export import artifact
from wm_jax.export.artifact import ArtifactError
from wm_jax.export.targets import TARGETS
from wm_jax.serving.engine import Engine, Scenes
from wm_jax.serving.session import Opening
from wm_jax.world import load, load_prompts

SLOTS = 2


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world, params = wm.tiny_world()
    rng = np.random.default_rng(0)
    prompts = {
        "frames": rng.integers(0, 256, (3, 2, *world.config.image, 3), np.uint8),
        "keys": rng.random((3, 2, len(world.config.controls.keys))) < 0.5,
    }
    folder = tmp_path_factory.mktemp("world") / "tiny"
    checkpoint.save_world(folder, world.config, jax.device_get(params), prompts=prompts)
    return folder


@pytest.fixture(scope="module")
def made(world_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "tiny_cpu"
    artifact.write(world_folder, TARGETS["cpu"], SLOTS, out)
    return out


def play(folder: Path, exported: artifact.Artifact | None) -> np.ndarray:
    """Frames of two sessions, the second one seated later; a slot that rests keeps its state."""
    world, params = load(folder)
    engine = Engine(world, params, Scenes(load_prompts(folder)), SLOTS, exported)
    engine.compile(lambda name, share: None)
    rng, frames = np.random.default_rng(1), []
    for turn in range(6):
        if turn in (0, 2):
            engine.seat(turn // 2, Opening(seed=turn))
        active = np.array([turn != 3, turn >= 2])
        keys = rng.random((SLOTS, len(world.config.controls.keys))) < 0.5
        frames.append(np.where(active[:, None, None, None], np.asarray(engine.step(wm.Controls(keys), active)), 0))
    return np.stack(frames)


@pytest.mark.slow
def test_it_plays_the_same_frames_without_tracing_the_model(world_folder, made, monkeypatch):
    right = play(world_folder, None)
    found = artifact.read(made)

    def traced(*_: object) -> None:
        raise AssertionError("the model was traced")

    for name in ("next_frame", "see"):
        monkeypatch.setattr(wm.World, name, traced)
    jax.clear_caches()  # what the first play traced must not be found again
    with pytest.raises(AssertionError, match="the model was traced"):
        play(world_folder, None)
    assert right.any() and np.array_equal(play(made, found), right)


def test_with_given_noise_a_session_depends_on_its_seed_alone(world_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "NEEDS_GIVEN_NOISE", ("cpu",))
    artifact.write(world_folder, TARGETS["cpu"], SLOTS, tmp_path / "given")
    found = artifact.read(tmp_path / "given")
    assert found.manifest.is_noise_given
    world, params = load(world_folder)
    engine = Engine(world, params, Scenes(load_prompts(world_folder)), SLOTS, found)
    engine.compile(lambda name, share: None)
    keys = np.ones((SLOTS, len(world.config.controls.keys)), bool)

    def dream(slot: int, neighbour: bool) -> np.ndarray:
        engine.seat(slot, Opening(seed=7))
        engine.seat(1 - slot, Opening(seed=8))
        active = np.array([neighbour, neighbour])
        active[slot] = True
        return np.stack([np.asarray(engine.step(wm.Controls(keys), active))[slot] for _ in range(3)])

    alone = dream(0, neighbour=False)
    assert len({frame.tobytes() for frame in alone}) == 3
    np.testing.assert_array_equal(dream(1, neighbour=True), alone)


def test_with_given_noise_a_session_without_a_prompt_begins_anew_too(monkeypatch):
    monkeypatch.setattr("wm_jax.serving.engine.NEEDS_GIVEN_NOISE", ("cpu",))
    world, params = wm.tiny_world()
    engine = Engine(world, params, Scenes(wm.Prompt()), SLOTS)
    engine.compile(lambda name, share: None)
    keys, active = np.ones((SLOTS, len(world.config.controls.keys)), bool), np.ones(SLOTS, bool)

    def dream(seed: int) -> np.ndarray:
        engine.seat(0, Opening(seed=seed))
        return np.stack([np.asarray(engine.step(wm.Controls(keys), active))[0] for _ in range(3)])

    first = dream(7)
    np.testing.assert_array_equal(dream(7), first)
    assert not np.array_equal(dream(8), first)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is no manifest"),
        (lambda folder: change(folder, format=2), "is of format 2, this program reads 3"),
        (lambda folder: change(folder, jax="0.1.0"), "made with JAX 0.1.0, here is JAX"),
        (lambda folder: change(folder, target="tpu_v6e"), r"is for tpu_v6e \(tpu\), this process computes on cpu"),
        (lambda folder: change(folder, target="abacus"), "names the target 'abacus'; there are cpu"),
        (lambda folder: (folder / "step.bin").unlink(), "step.bin is missing"),
        (lambda folder: flip(folder / "step.bin"), "step.bin is damaged"),
        (lambda folder: flip(folder / "config.json"), "config.json is damaged"),
        (lambda folder: (folder / "start.bin").write_bytes(b""), r"start.bin is damaged \(0 of"),
    ],
)
def test_what_is_not_whole_or_not_for_here_is_refused_by_name(made, tmp_path, spoil, message):
    folder = shutil.copytree(made, tmp_path / "spoiled")
    spoil(folder)
    with pytest.raises(ArtifactError, match=message):
        artifact.read(folder)


def change(folder: Path, **fields: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_a_folder_of_something_else_is_left_alone(world_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(ArtifactError, match="is there already and is no artifact"):
        artifact.write(world_folder, TARGETS["cpu"], 1, tmp_path / "mine")
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear diary"


@pytest.mark.parametrize("target", ["tpu_v6e", "h100", "trn2"])
def test_it_is_written_for_accelerators_that_are_not_here(world_folder, tmp_path, target):
    manifest = artifact.write(world_folder, TARGETS[target], 1, tmp_path / "made")
    assert manifest.is_noise_given == (target == "trn2") and set(manifest.files) >= {"start.bin", "put.bin", "step.bin"}
    with pytest.raises(ArtifactError, match=f"is for {target}"):
        artifact.read(tmp_path / "made")
    step = jax.export.deserialize(bytearray((tmp_path / "made" / "step.bin").read_bytes()))
    assert step.platforms == ({"tpu_v6e": "tpu", "h100": "cuda", "trn2": "neuron"}[target],)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "abacus"], "no target is called abacus; there are cpu"),
        ([], "say either --report, or --target"),
        (["--report", "--target", "cpu"], "say either --report, or --target"),
        (["--target", "cpu", "--slots", "0"], "--slots is 0"),
    ],
)
def test_the_front_door_teaches(arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "wm_jax.export", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and message in done.stderr


def test_a_manifest_is_what_was_written(made):
    found = artifact.read(made).manifest
    assert dataclasses.asdict(found)["slots"] == SLOTS and found.target == "cpu" and found.jax == jax.__version__
