"""A config is what was meant, or it is refused with the field, the file, what was given and what is known."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest

from wm_jax import config as config_lib
from wm_jax.config import ConfigError
from wm_jax.types import ControlSpace, KeyBinding


@dataclasses.dataclass(frozen=True)
class Muon:
    """Momentum for matrices.

    Attributes:
      learning_rate: Peak rate after the warm-up.
    """

    learning_rate: float = 1e-3


@dataclasses.dataclass(frozen=True)
class Adam:
    """The plain one.

    Attributes:
      learning_rate: Peak rate.
      betas: Decay of both moments.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    kind: Literal["adam"] = "adam"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
      name: What to call it.
      controls: What a user may press.
      optimizer: How to go downhill.
      mode: Fast or slow.
      widths: One number a layer.
      seed: Where chance starts.
      init_from: A folder, or nothing.
      is_loud: Whether to shout.
      notes: Anything, by name.
    """

    name: str
    controls: ControlSpace
    optimizer: Muon | Adam = Muon()
    mode: Literal["fast", "slow"] = "fast"
    widths: tuple[int, ...] = (8, 16)
    seed: int = 0
    init_from: str | None = None
    is_loud: bool = False
    notes: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, it must not be negative")


RUN = Run("toy", ControlSpace((KeyBinding("KeyW", "up"), KeyBinding("KeyS", "down"))), Adam(), notes={"a": 1.0})


def test_a_config_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    for run in (RUN, dataclasses.replace(RUN, optimizer=Muon(3e-4), init_from="runs/x", widths=())):
        config_lib.write(run, tmp_path / "config.json")
        assert config_lib.read(Run, tmp_path / "config.json") == run
    assert config_lib.to_json(RUN)["optimizer"] == {"kind": "adam", "learning_rate": 1e-3, "betas": [0.9, 0.99]}
    assert config_lib.to_json(dataclasses.replace(RUN, optimizer=Muon()))["optimizer"]["kind"] == "Muon"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sede", 3, "here.json: sede is no field of Run; did you mean seed"),
        ("optimizer.bets", 3, "optimizer.bets is no field of Adam; did you mean betas"),
        ("optimizer.kind", "adma", "optimizer.kind is 'adma'; did you mean adam.*known: Muon, adam"),
        ("seed", "3", "here.json: seed is '3' .str., it must be int"),
        ("seed", True, "seed is True .bool., it must be int"),
        ("seed", 1.5, "seed is 1.5 .float., it must be int"),
        ("seed", -1, "here.json: Run: seed is -1, it must not be negative"),
        ("mode", "medium", "mode is 'medium' .*Literal"),
        ("widths", [1, "b"], "widths.1 is 'b' .str., it must be int"),
        ("optimizer.betas", [0.9], "optimizer.betas is .0.9. .list., it must be tuple.float, float"),
        ("controls.keys", [{"code": "KeyW"}], "controls.keys.0.label missing; KeyBinding needs code, label"),
        ("init_from", 3, "init_from is 3 .int., it must be str . None"),
        ("notes", {"a": "b"}, "notes.a is 'b'"),
        ("optimizer", None, "optimizer is None"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_by_field_and_both_sides(path: str, value: Any, message: str) -> None:
    as_json = json.loads(json.dumps(config_lib.to_json(RUN)))
    node, *rest = as_json, *path.split(".")
    for name in rest[:-1]:
        node = node[name]
    node[rest[-1]] = value
    with pytest.raises(ConfigError, match=message):
        config_lib.from_json(Run, as_json, "here.json")


def test_a_missing_field_is_named_even_where_it_has_a_default() -> None:
    as_json = config_lib.to_json(RUN)
    del as_json["seed"], as_json["name"]
    with pytest.raises(ConfigError, match="here.json: name, seed missing; Run needs name, controls"):
        config_lib.from_json(Run, as_json, "here.json")


def test_a_file_that_is_absent_or_not_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent.json: cannot be read"):
        config_lib.read(Run, tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text('{"name": ')
    with pytest.raises(ConfigError, match="cut.json: is not JSON"):
        config_lib.read(Run, tmp_path / "cut.json")


def test_a_config_file_is_plain_python(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("from wm_jax.types import *\ndef config():\n  return KeyBinding('KeyW', 'up')\n")
    assert config_lib.load(tmp_path / "run.py") == KeyBinding("KeyW", "up")
    for text, message in (("x = 1", r"has no function config\(\)"), ("def config(): return 3", "returned int")):
        (tmp_path / "bad.py").write_text(text)
        with pytest.raises(ConfigError, match=message):
            config_lib.load(tmp_path / "bad.py")
    with pytest.raises(ConfigError, match="no such config file; did you mean .*run.py"):
        config_lib.load(tmp_path / "runs.py")


def test_overrides_are_typed() -> None:
    argv = [
        "--optimizer.betas",
        "0.5",
        "0.75",
        "--is_loud",
        "True",
        "--init-from=runs/x",
        "--controls.keys.1.code",
        "KeyX",
    ]
    run = config_lib.parse(RUN, argv)
    assert run.optimizer == Adam(betas=(0.5, 0.75)) and run.is_loud and run.init_from == "runs/x"
    assert run.controls.codes == ("KeyW", "KeyX") and run.name == RUN.name


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean --optimizer.learning-rate.*known: --name, .*--is-loud"):
        config_lib.parse(RUN, ["--optimizer.leaning-rate", "1"])


def test_an_override_of_the_wrong_type_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        config_lib.parse(RUN, ["--seed", "many"])
    assert "--seed" in capsys.readouterr().err


def test_help_documents_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        config_lib.parse(RUN, ["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in (
        "--seed INT",
        "Where chance starts.",
        "Decay of both moments.",
        "--controls.keys.0.code",
        "default: 0.9",
    ):
        assert words in text, words


def test_changed_fields_are_named_with_both_values() -> None:
    new = dataclasses.replace(RUN, seed=5, optimizer=Adam(betas=(0.9, 0.95)), controls=ControlSpace(()))
    changed = config_lib.changed_fields(config_lib.to_json(RUN), config_lib.to_json(new))
    assert changed["seed"] == (0, 5) and changed["optimizer.betas"] == ([0.9, 0.99], [0.9, 0.95])
    assert set(changed) == {"seed", "optimizer.betas", "controls.keys"}
    assert not config_lib.changed_fields(config_lib.to_json(RUN), config_lib.to_json(RUN))
