"""Laws of recording: keys stand beside the frame they led to, a seed writes the same bytes, a stopped one leaves none."""

import contextlib
import dataclasses
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

from wm_jax import envs
from wm_jax.data.episode import EpisodeError, EpisodeFolder
from wm_jax.data.record import Played, RecordConfig, main, play, record
from wm_jax.envs import registry

BALL = RecordConfig(env="bouncing_ball", out=Path("unused"), frames=300, max_length=60)


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(dataclasses.replace(BALL, out=tmp_path_factory.mktemp("ball") / "one"), quiet=True)


def test_keys_stand_beside_the_frame_they_led_to(ball: Path):
    folder, game = EpisodeFolder.open(ball), envs.make("bouncing_ball")
    assert folder.num_frames == 300 and folder.controls == game.controls and folder.fps == 30
    for number in (0, folder.num_episodes - 1):
        frames, keys = folder.frames(number), folder.keys(number)
        frame, _ = game.reset(options={"level": folder.episodes[number].level})
        assert np.array_equal(frame, frames[0]) and not keys[0].any()
        for t in range(1, len(frames)):
            assert np.array_equal(game.step(keys[t])[0], frames[t])


def test_the_last_frame_of_a_coinrun_level_is_left_out():
    game = envs.make("coinrun")
    ends = 0
    for number in range(12):
        played = play(game, 0, number, 200)
        assert len(played.frames) == len(played.keys) <= 200
        ends += len(played.frames) < 200
        changed = (played.frames[1:] != played.frames[:-1]).mean((1, 2, 3))
        assert changed.max() < 0.98, "a frame of the next level was recorded"
    game.close()
    assert ends > 0


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_each_split_has_its_own_seed_unless_one_is_given():
    assert [dataclasses.replace(BALL, seed=None, split=split).chosen_seed for split in ("train", "held_out")] == [0, 1]
    assert dataclasses.replace(BALL, seed=7, split="held_out").chosen_seed == 7


def test_the_same_seed_writes_the_same_bytes(ball: Path, tmp_path: Path):
    again = record(dataclasses.replace(BALL, out=tmp_path / "again"), quiet=True)
    other = record(dataclasses.replace(BALL, out=tmp_path / "other", seed=1), quiet=True)
    assert contents(again) == contents(ball) != contents(other)


@pytest.mark.slow
def test_workers_write_the_same_bytes(ball: Path, tmp_path: Path):
    helped = record(dataclasses.replace(BALL, out=tmp_path / "helped", workers=2), quiet=True)
    assert contents(helped) == contents(ball)


def test_held_out_levels_are_recorded_as_such(tmp_path: Path):
    config = dataclasses.replace(BALL, out=tmp_path / "held", split="held_out", frames=120)
    folder = EpisodeFolder.open(record(config, quiet=True))
    assert folder.meta["split"] == "held_out" and {episode.level % 2 for episode in folder.episodes} == {0}


def test_an_existing_folder_is_refused_before_anything_is_played(ball: Path):
    with pytest.raises(EpisodeError, match="exists already; delete it or choose another --out"):
        record(dataclasses.replace(BALL, out=ball), quiet=True)


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"workers": -1}, {"max_length": 1}])
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, int]):
    with pytest.raises(ValueError, match="must be at least"):
        dataclasses.replace(BALL, **wrong)  # type: ignore[arg-type]


def test_a_game_of_ones_own_needs_one_line_in_the_table_and_no_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The page docs/bring_your_own_game.md, followed."""
    page = (Path(__file__).parents[2] / "docs" / "bring_your_own_game.md").read_text()
    module = types.ModuleType("snake")
    exec(page.split("```python\n")[1].split("```")[0], module.__dict__)  # noqa: S102
    monkeypatch.setitem(sys.modules, "snake", module)
    monkeypatch.setitem(registry._GAMES, "snake", ("snake", "Snake", "numpy"))
    monkeypatch.setattr(envs, "NAMES", (*envs.NAMES, "snake"))
    folder = EpisodeFolder.open(
        record(RecordConfig("snake", tmp_path / "snake", frames=600, max_length=40), quiet=True)
    )
    assert folder.num_frames == 600 and {"runner", "mixed"} & {episode.policy for episode in folder.episodes}
    assert envs.held_out("snake") == "levels that training never sees"


def test_an_unknown_game_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no game is called 'pong'; there are coinrun, doom"):
        dataclasses.replace(BALL, env="pong")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_recording_that_is_stopped_leaves_no_folder_that_opens(tmp_path: Path, how: signal.Signals):
    out = tmp_path / "stopped"
    command = [sys.executable, "-m", "wm_jax.data.record", "--env", "bouncing_ball", "--frames", "10000000"]
    # What a shell runs in the background, and all it starts, ignores SIGINT unless told otherwise.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    started = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, ours)
    unfinished = tmp_path / "stopped.unfinished"
    with started as process:
        try:
            while not (unfinished / "shard_00000.frames.npy").exists():
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.05)
            process.send_signal(how)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert not out.exists()
    if how == signal.SIGKILL:
        with pytest.raises(EpisodeError, match="never finished"):
            EpisodeFolder.open(unfinished)
    else:
        assert process.returncode == 130 and "was removed" in said and not unfinished.exists()


def test_an_interrupt_that_was_swallowed_ends_the_recording_after_the_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def plays(*about) -> Played:
        with contextlib.suppress(KeyboardInterrupt):  # as Python does to a callback of the garbage collector
            signal.raise_signal(signal.SIGINT)
        numbers.append(about[2])
        return play(*about)

    numbers = list[int]()
    monkeypatch.setattr("wm_jax.data.record.play", plays)
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            record(dataclasses.replace(BALL, out=tmp_path / "swallowed", frames=10_000), quiet=True)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, ours)
    assert numbers == [0] and not list(tmp_path.iterdir())


def test_help_teaches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.argv", ["record", "--help"])
    with pytest.raises(SystemExit):
        main()
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in ("Example:", "--env", "coinrun", "--split", "its training never saw", "wm_jax.data.inspect"):
        assert words in said


def test_the_command_says_what_is_wrong_in_words(
    ball: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command = ["record", "--env", "bouncing_ball", "--out", str(ball)]
    monkeypatch.setattr("sys.argv", command)
    assert main() == 1
    assert "exists already" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*command, "--frames", "0"])
    with pytest.raises(SystemExit):
        main()
    assert "it must be at least 1" in capsys.readouterr().err
