"""The released files: fetched by the Hub's own library, checked before anybody plays; a wrong folder is named."""

import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest

from wm_jax.ports.open_oasis import __main__ as command
from wm_jax.ports.open_oasis import download

pytestmark = pytest.mark.oasis


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["open_oasis", *map(str, words)])
    return command.main()


@pytest.fixture(autouse=True)
def small_is_released(monkeypatch: pytest.MonkeyPatch, config):
    monkeypatch.setattr(command, "RELEASED", config)


def test_both_files_are_fetched_into_the_folder_and_checked(monkeypatch, capsys, folder: Path, tmp_path: Path):
    asked: list[str] = []

    def fetch(repo_id: str, filename: str, *, local_dir: Path) -> str:  # as hf_hub_download has them
        asked.append(f"{repo_id}/{filename}")
        local_dir.mkdir(exist_ok=True)
        return str(shutil.copy(folder / filename, local_dir / filename))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert run(monkeypatch, "download", "--folder", tmp_path / "oasis") == 0
    assert asked == ["Etched/oasis-500m/oasis500m.safetensors", "Etched/oasis-500m/vit-l-20.safetensors"]
    assert f"python serve.py oasis-500m --weights {tmp_path / 'oasis'}" in capsys.readouterr().out


def test_a_hub_that_does_not_answer_is_said_with_the_way_out(monkeypatch, capsys, tmp_path: Path):
    def fail(**_: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    assert run(monkeypatch, "download", "--folder", tmp_path) == 1
    said = capsys.readouterr().err
    assert "oasis500m.safetensors did not come: no connection" in said and "hf auth login" in said


def test_without_the_hubs_library_the_user_is_told_how_to_go_on(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert run(monkeypatch, "download", "--folder", tmp_path) == 1
    said = capsys.readouterr().err
    assert "pip install -e '.[hub]'" in said and download.REPOSITORY in said


def test_a_folder_is_looked_at_without_fetching(monkeypatch, capsys, folder: Path, tmp_path: Path):
    assert run(monkeypatch, "check", "--folder", folder) == 0
    assert "is whole" in capsys.readouterr().out
    shutil.copy(folder / "oasis500m.safetensors", tmp_path)
    assert run(monkeypatch, "check", "--folder", tmp_path) == 1
    assert "vit-l-20.safetensors: there is no such file" in capsys.readouterr().err
