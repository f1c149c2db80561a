"""What is given away: comes back as it was, appears whole, and says what is wrong with it."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wm_jax import checkpoint


@pytest.fixture
def params() -> dict:
    return {
        "dynamics": {"layers": {"kernel": jnp.arange(24.0).reshape(2, 3, 4), "gate": jnp.ones((2, 4), jnp.bfloat16)}},
        "decoder": {"scale": np.float32(3.5), "table": np.arange(6, dtype=np.int8).reshape(2, 3).T},
    }


@pytest.fixture
def world(tmp_path: Path, params: dict) -> Path:
    prompts = {"frames": np.arange(12, dtype=np.uint8).reshape(1, 1, 2, 2, 3)}
    checkpoint.save_world(tmp_path / "world", {"name": "toy"}, params, prompts=prompts, card="# toy\n")
    return tmp_path / "world"


@pytest.mark.parametrize("max_shard_mb", [15, 60e-6])
def test_a_loaded_world_is_the_saved_one_bit_for_bit(tmp_path: Path, params: dict, max_shard_mb: float) -> None:
    checkpoint.save_world(tmp_path / "world", {"name": "toy"}, params, max_shard_mb=max_shard_mb)
    config, found = checkpoint.load_world_files(tmp_path / "world")
    assert config == {"name": "toy"}
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for name, leaf in checkpoint.flatten_tree(params).items():
        other = checkpoint.flatten_tree(found)[name]
        assert other.dtype == leaf.dtype and other.shape == leaf.shape and np.array_equal(other, leaf), name
    assert len(list((tmp_path / "world").glob("*.safetensors"))) == (1 if max_shard_mb > 1 else 2)


def test_saving_again_replaces_the_weights_and_keeps_other_files(world: Path, params: dict) -> None:
    (world / "rollout.mp4").write_bytes(b"video")
    checkpoint.save_world(world, {"name": "again"}, params, max_shard_mb=60e-6)
    assert checkpoint.load_world_files(world)[0] == {"name": "again"}
    assert (world / "rollout.mp4").read_bytes() == b"video" and (world / "README.md").read_text() == "# toy\n"
    assert not (world / "weights.safetensors").exists()
    assert [path.name for path in world.parent.iterdir()] == ["world"]


def test_prompts_come_back_and_may_be_absent(world: Path, tmp_path: Path) -> None:
    prompts = checkpoint.load_prompts(world)
    assert prompts is not None and prompts["frames"].shape == (1, 1, 2, 2, 3) and prompts["frames"].max() == 11
    assert checkpoint.load_prompts(tmp_path) is None


def test_weights_of_another_config_are_named_leaf_by_leaf(world: Path, params: dict) -> None:
    _, found = checkpoint.load_world_files(world)
    want = jax.eval_shape(lambda: params)
    checkpoint.check_tree(want, found, world)
    del found["decoder"]["scale"]
    found["dynamics"]["layers"]["kernel"] = np.zeros((2, 3, 5))
    found["agent"] = np.zeros(1)
    with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoint.check_tree(want, found, world)
    assert "1 missing: decoder/scale" in str(caught.value) and "1 not in this config: agent" in str(caught.value)
    assert "dynamics/layers/kernel is [2, 3, 5], the config needs [2, 3, 4]" in str(caught.value)


def test_a_folder_that_is_no_world_says_so(tmp_path: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="is no world, it has no config.json"):
        checkpoint.load_world_files(tmp_path)


def test_a_missing_shard_and_a_cut_off_shard_are_named(tmp_path: Path, params: dict) -> None:
    checkpoint.save_world(tmp_path / "world", {}, params, max_shard_mb=60e-6)
    first = tmp_path / "world" / "weights-00001-of-00002.safetensors"
    whole = first.read_bytes()
    first.write_bytes(whole[:-3])
    with pytest.raises(checkpoint.CheckpointError, match="weights-00001-of-00002.safetensors: is broken or cut off"):
        checkpoint.load_world_files(tmp_path / "world")
    first.unlink()
    with pytest.raises(checkpoint.CheckpointError, match="missing: weights-00001-of-00002.safetensors"):
        checkpoint.load_world_files(tmp_path / "world")


def test_a_symlink_in_a_world_is_refused_by_name(world: Path) -> None:
    target = world.parent / "elsewhere"
    (world / "weights.safetensors").rename(target)
    os.symlink(target, world / "weights.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match="weights.safetensors is a symlink to .*elsewhere"):
        checkpoint.load_world_files(world)


def test_a_world_folder_that_is_a_symlink_is_refused(world: Path) -> None:
    linked = world.parent / "linked"
    linked.symlink_to(world)
    for load in (checkpoint.load_world_files, checkpoint.load_prompts):
        with pytest.raises(checkpoint.CheckpointError, match="linked: refused, it is a symlink to .*world; name that"):
            load(linked)


def test_prompts_behind_a_symlink_are_refused_by_name(world: Path) -> None:
    target = world.parent / "elsewhere.npz"
    (world / "prompts.npz").rename(target)
    (world / "prompts.npz").symlink_to(target)
    with pytest.raises(checkpoint.CheckpointError, match="prompts.npz is a symlink to .*elsewhere.npz"):
        checkpoint.load_prompts(world)


def test_prompts_cut_off_anywhere_are_named(world: Path) -> None:
    path = world / "prompts.npz"
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(checkpoint.CheckpointError, match="prompts.npz: is broken or cut off"):
            checkpoint.load_prompts(world)
    path.unlink()
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(checkpoint.CheckpointError, match="prompts.npz: is broken or cut off"):
        checkpoint.load_prompts(world)


@pytest.mark.parametrize("names", [("a", "a/x"), ("a/x/y", "a/x")])
def test_a_leaf_that_is_also_a_folder_of_leaves_is_refused(world: Path, names: tuple[str, str]) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.zeros((2, 2), np.float32) for name in names}, world / "weights.safetensors")
    short, long = sorted(names, key=len)
    with pytest.raises(checkpoint.CheckpointError, match=f"world: the weights are no tree, {short} is .* holds {long}"):
        checkpoint.load_world_files(world)


def test_a_tree_that_would_not_come_back_is_refused(tmp_path: Path) -> None:
    for tree in ({"a": [np.zeros(1)]}, {"a/b": np.zeros(1)}, {"a": {}}):
        with pytest.raises(checkpoint.CheckpointError, match="nested dicts of arrays"):
            checkpoint.save_world(tmp_path / "world", {}, tree)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_older_world_as_it_was(
    world: Path, params: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(checkpoint.CheckpointError, match="the world could not be saved, the disk is full"):
        checkpoint.save_world(world, {"name": "new"}, params)
    assert checkpoint.load_world_files(world)[0] == {"name": "toy"}
    assert [path.name for path in world.parent.iterdir()] == ["world"]
