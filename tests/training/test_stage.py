"""Both stages of a real, tiny world: recordings in, a world out; stopped and started again it ends at the same bits."""

import dataclasses
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import wm_jax.world
from wm_jax import checkpoint
from wm_jax import config as config_file
from wm_jax.checkpoint import CheckpointError
from wm_jax.data.episode import EpisodeError
from wm_jax.data.loader import DataConfig
from wm_jax.data.writer import EpisodeWriter
from wm_jax.training import loop, prepare, stage
from wm_jax.training.config import TrainConfig
from wm_jax.training.objectives.reconstruction import Reconstruction
from wm_jax.training.objectives.shortcut_forcing import ShortcutForcing
from wm_jax.training.optimizer import OptimizerConfig
from wm_jax.types import ControlSpace

WORLD = wm_jax.world.tiny_world()[0].config


READ = """
from wm_jax import config as config_file
from wm_jax.training.config import TrainConfig
def config():
    return config_file.read(TrainConfig, "{}")
"""


def record(path: Path, seed: int, split: str = "train") -> None:
    """Three episodes of a bright square that the keys push about."""
    rng = np.random.default_rng(seed)
    facts = {"env": WORLD.env, "source": "synthetic", "split": split}
    with EpisodeWriter(path, controls=WORLD.controls, image=WORLD.image, fps=30.0, facts=facts) as writer:
        for level in range(3):
            keys = rng.random((40, 4)) < 0.3
            keys[0] = False
            frames = np.zeros((40, 32, 32, 3), np.uint8)
            place = np.cumsum(keys[:, [3, 1]].astype(int) - keys[:, [2, 0]], axis=0) + 12
            for frame, (y, x) in zip(frames, place % 24, strict=True):
                frame[y : y + 6, x : x + 6] = (250, 200, 40)
            writer.add(frames, keys, level=level, policy="random", seed=seed)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings, and both stages trained without a break."""
    folder = tmp_path_factory.mktemp("stages")
    record(folder / "episodes", 0)
    record(folder / "held_out", 1, "held_out")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare.train(first_stage(), folder / "autoencoder")
        prepare.train(second_stage(), folder / "dynamics")
    return folder


@pytest.fixture(autouse=True)
def _in_the_folder(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)


def first_stage(**fields: Any) -> TrainConfig:
    config = TrainConfig(
        name="tiny_autoencoder",
        world=WORLD,
        objective=Reconstruction(),
        data=DataConfig(episodes="episodes", held_out="held_out", clip_frames=2, batch=4),
        optimizer=OptimizerConfig(warmup_steps=1, use_muon=False),
        steps=4,
        log_every=1,
        picture_every=4,
        save_every=2,
    )
    return dataclasses.replace(config, **fields)


def second_stage(**fields: Any) -> TrainConfig:
    config = first_stage(
        name="tiny",
        objective=ShortcutForcing(bank=16, recycle_from=1),
        data=DataConfig(episodes="episodes", held_out="held_out", clip_frames=6, batch=4),
        optimizer=OptimizerConfig(warmup_steps=1),
        autoencoder_from="autoencoder",
    )
    return dataclasses.replace(config, **fields)


def weights(folder: Path) -> bytes:
    return (folder / "world" / "weights.safetensors").read_bytes()


@pytest.mark.slow
def test_both_stages_leave_a_world_that_loads_with_prompts_and_pictures(runs: Path) -> None:
    for name in ("autoencoder", "dynamics"):
        world, params = wm_jax.world.load(runs / name)
        assert world.config == WORLD
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
        assert wm_jax.world.load_prompts(runs / name).frames is not None
        assert (runs / name / "pictures" / "step_000004.png").is_file()


def test_the_second_stage_keeps_the_autoencoder_of_the_first(runs: Path) -> None:
    first, second = (wm_jax.world.load(runs / name)[1] for name in ("autoencoder", "dynamics"))
    jax.tree.map(np.testing.assert_array_equal, first["autoencoder"], second["autoencoder"])


def test_a_stopped_run_started_again_ends_at_the_same_bits(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the autoencoder is a config file, so trained first, and its run is gone by then."""
    config_file.write(first_stage(name="lent"), "lent.json")
    Path("lent.py").write_text(READ.format("lent.json"))
    config, make_loader = second_stage(autoencoder_from="lent.py"), stage.make_loader

    class Terminating:
        def __init__(self, loader: Any):
            self.loader, self.count = loader, 0
            self.get_state, self.set_state = loader.get_state, loader.set_state

        def __next__(self) -> Any:
            self.count += 1
            if self.count == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return next(self.loader)

    def make_terminating(source: Any, clip_frames: int, *rest: Any) -> Any:
        loader = make_loader(source, clip_frames, *rest)
        return Terminating(loader) if clip_frames == config.data.clip_frames else loader

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(stage, "make_loader", make_terminating)
        prepare.train(config, runs / "stopped")
    assert checkpoint.checkpoints(runs / "stopped" / "checkpoints")[-1].name == "3"
    shutil.rmtree(runs / "lent")
    prepare.train(config, runs / "stopped")
    assert weights(runs / "stopped") == weights(runs / "dynamics")
    assert not (runs / "lent").exists(), "what the checkpoint holds was trained again"


