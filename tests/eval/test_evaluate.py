"""The whole evaluation on a tiny world: its files, its determinism, its refusals."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import av
import jax
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


@pytest.mark.slow
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
    assert again["against_shipped"] == {"settings": [], "numbers": []}
    assert json.loads((tmp_path / "again" / "table.json").read_text()) == again
    assert again["horizons"] == report["horizons"] and again["control"] == report["control"]
    assert again["drift"] == report["drift"]


def test_a_table_that_differs_is_told_line_by_line(report) -> None:
    other = json.loads(json.dumps(report))
    other["horizons"][0]["psnr_free"] += 1
    other["horizons"][2]["ssim_teacher"] += 0.1
    other["drift"]["largest_deviation"]["motion"] += 0.2
    other["control"]["ratio"] = None
    names = [line.split(":")[0] for line in table.compare(report, other)["numbers"]]
    assert names == ["psnr_free at horizon 1", "ssim_teacher at horizon 16", "keys recognised, dreamed / real",
                     "largest deviation of motion"]  # fmt: skip
    assert all(
        line.startswith("differs from the shipped table: ") for line in table.verdict(table.compare(report, other))
    )


@pytest.mark.parametrize("change", ["seed", "clips", "horizons", "drift", "drift_frames", "inverse", "format"])
def test_a_table_of_other_settings_is_never_called_reproduced(report, change: str) -> None:
    other = json.loads(json.dumps(report))
    match change:
        case "horizons":
            del other["horizons"][1]
        case "drift":
            other["drift"] = None
        case "drift_frames":
            other["drift"]["frames"] += 100
        case _:
            other[change] = "another"
    for ours, theirs in ((report, other), (other, report)):
        if change == "format" and ours is other:
            continue  # what is measured here is never of another format
        compared = table.compare(ours, theirs)
        assert compared["numbers"] == [] and len(compared["settings"]) == 1 + (change == "drift")
        assert all("not comparable" in line and " here and " in line for line in table.verdict(compared))


def test_a_table_with_holes_is_compared_and_printed(report) -> None:
    holes = json.loads(json.dumps(report))
    holes["horizons"][2] |= dict.fromkeys([n for n in holes["horizons"][2] if n.startswith(("psnr", "ssim"))])
    holes["horizons"][2]["clips"] = 0
    holes["delta_psnr"]["4"] = holes["control"]["ratio"] = holes["drift"]["largest_deviation"]["motion"] = None
    assert table.compare(holes, holes) == {"settings": [], "numbers": []}
    lines = table.compare(holes, report)["numbers"]
    assert any(line.startswith("psnr_free at horizon 16: - here, ") for line in lines) and len(lines) >= 10
    assert "| - / - |" in table.markdown({**holes, "bars": table.bars(holes)})
    assert table.numbers(np.array([[1.0, np.nan]])) == [[1.0, None]] and table.number(np.inf) is None


def test_a_broken_shipped_table_loses_nothing(config: EvalConfig, tmp_path: Path) -> None:
    world = tmp_path / "tiny"
    shutil.copytree(config.run, world)
    (world / "eval.json").write_text("{")
    small = dataclasses.replace(config, run=world, out=tmp_path / "again", drift_frames=0)
    with pytest.raises(ValueError, match=r"eval\.json is no JSON"):
        evaluate(small, quiet=True)
    assert json.loads((tmp_path / "again" / "table.json").read_text())["drift"] is None
    assert (tmp_path / "again" / "film.mp4").stat().st_size > 0


@pytest.mark.parametrize(("left_at", "words"), [(None, "stays within 25% of it"), (0, "from its first window on"),
                                                (300, "from frame 300 on")])  # fmt: skip
def test_the_table_says_since_when_a_dream_has_left(report, left_at: int | None, words: str) -> None:
    drifted = {**report["drift"], "left_at": left_at, "stays": left_at is None}
    assert words in table.markdown({**report, "drift": drifted})


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
    larger = jax.device_get(inverse.init(own.heads, (64, 64), jax.random.key(0)))
    inverse.save(dataclasses.replace(own, image=(64, 64), params=larger), tmp_path / "idm.safetensors")
    with pytest.raises(ValueError, match=r"\(64, 64\).*\(32, 32\)"):
        evaluate(dataclasses.replace(config, inverse=tmp_path / "idm.safetensors"), quiet=True)
