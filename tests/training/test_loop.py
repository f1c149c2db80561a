"""The loop with a tiny objective of its own: killed anywhere and started again it ends at the same bits."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wm_jax import checkpoint
from wm_jax.training import loop
from wm_jax.training.tracker import read_metrics


@dataclasses.dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    steps: int = 12
    log_every: int = 1
    picture_every: int = 6
    save_every: int = 4
    keep: int = 2
    optimizer: Optimizer = Optimizer()
    poison_at: int = -1


@flax.struct.dataclass
class TinyState:
    step: jax.Array
    params: dict
    opt_state: optax.OptState
    key: jax.Array


class TinyLoader:
    """Batches drawn from a seed and a position."""

    def __init__(self, poison_at: int):
        self.position, self.poison_at = 0, poison_at

    def __next__(self) -> np.ndarray:
        self.position += 1
        batch = np.random.default_rng(self.position).standard_normal((4, 3)).astype(np.float32)
        return batch * np.float32(np.nan) if self.position == self.poison_at else batch

    def get_state(self) -> dict[str, int]:
        return {"position": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def tiny_parts(config: TinyConfig) -> loop.Parts:
    """A linear map that learns to shrink its noisy input."""
    optimizer = optax.adam(config.optimizer.learning_rate)
    params = {"dense": {"kernel": jnp.ones((3, 3)), "bias": jnp.zeros(3)}}

    def loss(params: dict, batch: jax.Array, key: jax.Array) -> jax.Array:
        noisy = batch + 0.1 * jax.random.normal(key, batch.shape)
        return jnp.mean(jnp.square(noisy @ params["dense"]["kernel"] + params["dense"]["bias"][None] - 0.5 * batch))

    def step(state: TinyState, batch: jax.Array) -> tuple[TinyState, dict[str, jax.Array]]:
        key, now = jax.random.split(state.key)
        value, gradient = jax.value_and_grad(loss)(state.params, batch, now)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        return TinyState(state.step + 1, params, opt_state, key), {"loss": value, "largest": jnp.max(batch)}

    return loop.Parts(
        init=lambda is_resumed: TinyState(jnp.int32(0), params, optimizer.init(params), jax.random.key(0)),
        make_loader=lambda state: TinyLoader(config.poison_at),
        step=jax.jit(step, donate_argnums=0),
        draw=lambda state: np.full((4, 6, 3), int(state.step), np.uint8),
        export=lambda state, folder: checkpoint.save_world(folder, {"name": "tiny"}, state.params),
        frames_per_step=4,
    )


def run(out: Path, **fields: Any) -> None:
    config = TinyConfig(**fields)
    loop.run(config, out, tiny_parts(config))


def final_bytes(out: Path) -> bytes:
    return (out / "world" / "weights.safetensors").read_bytes()


def assert_ended_the_same(out: Path, reference: Path) -> None:
    assert final_bytes(out) == final_bytes(reference)
    timeless = [{k: v for k, v in row.items() if k != "frames_per_second"} for row in read_metrics(out)]
    assert timeless == [{k: v for k, v in row.items() if k != "frames_per_second"} for row in read_metrics(reference)]
    template = tiny_parts(TinyConfig()).init(True)
    states = [checkpoint.restore_state(folder / "checkpoints" / "12", template) for folder in (out, reference)]
    for name, leaf in checkpoint.flatten_tree(states[0]).items():
        other = checkpoint.flatten_tree(states[1])[name]
        if name == "key":
            leaf, other = jax.random.key_data(leaf), jax.random.key_data(other)
        assert np.array_equal(leaf, other), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    run(out)
    return out


def test_a_run_leaves_its_config_numbers_pictures_checkpoints_and_world(uninterrupted: Path) -> None:
    from PIL import Image

    rows = read_metrics(uninterrupted)
    assert [row["step"] for row in rows] == list(range(1, 13)) and rows[-1]["loss"] < rows[0]["loss"]
    assert json.loads((uninterrupted / "config.json").read_text())["optimizer"] == {"learning_rate": 0.1}
    assert sorted(path.name for path in (uninterrupted / "pictures").iterdir()) == [
        "step_000006.png",
        "step_000012.png",
    ]
    assert np.asarray(Image.open(uninterrupted / "pictures" / "step_000006.png"))[0, 0, 0] == 6
    assert [folder.name for folder in checkpoint.checkpoints(uninterrupted / "checkpoints")] == ["8", "12"]
    assert checkpoint.load_world_files(uninterrupted / "world")[0] == {"name": "tiny"}


# An audit event of Python and what one of its arguments holds: the instant at which a child kills itself.
KILL_POINTS = {
    "in-the-state": ("os.mkdir", "/checkpoints/.8.", "/state"),
    "before-it-is-in-place": ("os.rename", "/checkpoints/8", ""),
    "while-an-old-one-is-removed": ("shutil.rmtree", "/checkpoints/4", ""),
}


@pytest.mark.parametrize("point", KILL_POINTS)
def test_killed_in_the_middle_of_a_save_and_started_again_equals_uninterrupted(
    uninterrupted: Path, tmp_path: Path, point: str
) -> None:
    out = tmp_path / "run"
    killed = subprocess.run([sys.executable, __file__, out, point], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = [folder.name for folder in checkpoint.checkpoints(out / "checkpoints")]
    assert left == (["8", "12"] if point == "while-an-old-one-is-removed" else ["4"])
    run(out)
    assert_ended_the_same(out, uninterrupted)
    assert [path.name for path in (out / "checkpoints").iterdir() if path.name.startswith(".")] == []


def test_terminated_it_saves_and_goes_on_to_the_same_bits(uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = TinyConfig()

    parts = tiny_parts(config)

    def step(state: Any, batch: Any) -> Any:
        if int(state.step) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return parts.step(state, batch)

    with pytest.raises(SystemExit) as stopped:
        loop.run(config, out, dataclasses.replace(parts, step=step))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert [folder.name for folder in checkpoint.checkpoints(out / "checkpoints")] == ["4", "6"]
    assert checkpoint.load_world_files(out / "world")[0] == {"name": "tiny"}
    run(out)
    assert_ended_the_same(out, uninterrupted)


def test_a_changed_config_is_refused_by_field_and_more_steps_are_welcome(uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, steps=8)
    with pytest.raises(loop.TrainingError, match="optimizer.learning_rate is 0.2, the folder has 0.1"):
        run(out, steps=12, optimizer=Optimizer(0.2))
    with pytest.raises(loop.TrainingError, match="is at step 8, --steps 5 lies behind it"):
        run(out, steps=5)
    run(out, steps=12)
    assert_ended_the_same(out, uninterrupted)


def test_a_finished_run_started_again_only_writes_its_world_anew(uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out)
    stamp = (out / "checkpoints" / "12" / "done").stat().st_mtime_ns
    run(out)
    assert (out / "checkpoints" / "12" / "done").stat().st_mtime_ns == stamp
    assert_ended_the_same(out, uninterrupted)


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        loop.TrainingError, match="the loss of step 6 is nan; the last good checkpoint is .*checkpoints/4"
    ):
        run(tmp_path / "run", poison_at=6)
    with pytest.raises(
        loop.TrainingError, match="the loss of step 8 is nan; the last good checkpoint is .*checkpoints/4"
    ):
        run(tmp_path / "at_a_save", poison_at=8)


def test_spoiled_weights_are_never_saved(tmp_path: Path) -> None:
    config = TinyConfig()

    parts = tiny_parts(config)

    def step(state: Any, batch: Any) -> Any:
        state, metrics = parts.step(state, batch)
        spoiled = jax.tree.map(lambda leaf: leaf * jnp.nan, state.params) if int(state.step) == 8 else state.params
        return dataclasses.replace(state, params=spoiled), metrics

    with pytest.raises(loop.TrainingError, match="after step 8 the weights dense/bias, dense/kernel are not finite"):
        loop.run(config, tmp_path, dataclasses.replace(parts, step=step))
    assert [folder.name for folder in checkpoint.checkpoints(tmp_path / "checkpoints")] == ["4"]


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    inner = TinyConfig(steps=1)
    with pytest.raises(loop.TrainingError, match=f"process {os.getpid()} trains there"):
        loop.run(inner, tmp_path, dataclasses.replace(tiny_parts(inner), init=lambda _: run(tmp_path, steps=1)))


def test_a_step_is_dispatched_before_the_numbers_of_the_one_before_are_read(tmp_path: Path) -> None:
    told: list[str] = []

    class Number:
        def __init__(self, step: int):
            self.step = step

        def __float__(self) -> float:
            told.append(f"read {self.step}")
            return 1.0

    config = TinyConfig(steps=3, log_every=100)

    def step(state: TinyState, batch: Any) -> Any:
        now = int(state.step) + 1
        told.append(f"dispatch {now}")
        return dataclasses.replace(state, step=state.step + 1), {"loss": Number(now)}

    loop.run(config, tmp_path, dataclasses.replace(tiny_parts(config), step=step))
    assert told[:4] == ["dispatch 1", "dispatch 2", "read 1", "dispatch 3"]


def run_until_killed(out: Path, point: str) -> None:
    """Trains, and sends itself SIGKILL at this point of a save."""
    event, *parts = KILL_POINTS[point]

    def watch(name: str, arguments: tuple[Any, ...]) -> None:
        if name == event and any(all(part in str(argument) for part in parts) for argument in arguments):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    run(out)


if __name__ == "__main__":
    run_until_killed(Path(sys.argv[1]), sys.argv[2])
