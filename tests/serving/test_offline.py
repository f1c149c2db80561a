"""Keys in a file, a video out."""

import av
import jax
import numpy as np
import pytest

import wm_jax as wm
from wm_jax.export import artifact
from wm_jax.serving import engine, offline
from wm_jax.serving.offline import CHUNK_FRAMES, read_controls, write_rollout
from wm_jax.serving.session import Opening
from wm_jax.types import Params

Tiny = tuple[wm.World, Params]


@pytest.fixture(scope="module")
def tiny():
    return wm.tiny_world(0)


def save(tmp_path, **arrays):
    np.savez(tmp_path / "actions.npz", **arrays)
    return tmp_path / "actions.npz"


def test_keys_come_back_as_they_were_saved(tiny: Tiny, tmp_path):
    keys = np.random.default_rng(0).random((5, 4)) < 0.5
    read = read_controls(save(tmp_path, keys=keys), tiny[0].config.controls)
    assert np.array_equal(read.keys, keys) and read.mouse is None


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"keys": np.zeros((5, 7), bool)}, r"keys is \[5, 7\], this world wants \[t, 4\]: ArrowLeft"),
        ({"keys": np.zeros(4, bool)}, r"keys is \[4\]"),
        ({"keys": np.zeros((0, 4), bool)}, "no frames"),
        ({"actions": np.zeros((5, 4), bool)}, "holds actions, a rollout needs an array `keys`"),
        ({"keys": np.asarray([{}], object)}, "no readable .npz"),
        ({"keys": np.full((5, 4), "False")}, "held or not"),
        ({"keys": np.full((5, 4), np.nan)}, "held or not"),
        ({"keys": np.full((5, 4), 0.5)}, "held or not"),
    ],
)
def test_wrong_keys_are_refused_naming_both_sides(tiny: Tiny, tmp_path, arrays, says):
    with pytest.raises(ValueError, match=says):
        read_controls(save(tmp_path, **arrays), tiny[0].config.controls)


def test_a_mouse_comes_along_where_the_world_listens_to_one(tiny: Tiny, tmp_path):
    space = wm.ControlSpace(tiny[0].config.controls.keys, has_mouse=True)
    keys, mouse = np.zeros((3, 4), bool), np.arange(6.0).reshape(3, 2)
    read = [
        read_controls(save(tmp_path, **given), space).mouse for given in (dict(keys=keys, mouse=mouse), dict(keys=keys))
    ]
    assert read[0] is not None and np.array_equal(read[0], mouse)
    assert read[1] is not None and np.array_equal(read[1], np.zeros((3, 2)))
    for wrong in (mouse[:2], mouse[:, :1], np.full((3, 2), np.nan), np.full((3, 2), "x")):
        with pytest.raises(ValueError, match=r"must be \[3, 2\] finite"):
            read_controls(save(tmp_path, keys=keys, mouse=wrong), space)
    with pytest.raises(ValueError, match="listens to none"):
        read_controls(save(tmp_path, keys=keys, mouse=mouse), tiny[0].config.controls)


def test_a_file_that_is_no_npz_is_named(tiny: Tiny, tmp_path):
    broken = tmp_path / "actions.npz"
    broken.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="actions.npz is no readable"):
        read_controls(broken, tiny[0].config.controls)
    np.save(tmp_path / "bare.npy", np.zeros((5, 4), bool))
    with pytest.raises(ValueError, match=r"bare\.npy is no readable \.npz"):
        read_controls(tmp_path / "bare.npy", tiny[0].config.controls)
    with pytest.raises(ValueError, match="missing.npz"):
        read_controls(tmp_path / "missing.npz", tiny[0].config.controls)


def test_the_video_has_a_frame_for_every_row_and_shows_the_rollout(tiny: Tiny, tmp_path):
    count = CHUNK_FRAMES + 3
    keys = np.random.default_rng(0).random((count, 4)) < 0.5
    told: list[tuple[int, int]] = []
    write_rollout(
        *tiny, wm.Prompt(), wm.Controls(keys), tmp_path / "d.mp4", 5, lambda done, of: told.append((done, of))
    )
    assert told == [(CHUNK_FRAMES, count), (count, count)]
    with av.open(str(tmp_path / "d.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == count
    state = wm.start(*tiny, wm.Prompt(), jax.random.key(5))
    _, rolled = wm.rollout(*tiny, state, wm.Controls(keys[None, :CHUNK_FRAMES]))
    scale = frames[0].shape[0] // 32
    shown = frames[0].reshape(32, scale, 32, scale, 3).mean((1, 3))
    luma = [0.3, 0.6, 0.1]
    assert np.corrcoef((shown @ luma).ravel(), (np.asarray(rolled)[0, 0] @ luma).ravel())[0, 1] > 0.95


def test_where_no_noise_is_drawn_on_the_device_a_rollout_still_dreams_what_a_session_does(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
):
    assert offline.NEEDS_GIVEN_NOISE is engine.NEEDS_GIVEN_NOISE is artifact.NEEDS_GIVEN_NOISE
    monkeypatch.setattr(engine, "NEEDS_GIVEN_NOISE", ("cpu",))
    keys = np.random.default_rng(0).random((2 * CHUNK_FRAMES, 4)) < 0.5
    frames = np.random.default_rng(0).integers(0, 255, (1, 2, 32, 32, 3), dtype=np.uint8)
    prompt = wm.Prompt(frames, wm.Controls(np.zeros((1, 2, 4), bool)))
    dream = offline.dream_of_given_noise(*tiny, prompt, 5)
    dreamed = np.concatenate([dream(wm.Controls(keys[:CHUNK_FRAMES])), dream(wm.Controls(keys[CHUNK_FRAMES:]))])
    served = engine.Engine(*tiny, engine.Scenes(prompt), 1)
    served.compile(lambda stage, progress: None)
    served.seat(0, Opening(5))
    shown = np.concatenate([served.step(wm.Controls(row[None]), np.ones(1, bool)) for row in keys])
    # A scan and a step round a channel apart here and there.
    assert np.abs(dreamed.astype(int) - shown).max() <= 1
    assert not np.array_equal(
        dreamed[:CHUNK_FRAMES], offline.dream_of_own_noise(*tiny, prompt, 5)(wm.Controls(keys[:CHUNK_FRAMES]))
    )
