"""A world is released whole, with the table measured on its own weights, or the one before stays."""

from pathlib import Path

import pytest

from wm_jax.eval.evaluate import IDM_FILE
from wm_jax.training import release


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def released(tmp_path: Path) -> Path:
    folder = tmp_path / "worlds" / "ball"
    folder.mkdir(parents=True)
    for name, text in (("README.md", "old table"), ("weights.safetensors", "old"), (IDM_FILE, "judge")):
        (folder / name).write_text(text)
    return folder


def test_a_release_that_fails_leaves_the_world_before_it(released: Path):
    before = contents(released)
    with pytest.raises(KeyboardInterrupt), release._in_place_of(released):
        (released / "weights.safetensors").write_text("new")
        raise KeyboardInterrupt
    assert contents(released) == before and [path.name for path in released.parent.iterdir()] == ["ball"]


def test_a_release_keeps_only_the_judge_of_the_world_before_it(released: Path):
    with release._in_place_of(released):
        assert contents(released) == {IDM_FILE: "judge"}
        (released / "weights.safetensors").write_text("new")
    assert contents(released) == {IDM_FILE: "judge", "weights.safetensors": "new"}
    assert [path.name for path in released.parent.iterdir()] == ["ball"]


def test_a_run_that_is_none_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["release", str(tmp_path / "no_run"), str(tmp_path / "world")])
    assert release.main() == 1
    assert "no_run" in capsys.readouterr().err and not (tmp_path / "world").exists()
