"""The command: what cannot be is said in one line with a way out; a bug shows where it is."""

import subprocess
import sys
from pathlib import Path

import pytest

import train
from wm_jax.config import ConfigError
from wm_jax.data.episode import EpisodeError
from wm_jax.data.loader import LoaderError
from wm_jax.training.config import load_config
from wm_jax.training.loop import TrainingError

HEAD = """\
import dataclasses
from configs.toy.autoencoder import config as toy
from wm_jax.training.config import TrainConfig
def config():
"""
WRONG = {
    "an unknown field": (
        "    return dataclasses.replace(toy(), stepz=3)",
        r"mine.py:5: stepz is no field of TrainConfig; did you mean steps\? \(known: name, world, .*tensorboard\)$",
    ),
    "an unknown field below": (
        "    return dataclasses.replace(toy(), data=dataclasses.replace(toy().data, clip_frame=3))",
        r"mine.py:5: clip_frame is no field of DataConfig; did you mean clip_frames\?",
    ),
    "a missing field": ("    return TrainConfig(name='a')", "mine.py:5: .*missing 3 required .*'world'.*'data'"),
    "a value that cannot be": (
        "    return dataclasses.replace(toy(), data=dataclasses.replace(toy().data, batch=0))",
        "mine.py:5: data.batch is 0, it must be at least 1",
    ),
    "an import of nothing": ("    import configs.nothing", "mine.py:5: No module named 'configs.nothing'"),
    "another class": ("    return toy().data", "mine.py: config.. returned a DataConfig, a run is a TrainConfig"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_in_a_config_file_is_named_with_its_line(tmp_path: Path, what: str) -> None:
    line, words = WRONG[what]
    (tmp_path / "mine.py").write_text(HEAD + line + "\n")
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / "mine.py")


def test_answers_are_told_from_bugs() -> None:
    for error in (
        EpisodeError(),
        LoaderError(),
        TrainingError(),
        ConfigError(),
        OSError(28, "full"),
        ImportError("av"),
    ):
        assert train.is_refusal(error)
    for error in (ValueError("shapes"), TypeError("traced"), RuntimeError("compiler")):
        assert not train.is_refusal(error)


def test_the_help_says_where_a_run_and_its_cache_lie(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--help"])
    said = capsys.readouterr().out
    assert "runs/<name>" in said and "runs/latents" in said


def test_a_refusal_is_one_line_and_exit_status_1(tmp_path: Path, root: Path) -> None:
    (tmp_path / "mine.py").write_text(HEAD + WRONG["an unknown field"][0] + "\n")
    command = [sys.executable, "train.py", tmp_path / "mine.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("ConfigError: ") and "did you mean steps?" in done.stderr
