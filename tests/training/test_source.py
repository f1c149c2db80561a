"""Latents made once: kept whole or not at all, on a full disk too, and what killed processes left is cleared."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from wm_jax.data.episode import EpisodeError, EpisodeFolder
from wm_jax.data.loader import DataConfig
from wm_jax.data.writer import EpisodeWriter
from wm_jax.training import source
from wm_jax.training.config import TrainConfig
from wm_jax.training.objectives.shortcut_forcing import ShortcutForcing
from wm_jax.world import tiny_world

WORLD = tiny_world()[0].config
PARAMS = {"autoencoder": {"kernel": np.ones(3, np.float32)}}
DATA = DataConfig(episodes="episodes", held_out="held_out", clip_frames=2, batch=2)
CONFIG = TrainConfig(name="tiny", world=WORLD, objective=ShortcutForcing(), data=DATA)
COUNT = source.ENCODE_FRAMES + 44


@pytest.fixture
def episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EpisodeFolder:
    """A recording in which frame i is all i, and an encoder that says the brightness of a frame."""

    def encode(world: object, autoencoder: object, frames: np.ndarray) -> np.ndarray:
        return np.ones((len(frames), *WORLD.latent_shape), np.float16) * frames[:, :1, :1, :1]

    monkeypatch.setattr(source, "_encode", encode)
    frames = np.ones((COUNT, *WORLD.image, 3), np.uint8) * np.arange(COUNT).astype(np.uint8)[:, None, None, None]
    with EpisodeWriter(tmp_path / "episodes", controls=WORLD.controls, image=WORLD.image, fps=30.0) as writer:
        writer.add(frames, np.zeros((COUNT, 4), bool), level=0, policy="none", seed=0)
    return EpisodeFolder.open(tmp_path / "episodes")


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    return tmp_path / "latents"


def encode_once(episodes: EpisodeFolder, latents: Path) -> np.ndarray:
    return source.encode_once(CONFIG, episodes, PARAMS, str(latents))


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 20 kB: a write fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_latents_are_made_once_and_are_those_of_every_frame(episodes: EpisodeFolder, latents: Path) -> None:
    made = encode_once(episodes, latents)
    assert isinstance(made, np.memmap) and made.dtype == np.float16 and made.shape == (COUNT, *WORLD.latent_shape)
    np.testing.assert_array_equal(made[:, 0, 0, 0], np.arange(COUNT) % 256)
    (file,) = latents.iterdir()
    stamp = file.stat().st_mtime_ns
    encode_once(episodes, latents)
    assert file.stat().st_mtime_ns == stamp and file.name.startswith("bouncing_ball-")


def test_a_disk_that_fills_is_said_with_bytes_and_the_folder_to_free(episodes: EpisodeFolder, latents: Path) -> None:
    needs = f"{2 * COUNT * int(np.prod(WORLD.latent_shape)):,}"
    words = f"bouncing_ball-.*npy: .*the disk is full.*take {needs} bytes, and {latents} is only a cache"
    with pytest.raises(OSError, match=words) as caught, small_files():
        encode_once(episodes, latents)
    assert caught.value.errno == errno.EFBIG and not list(latents.iterdir())


def test_too_little_room_is_said_before_anything_is_encoded(
    episodes: EpisodeFolder, latents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = source.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(source.shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(source, "_encode", None)
    with pytest.raises(OSError, match=r"the disk is full \(0 MB free\).*those of other runs may be deleted") as caught:
        encode_once(episodes, latents)
    assert caught.value.errno == errno.ENOSPC and not list(latents.iterdir())


def test_what_dead_processes_left_is_removed_and_what_living_ones_write_stays(
    episodes: EpisodeFolder, latents: Path
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    latents.mkdir()
    for process in (gone.pid, os.getppid()):
        (latents / f"coinrun-0.{process}.tmp").write_bytes(b"half")
    made = encode_once(episodes, latents)
    assert sorted(path.name for path in latents.iterdir()) == sorted(
        [Path(str(made.filename)).name, f"coinrun-0.{os.getppid()}.tmp"]  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize("harm", [lambda whole: whole[:-9], lambda whole: b"", lambda whole: b"no numbers"])
def test_a_broken_file_in_the_cache_is_named(episodes: EpisodeFolder, latents: Path, harm) -> None:
    encode_once(episodes, latents)
    (file,) = latents.iterdir()
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(EpisodeError, match=f"{file.name} is cut short or no .npy file.*delete it, it is made again"):
        encode_once(episodes, latents)
