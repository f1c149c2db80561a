"""The whole evaluation on a tiny world: its files, its determinism, its refusals."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from wm_jax.eval import table
from wm_jax.eval.evaluate import EvalConfig, command, evaluate


@pytest.fixture(scope="module")
def config(tiny: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> EvalConfig:
    return EvalConfig(
        tiny, held_out, tmp_path_factory.mktemp("out"), clips=4, horizons=(1, 4, 16), prompt_frames=4, drift_frames=40,
        drift_sessions=4, latency_frames=0, rows=4, films=2, held_out_frames=400,
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(config: EvalConfig):
    return evaluate(config, quiet=True)


def test_it_writes_a_table_a_picture_and_a_film(config: EvalConfig, report) -> None:
    assert config.out is not None
    assert json.loads((config.out / "table.json").read_text()) == report
    text = (config.out / "table.md").read_text()
    assert "free-running" in text and "Delta-PSNR" in text and "Drift" in text and "mean of per-frame" in text
    with Image.open(config.out / "curves.png") as picture:
        assert min(picture.size) > 600
    with av.open(str(config.out / "film.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 4 + 16 and np.std(frames[-1]) > 10


def test_the_report_says_where_it_comes_from(report) -> None:
    assert report["seed"] == 0 and report["commit"] and report["device"]
    assert report["command"].startswith("python -m wm_jax.eval tiny --clips 4 --horizons 1 4 16")
    assert report["data"]["recording"] == "bouncing_ball_held_out" and report["data"]["checksum"]
    assert [row["clips"] for row in report["horizons"]] == [4, 4, 4]
    assert "/" + "tmp" not in json.dumps(report)


def test_the_same_command_gives_the_same_table(config: EvalConfig, report, tmp_path: Path) -> None:
    world = tmp_path / "tiny"
    shutil.copytree(config.run, world)
    (world / "eval.json").write_text(json.dumps(report))
    again = evaluate(dataclasses.replace(config, run=world, out=tmp_path / "again"), quiet=True)
    assert again["against_shipped"] == []
    assert again["horizons"] == report["horizons"] and again["control"] == report["control"]
    assert again["drift"] == report["drift"]


def test_a_table_that_differs_is_told_line_by_line(report) -> None:
    other = json.loads(json.dumps(report))
    other["horizons"][0]["psnr_free"] += 1
    assert [line.split(":")[0] for line in table.compare(report, other)] == ["psnr_free at horizon 1"]
    assert "not comparable: seed" in table.compare(report, {**other, "seed": 5})[0]


def test_a_command_names_only_what_differs_from_the_defaults() -> None:
    assert command(EvalConfig(Path("worlds/coinrun"))) == "python -m wm_jax.eval worlds/coinrun"
    assert command(EvalConfig(Path("runs/x"), quick=True, seed=3)) == "python -m wm_jax.eval runs/x --seed 3 --quick"


def test_what_is_no_world_is_named_without_a_traceback(tmp_path: Path, root: Path) -> None:
    asked = [sys.executable, "-m", "wm_jax.eval", str(tmp_path)]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error:") and str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_judge_of_another_game_is_refused(config: EvalConfig, tmp_path: Path) -> None:
    from wm_jax.eval import inverse

    own = inverse.load(config.run / "idm.safetensors")
    inverse.save(dataclasses.replace(own, image=(64, 64)), tmp_path / "idm.safetensors")
    with pytest.raises(ValueError, match=r"\(64, 64\).*\(32, 32\)"):
        evaluate(dataclasses.replace(config, inverse=tmp_path / "idm.safetensors"), quiet=True)
