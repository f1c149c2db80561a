"""Frozen dataclass <-> JSON, a config file in Python, typed overrides on the command line.

A config is plain Python: real classes, no registry, no strings that name code. What is written beside the weights is
JSON and is read back strictly: every field must be there, none may be unknown, each must have its type.
"""

import dataclasses
import difflib
import importlib.util
import json
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

ConfigT = TypeVar("ConfigT")


class ConfigError(ValueError):
    """A config that cannot be what was meant; the message names the field, the file, what was given and what is known."""


def to_json(config: Any) -> dict[str, Any]:
    """The config as plain dicts, lists, strings, numbers and None.

    Where a field may hold one of several dataclasses, the chosen one is named under `kind`.

    Raises:
      ConfigError: a value does not fit the type of its field, or is of a type that JSON cannot hold.
    """
    return _encode(type(config), config, type(config).__name__, root=True)


def from_json(kind: type[ConfigT], value: Any, source: str) -> ConfigT:
    """The config that `to_json` wrote.

    Args:
      kind: The dataclass to build.
      value: What `json.loads` gave.
      source: Where it came from, for messages.

    Raises:
      ConfigError: a field is unknown, missing or of the wrong type.
    """
    return _decode(kind, value, "", source)


def write(config: Any, path: str | Path) -> None:
    """Writes the config as JSON, readable by people."""
    Path(path).write_text(json.dumps(to_json(config), indent=2) + "\n")


def read(kind: type[ConfigT], path: str | Path) -> ConfigT:
    """The config in a JSON file.

    Raises:
      ConfigError: no such file, not JSON, or not a config of this kind.
    """
    return from_json(kind, read_json(path), str(path))


def read_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
      ConfigError: no such file, or not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON ({error})") from error


def load(path: str | Path) -> Any:
    """What `config()` of a Python config file returns.

    Raises:
      ConfigError: no such file, no function `config`, or it does not return a dataclass.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1, cutoff=0.4)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"{path}: no such config file{hint}")
    spec = importlib.util.spec_from_file_location(f"config_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: a config is a Python file (*.py) with a function config()")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their own module
    spec.loader.exec_module(module)
    if not callable(getattr(module, "config", None)):
        raise ConfigError(f"{path}: has no function config(); write `def config() -> TrainConfig: ...`")
    config = module.config()
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ConfigError(f"{path}: config() returned {type(config).__name__}, not an instance of a dataclass")
    return config


def parse(config: Any, argv: Sequence[str], program: str = "train.py", description: str = "") -> Any:
    """The config with the overrides of a command line: `--optimizer.learning-rate 3e-4`.

    `--help` documents every field and leaves the program, as does a value of the wrong type.

    Args:
      config: A dataclass instance, or the path of a config file (see `load`).
      argv: The arguments, without the program's name.

    Raises:
      ConfigError: an option names no field; the known ones are listed.
    """
    import tyro

    if isinstance(config, str | Path):
        config = load(config)
    known, kind = list(_option_names(config)), _class_of(config)
    for argument in argv:
        name = argument.split("=", 1)[0].replace("_", "-")
        if name.startswith("--") and name not in ("--help", *known):
            raise ConfigError(f"{argument}: is no option of {kind.__name__}{_suggest(name, known)}")
    plain = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    return tyro.cli(kind, default=config, args=list(argv), prog=program, description=description, config=plain)


def changed_fields(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Every leaf in which two JSON values differ: dotted path -> (old, new)."""
    if _is_dict(old) and _is_dict(new):
        names = [*old, *(name for name in new if name not in old)]
        found: dict[str, tuple[Any, Any]] = {}
        for name in names:
            found |= changed_fields(old.get(name), new.get(name), _join(path, name))
        return found
    return {} if old == new and type(old) is type(new) else {path: (old, new)}


def _option_names(value: Any, path: str = "") -> Iterable[str]:
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _option_names(getattr(value, field.name), _join(path, field.name))
    elif _is_list(value) and any(dataclasses.is_dataclass(item) for item in value):
        for index, item in enumerate(value):
            yield from _option_names(item, _join(path, str(index)))
    else:
        yield "--" + path.replace("_", "-")


def _class_of(value: Any) -> type[Any]:
    return type(value)