@pytest.mark.slow
def test_fine_tuning_starts_from_all_weights_of_the_other_run(runs: Path) -> None:
    still = OptimizerConfig(learning_rate=0.0, warmup_steps=1)
    prepare.train(second_stage(autoencoder_from=None, init_from="dynamics", optimizer=still, steps=1), runs / "tuned")
    tuned, source = (wm_jax.world.load(runs / name)[1] for name in ("tuned", "dynamics"))
    # Not to the bit: the slow weights are an average of two equal numbers, which rounds.
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), tuned, source)


def test_weights_of_another_world_are_refused_leaf_by_leaf(runs: Path) -> None:
    wider = dataclasses.replace(WORLD, dynamics=dataclasses.replace(WORLD.dynamics, hidden=128))
    config = second_stage(world=wider, init_from="dynamics")
    with pytest.raises(CheckpointError, match="of another shape: dynamics/.*the config needs"):
        prepare.train(config, runs / "wider")


def first_data(**fields: Any) -> DataConfig:
    return dataclasses.replace(first_stage().data, **fields)


REFUSED = {
    "held-out levels to train on": (
        lambda: first_stage(data=first_data(episodes="held_out")),
        "held_out has the split 'held_out', data.episodes needs 'train'; name another with --data.episodes, or record",
    ),
    "trained levels to measure on": (
        lambda: first_stage(data=first_data(held_out="episodes")),
        "episodes has the split 'train', data.held_out needs 'held_out'; name another with --data.held-out, or record",
    ),
    "another game": (
        lambda: first_stage(world=dataclasses.replace(WORLD, env="doom")),
        "episodes has the game 'bouncing_ball', world 'tiny' needs 'doom'; .* --env doom --split train --out",
    ),
    "another size": (
        lambda: first_stage(world=dataclasses.replace(WORLD, image=(64, 64))),
        r"episodes has the image \(32, 32\), world 'tiny' needs \(64, 64\)",
    ),
    "other keys": (
        lambda: first_stage(world=dataclasses.replace(WORLD, controls=ControlSpace(WORLD.controls.keys[:3]))),
        r"episodes has the keys .*'ArrowDown'\), world 'tiny' needs \('ArrowLeft', 'ArrowRight', 'ArrowUp'\)",
    ),
    "no recording": (
        lambda: first_stage(data=first_data(episodes="nowhere")),
        "nowhere is no folder; .*wm_jax.data.record --env bouncing_ball --split train --out nowhere$",
    ),
    "no game to record": (
        lambda: first_stage(
            data=first_data(episodes="nowhere"), record_frames=9, world=dataclasses.replace(WORLD, env="my_game")
        ),
        "nowhere does not exist, and no game is called 'my_game' .*coinrun.*docs/bring_your_own_game.md",
    ),
    "no autoencoder": (lambda: second_stage(autoencoder_from=None), "need a trained autoencoder; give --autoenc"),
    "a batch for other devices": (
        lambda: first_stage(data=first_data(batch=1 + 2 * jax.device_count())),
        "data.batch is 5, there are 2 devices: make it a multiple",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_run_that_cannot_be_is_refused_in_our_own_words(
    runs: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    make, words = REFUSED[what]
    with pytest.raises((EpisodeError, loop.TrainingError), match=words):
        prepare.train(make(), runs / "refused")


def test_a_damaged_shard_is_refused_before_anything_is_trained(runs: Path) -> None:
    shutil.copytree(runs / "episodes", runs / "damaged")
    shard = runs / "damaged" / "shard_00000.frames.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:9000] + bytes(2000) + whole[11000:])
    with pytest.raises(EpisodeError, match=r"shard_00000.frames.npy has checksum \w{8}, meta.json says"):
        prepare.train(first_stage(data=first_data(episodes="damaged")), runs / "refused")
    assert not (runs / "refused" / "checkpoints").exists()


def test_without_a_video_library_a_run_ends_well_and_says_how_to_get_the_film(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "dynamics" / "rollout.mp4").unlink()
    monkeypatch.setitem(sys.modules, "av", None)
    prepare.train(second_stage(), runs / "dynamics")
    assert "rollout.mp4: left out, films need PyAV; pip install -e '.[serve]'" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(runs)
    prepare.train(second_stage(), runs / "dynamics")
    assert (runs / "dynamics" / "rollout.mp4").stat().st_size


def test_a_changed_world_is_refused_by_field_on_resume(runs: Path) -> None:
    with pytest.raises(loop.TrainingError, match="data.batch is 2, the folder has 4"):
        prepare.train(first_stage(data=dataclasses.replace(first_stage().data, batch=2)), runs / "autoencoder")
