"""A world is released whole, with the table measured on its own weights, or the one before stays."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import wm_jax as wm
from wm_jax import checkpoint
from wm_jax import config as config_file
from wm_jax.data.loader import DataConfig
from wm_jax.data.record import RecordConfig, record
from wm_jax.eval import evaluate as evaluation
from wm_jax.eval import inverse
from wm_jax.training import release
from wm_jax.training.config import TrainConfig
from wm_jax.training.objectives.shortcut_forcing import ShortcutForcing
from wm_jax.training.release import ReleaseConfig


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of a random world, and a released world of that name with a judge; the evaluation is a short one."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "held_out"):
        record(RecordConfig("bouncing_ball", tmp_path / split, frames=600, split=split, max_length=80), quiet=True)  # type: ignore
    world, params = wm.tiny_world()
    prompts = {"frames": np.zeros((2, 3, 32, 32, 3), np.uint8), "keys": np.zeros((2, 3, 4), bool)}
    checkpoint.save_world(Path("runs/tiny/world"), world.config, jax.device_get(params), prompts=prompts)
    data = DataConfig(episodes="train", held_out="held_out", clip_frames=6, batch=4)
    config = TrainConfig("tiny", world.config, ShortcutForcing(), data, steps=4)
    config_file.write(config, Path("runs/tiny/config.json"))
    Path("runs/tiny/metrics.jsonl").write_text(json.dumps({"step": 4, "frames_per_second": 100.0}) + "\n")
    controls = world.config.controls
    weights = inverse.init(inverse.heads_of(controls), (32, 32), jax.random.key(0))
    inverse.save(
        inverse.Inverse(controls, (32, 32), jax.device_get(weights), {"steps": 0}), Path("worlds/tiny/idm.safetensors")
    )
    Path("worlds/tiny/README.md").write_text("the old table")

    def short(config: Any) -> Any:
        few = {"clips": 2, "rows": 2, "films": 1, "horizons": (1, 4), "drift_frames": 0, "latency_frames": 0}
        return evaluation.evaluate(dataclasses.replace(config, held_out_frames=600, prompt_frames=4, **few), quiet=True)

    monkeypatch.setattr(release, "evaluate", short)
    return Path("runs/tiny")


def test_a_released_world_lies_whole_under_its_own_name(run: Path) -> None:
    judge = inverse.load(Path("worlds/tiny/idm.safetensors")).params
    release.release(ReleaseConfig(run, Path("worlds/tiny"), note="Twice around."))
    names = {path.name for path in Path("worlds/tiny").iterdir()}
    assert names == {"README.md", "config.json", "curves.png", "dreams.png", "eval.json", "idm.safetensors", "prompts.npz",
                     "weights.safetensors"}  # fmt: skip
    card, report = Path("worlds/tiny/README.md").read_text(), json.loads(Path("worlds/tiny/eval.json").read_text())
    assert report["world"]["folder"] == "worlds/tiny" and report["command"].startswith(
        "python -m wm_jax.eval worlds/tiny"
    )
    assert "release/" not in card and "Twice around." in card and "the old table" not in card
    # The judge of the world before.
    jax.tree.map(np.testing.assert_array_equal, inverse.load(Path("worlds/tiny/idm.safetensors")).params, judge)
    assert [path.name for path in Path("worlds").iterdir()] == ["tiny"] and not (run / "release" / "tiny").exists()
    wm.load("worlds/tiny")


def test_the_judge_of_another_game_is_not_taken_unasked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = Path("worlds/tiny/eval.json")
    shipped.write_text(json.dumps({"data": {"checksum": "0badcafe"}}))
    with pytest.raises(ValueError, match="0badcafe.*--judge new.*--judge keep"):
        release.release(ReleaseConfig(run, Path("worlds/tiny")))
    assert Path("worlds/tiny/README.md").read_text() == "the old table"
    old = inverse.load(Path("worlds/tiny/idm.safetensors"))
    new = dataclasses.replace(old, facts={"steps": 7})
    monkeypatch.setattr(release, "train_judge", lambda *_, **__: new)
    release.release(ReleaseConfig(run, Path("worlds/tiny"), judge="new"))
    assert inverse.load(Path("worlds/tiny/idm.safetensors")).facts == {"steps": 7}
    checksum = json.loads(shipped.read_text())["data"]["checksum"]
    assert checksum != "0badcafe"
    release.release(ReleaseConfig(run, Path("worlds/tiny")))  # the same recording: nothing to ask


def test_a_release_that_fails_leaves_the_world_before_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in Path("worlds/tiny").iterdir()}

    def stopped(config: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(release, "evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        release.release(ReleaseConfig(run, Path("worlds/tiny")))
    assert {path.name: path.read_bytes() for path in Path("worlds/tiny").iterdir()} == before
    assert [path.name for path in Path("worlds").iterdir()] == ["tiny"]


def test_a_run_that_is_none_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["release", str(tmp_path / "no_run"), str(tmp_path / "world")])
    assert release.main() == 1
    assert "no_run" in capsys.readouterr().err and not (tmp_path / "world").exists()