def _is_dict(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _suggest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return (f"; did you mean {near[0]}?" if near else "") + f" (known: {', '.join(known) or 'none'})"


def _kind_of(kind: type) -> str:
    """The name a dataclass goes by in a union: the default of its field `kind`, else the name of the class."""
    for field in dataclasses.fields(kind):
        if field.name == "kind" and isinstance(field.default, str):
            return field.default
    return kind.__name__


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _members(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _dataclasses_in(hint: Any) -> dict[str, type]:
    return {_kind_of(member): member for member in _members(hint) if dataclasses.is_dataclass(member)}  # type: ignore


def _encode(hint: Any, value: Any, path: str, root: bool = False) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        fields = {
            field.name: _encode(hints[field.name], getattr(value, field.name), _join(path, field.name))
            for field in dataclasses.fields(value)
        }
        is_choice = not root and len(_dataclasses_in(hint)) > 1
        return ({"kind": _kind_of(type(value))} if is_choice else {}) | fields
    if _is_list(value):
        item_hints = _item_hints(hint, len(value))
        return [_encode(item_hints[i], item, _join(path, str(i))) for i, item in enumerate(value)]
    if _is_dict(value):
        of = (typing.get_args(hint) or (str, Any))[1]
        return {str(name): _encode(of, item, _join(path, str(name))) for name, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"{path}: a {type(value).__name__} cannot be written as JSON")


def _item_hints(hint: Any, count: int) -> list[Any]:
    for member in _members(hint):
        arguments = typing.get_args(member)
        if typing.get_origin(member) in (tuple, list) and arguments:
            if typing.get_origin(member) is list or arguments[-1] is Ellipsis:
                return [arguments[0]] * count
            return list(arguments) if len(arguments) == count else [Any] * count
    return [Any] * count


def _decode(hint: Any, value: Any, path: str, source: str) -> Any:
    members = _members(hint)
    if value is None and type(None) in members:
        return None
    choices = _dataclasses_in(hint)
    if choices and _is_dict(value):
        return _decode_dataclass(_choose(choices, value, path, source), value, path, source, len(choices) > 1)
    for member in members:
        is_found, found = _decode_plain(member, value, path, source)
        if is_found:
            return found
    raise ConfigError(f"{source}: {path or 'config'} is {value!r} ({type(value).__name__}), it must be {_name(hint)}")


def _choose(choices: dict[str, type], value: dict[str, Any], path: str, source: str) -> type:
    if len(choices) == 1:
        return next(iter(choices.values()))
    kind = value.get("kind")
    if kind not in choices:
        raise ConfigError(f"{source}: {_join(path, 'kind')} is {kind!r}{_suggest(str(kind), choices)}")
    return choices[kind]


def _decode_dataclass(kind: type, value: dict[str, Any], path: str, source: str, is_choice: bool) -> Any:
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    for name in value:
        if name not in names and not (is_choice and name == "kind"):
            raise ConfigError(f"{source}: {_join(path, name)} is no field of {kind.__name__}{_suggest(name, names)}")
    missing = [_join(path, name) for name in names if name not in value]
    if missing:
        raise ConfigError(f"{source}: {', '.join(missing)} missing; {kind.__name__} needs {', '.join(names)}")
    fields = {name: _decode(hints[name], value[name], _join(path, name), source) for name in names}
    try:
        return kind(**fields)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{source}: {path or kind.__name__}: {error}") from error


def _decode_plain(hint: Any, value: Any, path: str, source: str) -> tuple[bool, Any]:
    """(True, the value as this type), or (False, None) where it is not of this type."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return True, value
    if origin is typing.Literal:
        is_one = any(value == option and type(value) is type(option) for option in typing.get_args(hint))
        return is_one, value
    if origin in (tuple, list) and _is_list(value):
        arguments = typing.get_args(hint)
        is_fixed = origin is tuple and arguments[-1:] != (Ellipsis,)
        if is_fixed and len(arguments) != len(value):
            return False, None
        hints = _item_hints(hint, len(value))
        items = [_decode(hints[i], item, _join(path, str(i)), source) for i, item in enumerate(value)]
        return True, tuple(items) if origin is tuple else items
    if origin is dict and _is_dict(value):
        of = typing.get_args(hint)[1]
        return True, {name: _decode(of, item, _join(path, name), source) for name, item in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return True, float(value)
    if hint is Path and isinstance(value, str):
        return True, Path(value)
    return isinstance(hint, type) and type(value) is hint, value
