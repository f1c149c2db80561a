"""What a run goes on from: complete or not counted, exact, and nothing in it that could not be ours."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wm_jax import checkpoint
from wm_jax.checkpoint import folder as folder_lib


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: optax.OptState
    key: jax.Array
    carry: jax.Array


def make_state(seed: int, width: int = 3) -> State:
    key = jax.random.key(seed)
    params = {"dense": {"kernel": jax.random.normal(key, (width, 4)), "scale": jnp.ones(4, jnp.bfloat16) * seed}}
    rows = jax.random.split(key, 5)
    return State(jnp.int32(seed), params, optax.adam(1e-3).init(params), rows, jnp.zeros((0, 2)))


def assert_same(one: State, other: State) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for name, leaf in checkpoint.flatten_tree(one).items():
        found = checkpoint.flatten_tree(other)[name]
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            assert found.dtype == leaf.dtype, name
            leaf, found = jax.random.key_data(leaf), jax.random.key_data(found)
        assert found.dtype == leaf.dtype and np.array_equal(np.asarray(found), np.asarray(leaf)), name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    checkpoint.save_state(tmp_path / "checkpoints", 10, make_state(1), {"width": 3}, loader={"next": 7})
    return tmp_path / "checkpoints"


def test_a_restored_state_is_the_saved_one_bit_for_bit(root: Path) -> None:
    assert_same(make_state(1), checkpoint.restore_state(root / "10", make_state(2)))
    abstract = jax.eval_shape(lambda: make_state(2))
    restored = checkpoint.restore_state(root / "10", dataclasses.replace(abstract, carry=jnp.zeros((0, 2))))
    assert_same(make_state(1), restored)


@pytest.mark.parametrize("position", [{"next": 7, "nested": [1, None, "a"]}, b"\x00\xffraw", None])
def test_the_loaders_position_comes_back_as_it_was(tmp_path: Path, position: object) -> None:
    saved = checkpoint.read_saved(checkpoint.save_state(tmp_path, 1, make_state(1), {"a": 1}, loader=position))
    assert saved.loader == position and saved.config == {"a": 1} and saved.step == 1
    assert saved.versions["jax"] == jax.__version__


def test_the_newest_are_kept_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        checkpoint.save_state(tmp_path, step, make_state(step), {}, keep=2)
    assert [folder.name for folder in checkpoint.checkpoints(tmp_path)] == ["10", "11"]


def test_leaves_that_differ_are_named(root: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match=r"params/dense/kernel is \[3, 4\], the config needs \[5, 4\]"):
        checkpoint.restore_state(root / "10", make_state(1, width=5))
    other = make_state(1)
    with pytest.raises(
        checkpoint.CheckpointError, match="1 missing: params/extra.* 1 not in this config: params/dense/s"
    ):
        params = {"dense": {"kernel": other.params["dense"]["kernel"]}, "extra": jnp.ones(2)}
        checkpoint.restore_state(root / "10", dataclasses.replace(other, params=params))
    with pytest.raises(checkpoint.CheckpointError, match="step is int32, must be float32"):
        checkpoint.restore_state(root / "10", dataclasses.replace(other, step=jnp.float32(1)))


def test_a_checkpoint_without_its_done_mark_does_not_count(root: Path) -> None:
    checkpoint.save_state(root, 20, make_state(2), {})
    (root / "20" / "done").unlink()
    assert [folder.name for folder in checkpoint.checkpoints(root)] == ["10"]
    with pytest.raises(checkpoint.CheckpointError, match="no complete checkpoint"):
        checkpoint.restore_state(root / "20", make_state(1))


def test_a_cut_off_or_foreign_file_is_named(root: Path) -> None:
    victim = next(path for path in (root / "10" / "state").rglob("d/*") if path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1])
    (root / "10" / "state" / "foreign").write_text("x")
    with pytest.raises(checkpoint.CheckpointError, match=f"(?s)foreign.*{victim.name}|{victim.name}.*foreign"):
        checkpoint.restore_state(root / "10", make_state(1))


def test_links_and_devices_are_refused_by_name(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    state = root / "10" / "state"
    (state / "inner_link").symlink_to(secret)
    os.link(secret, state / "hard")
    os.mkfifo(state / "pipe")
    with pytest.raises(checkpoint.CheckpointError, match="inner_link is a symlink to .*secret") as caught:
        checkpoint.restore_state(root / "10", make_state(1))
    assert "state/pipe is a device, a pipe" in str(caught.value)
    assert "state/hard is a hard link to a file outside" in str(caught.value)


def test_a_checkpoint_that_is_a_symlink_is_refused(root: Path, tmp_path: Path) -> None:
    (root / "10").rename(tmp_path / "elsewhere")
    (root / "10").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(checkpoint.CheckpointError, match="10: refused, it is a symlink to .*elsewhere"):
        checkpoint.restore_state(root / "10", make_state(1))


def cut_a_file(folder: Path) -> None:
    victim = next(path for path in (folder / "state").rglob("d/*") if path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1])


def spoil_the_state(folder: Path) -> None:
    """The same sizes, other bytes: what a bad disk gives back."""
    for path in (folder / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(bytes(len(path.read_bytes())))


HARM = {
    "a file cut short": (cut_a_file, "broken, files with other sizes"),
    "zeros in the state": (spoil_the_state, "the state cannot be read"),
    "no saved.json": (lambda folder: (folder / "saved.json").unlink(), "saved.json: cannot be read"),
    "half a saved.json": (lambda folder: (folder / "saved.json").write_text('{"step'), "saved.json: is not JSON"),
}


@pytest.mark.parametrize("what", HARM)
def test_a_damaged_checkpoint_names_the_one_before_it_and_what_to_delete(root: Path, what: str) -> None:
    harm, words = HARM[what]
    for step in (20, 30):
        checkpoint.save_state(root, step, make_state(step), {})
    harm(root / "30")
    cut_a_file(root / "20")
    way_out = rf"rm -r {root / '30'}\), and the run goes on from {root / '10'}"
    with pytest.raises(checkpoint.CheckpointError, match=f"(?s){words}.*{way_out}$"):
        checkpoint.restore_state(root / "30", make_state(1))
    harm(root / "10")
    with pytest.raises(checkpoint.CheckpointError, match=f"(?s){words}.*the run starts anew"):
        checkpoint.restore_state(root / "10", make_state(1))


def test_every_file_is_on_the_disk_before_a_checkpoint_appears(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []

    def note(path: Path) -> None:
        flushed.append("/".join(path.parts[len(root.parts) :]))
        assert len(path.parts) == len(root.parts) or not (root / "20").exists()

    monkeypatch.setattr(folder_lib, "_to_disk", note)
    folder = checkpoint.save_state(root, 20, make_state(1), {})
    written = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert written == {name.partition("/")[2] for name in flushed} - {""}
    assert "done" in written and flushed[-1] == ""


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd"])
def test_names_outside_the_folder_are_refused(root: Path, name: str) -> None:
    path = root / "10" / "saved.json"
    path.write_text(path.read_text().replace('"_METADATA"', f'"{name}"'))
    with pytest.raises(checkpoint.CheckpointError, match=f"names outside the folder: {name}"):
        checkpoint.restore_state(root / "10", make_state(1))


def test_a_full_disk_is_said_clearly_and_the_previous_checkpoint_stays(root: Path) -> None:
    """A limit on the size of a file makes the real write fail in the middle, as a full disk does."""
    code = """
        import resource, sys
        sys.path.insert(0, sys.argv[2])
        import jax.numpy as jnp, numpy as np
        from wm_jax import checkpoint
        state = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((400, 400)))}
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        checkpoint.save_state(sys.argv[1], 20, state, {})
    """
    done = run_python(code, root, Path.cwd())
    assert done.returncode != 0
    assert "the checkpoint of step 20 could not be saved, the disk is full" in done.stderr, done.stderr
    assert [path.name for path in root.iterdir()] == ["10"]
    assert_same(make_state(1), checkpoint.restore_state(root / "10", make_state(2)))


def test_a_full_disk_in_our_own_files_is_said_clearly(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(checkpoint.CheckpointError, match="the disk is full"):
        checkpoint.save_state(root, 20, make_state(1), {})
    assert [folder.name for folder in checkpoint.checkpoints(root)] == ["10"]


def test_killed_in_the_middle_of_a_save_leaves_the_newest_complete_one(root: Path) -> None:
    code = """
        import sys, time
        sys.path.insert(0, sys.argv[2])
        import jax.numpy as jnp
        from wm_jax import checkpoint
        from wm_jax.checkpoint import train_state
        def slowly(folder):
            print("saving", flush=True)
            time.sleep(60)
        train_state._files = slowly      # the state is written, its done-mark is not
        checkpoint.save_state(sys.argv[1], 20, {"w": jnp.ones(3)}, {})
    """
    with subprocess.Popen(python(code, root, Path.cwd()), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "saving\n"
        process.send_signal(signal.SIGKILL)
    assert any(path.name.startswith(".20.") for path in root.iterdir())
    assert [folder.name for folder in checkpoint.checkpoints(root)] == ["10"]
    checkpoint.save_state(root, 30, make_state(3), {})
    assert sorted(path.name for path in root.iterdir()) == ["10", "30"]


def test_killed_while_an_old_folder_is_replaced_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / ".world.old").mkdir()
    (tmp_path / ".world.old" / "kept").write_text("x")
    saving = folder_lib.replacing(tmp_path / "world", "world")
    with pytest.raises(checkpoint.CheckpointError, match="could not be saved"), saving:
        raise RuntimeError("stopped")
    assert (tmp_path / "world" / "kept").read_text() == "x"


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(python(code, *arguments), capture_output=True, text=True, check=False)
