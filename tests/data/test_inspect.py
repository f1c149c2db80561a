"""Laws of looking at a recording: the table tells the truth, lit keys are the held ones, a broken folder is refused."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from wm_jax.data import inspect
from wm_jax.data.episode import EpisodeFolder
from wm_jax.data.record import RecordConfig, record


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> EpisodeFolder:
    out = tmp_path_factory.mktemp("inspect") / "ball"
    config = RecordConfig(env="bouncing_ball", out=out, frames=200, max_length=50)
    return EpisodeFolder.open(record(config, quiet=True))


def test_the_table_counts_what_is_there(folder: EpisodeFolder):
    table = dict(inspect.describe(folder))
    assert table["game, split"] == "bouncing_ball, train"
    assert table["frames"] == "200 of 32x32 in 1 shards"
    assert sum(int(value.split(",")[1].split()[0]) for name, value in table.items() if name.startswith("policy")) == 200
    held = np.mean([folder.keys(i)[:, 0].sum() for i in range(folder.num_episodes)]) * folder.num_episodes / 200
    assert table["key ArrowLeft"] == f"push left: held in {held:.1%} of the frames"


def test_held_keys_are_lit_and_others_are_dark(folder: EpisodeFolder):
    picture = np.asarray(inspect.annotate(folder, folder.frames(0, 0, 1)[0], np.array([True, False, False, True]), 4))
    assert picture.shape == (32 * 4 + 22, 32 * 4, 3)
    strip = picture[32 * 4 + 4]
    assert [tuple(strip[column * 32 + 4]) for column in range(4)] == [
        inspect._LIT, inspect._DARK, inspect._DARK, inspect._LIT,
    ]  # fmt: skip
    assert np.array_equal(picture[2:128:4, 2:128:4], folder.frames(0, 0, 1)[0])


def test_the_report_holds_a_sheet_and_a_film_at_the_games_speed(folder: EpisodeFolder, tmp_path: Path):
    config = inspect.InspectConfig(str(folder.path), out=tmp_path / "report", rows=3, columns=4, seconds=2.0)
    inspect.inspect(config)
    with Image.open(tmp_path / "report" / "contact_sheet.png") as sheet:
        assert sheet.size == (4 * 32 * 4, 3 * (32 * 4 + 22 + 16))
    with av.open(str(tmp_path / "report" / "film.mp4")) as film:
        stream = film.streams.video[0]
        assert sum(1 for _ in film.decode(stream)) == 60 and stream.average_rate == 30


def test_the_command_refuses_a_folder_that_is_no_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["inspect", str(tmp_path), "--out", str(tmp_path / "report")])
    assert inspect.main() == 1
    assert "holds no meta.json" in capsys.readouterr().err
