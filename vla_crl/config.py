"""Strict settings: TOML file -> frozen dataclass -> command-line flags.

A file names only what differs from the defaults. An unknown key, a missing one or a value of the
wrong type is an error that says where it stands; building a config never changes it.
"""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from vla_crl.errors import ConfigError
from vla_crl.files import write_atomically

T = TypeVar("T")
MAX_SEED = 2**32 - 1
"""Greatest seed of a recipe; seeds of stages and episodes are made of it."""


def check_seed(seed: int, name: str = "seed") -> None:
    """Refuse a seed that is negative or too large.

    Args:
        seed: The number.
        name: How the error calls it.

    Raises:
        ConfigError: It is.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"{name} is {seed}, expected 0 to {MAX_SEED}")


def load_toml(config_class: type[T], path: Path) -> T:
    """Read a TOML file into `config_class`.

    Raises:
        ConfigError: The file is missing, is not TOML or does not fit the class.
    """
    return from_mapping(config_class, read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file as plain data.

    Raises:
        ConfigError: The file is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error


def from_mapping(config_class: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Build `config_class` from plain data such as TOML or JSON.

    Args:
        config_class: A dataclass; fields may be dataclasses, tuples, dicts, unions and literals.
        mapping: Keys are field names.
        where: File or flag, the beginning of every error message.

    Raises:
        ConfigError: Unknown or missing key, wrong type, or a range that the class rejects.
    """
    if not isinstance(cast(Any, mapping), Mapping):
        raise ConfigError(f"{where}: got {mapping!r}, expected settings of {config_class.__name__}")
    fields = {field.name: field for field in dataclasses.fields(cast(Any, config_class))}
    for key in mapping:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            hint = f"Did you mean '{close[0]}'? " if close else ""
            known = ", ".join(fields) or "none"
            raise ConfigError(
                f"{where}: unknown key '{key}' in {config_class.__name__}. {hint}Known: {known}."
            )
    for name, field in fields.items():
        if _is_required(field) and name not in mapping:
            raise ConfigError(f"{where}: key '{name}' of {config_class.__name__} is missing")
    hints = typing.get_type_hints(config_class)
    values = {key: _convert(hints[key], value, where, key) for key, value in mapping.items()}
    try:
        return config_class(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def check_types(config: object, where: str) -> None:
    """Refuse a dataclass whose values are not of the types that its fields say.

    `from_mapping` does so on its own; Python does not.

    Args:
        config: The dataclass.
        where: The beginning of the error message.

    Raises:
        ConfigError: Names the first field that is wrong.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        _convert(hint, getattr(config, name), where, name)


def to_mapping(config: object) -> dict[str, Any]:
    """Return a config as plain data that `from_mapping` reads back to an equal config."""
    return dataclasses.asdict(cast(Any, config))


def override(config: T, arguments: Sequence[str], prog: str) -> T:
    """Return `config` with command-line flags applied, e.g. `--ppo.learning-rate 1e-3`.

    A wrong flag, type or range, or `--help`, ends the program as command lines do (exit code 2
    or 0) and names the nearest flag.

    Args:
        config: The defaults.
        arguments: Flags; empty leaves the config as it is.
        prog: What the help text calls the program.
    """
    if not arguments:
        return config
    import tyro

    return tyro.cli(
        type(config),
        default=config,
        args=arguments,
        prog=prog,
        config=(tyro.conf.AvoidSubcommands,),
    )


def differing_settings(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the settings of two configs, as plain data, that differ; a missing one is None.

    Returns:
        Keys like `ppo.learning_rate`, sorted, to the values of both.
    """
    ours, theirs = _flat(one), _flat(other)
    return {
        key: (ours.get(key), theirs.get(key))
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    }


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(cast(Mapping[str, Any], value), f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def save_json(config: object, path: Path) -> None:
    """Write a dataclass or plain data as indented JSON."""
    data = to_mapping(config) if dataclasses.is_dataclass(config) else config
    write_atomically(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    """Return `value` as the type `hint`, or raise an error that names the key."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        section = f"{where}.{key}" if ":" in where else f"{where}:{key}"
        return from_mapping(cast(type[Any], hint), cast(Mapping[str, Any], value), section)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where, key)
    if origin is tuple and isinstance(value, (list, tuple)):
        return _convert_tuple(arguments, cast(Sequence[Any], value), where, key)
    if origin is dict and isinstance(value, Mapping):
        items = cast(Mapping[str, Any], value).items()
        return {name: _convert(arguments[1], item, where, f"{key}.{name}") for name, item in items}
    if origin is Literal and type(value) is str and value not in arguments:
        close = difflib.get_close_matches(value, map(str, arguments), n=1, cutoff=0.5)
        suggestion = f" Did you mean '{close[0]}'?" if close else ""
        raise ConfigError(f"{where}: {key} = '{value}', expected {_name(hint)}.{suggestion}")
    if origin is Literal and any(type(value) is type(a) and value == a for a in arguments):
        return value
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and type(value) is str:
        return Path(value)
    # `type` and not `isinstance`: True is an int to Python, but never to a user.
    if hint is Any or (isinstance(hint, type) and type(value) is hint):
        return value
    raise ConfigError(
        f"{where}: {key} = {value!r} ({type(value).__name__}), expected {_name(hint)}"
    )


def _convert_union(members: tuple[Any, ...], value: Any, where: str, key: str) -> Any:
    errors: list[ConfigError] = []
    # TOML has no null: "None" switches an optional setting off, as it does in a flag.
    if types.NoneType in members and (value is None or (value == "None" and str not in members)):
        return None
    classes = [member for member in members if dataclasses.is_dataclass(member)]
    if classes and isinstance(value, Mapping):
        # Of several the one that fits best; its errors help most.
        keys = list(cast(Mapping[str, Any], value))
        return _convert(max(classes, key=lambda c: _fit(c, keys)), value, where, key)
    for member in members:
        try:
            if member is not types.NoneType:
                return _convert(member, value, where, key)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == 1 and value is not None:
        raise errors[0]
    names = " | ".join(_name(member) for member in members)
    raise ConfigError(f"{where}: {key} = {value!r} ({type(value).__name__}), expected {names}")


def _fit(config_class: Any, keys: Sequence[str]) -> tuple[int, int]:
    """Count the required fields that the keys name or nearly name, then all that they name."""
    fields = dataclasses.fields(config_class)
    required = [field.name for field in fields if _is_required(field)]
    near = [name for name in required if difflib.get_close_matches(name, keys, cutoff=0.7)]
    return len(near), len({field.name for field in fields} & set(keys))


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return (field.default, field.default_factory) == (dataclasses.MISSING,) * 2


def _convert_tuple(members: tuple[Any, ...], value: Sequence[Any], where: str, key: str) -> Any:
    if members[-1] is Ellipsis:
        members = (members[0],) * len(value)
    if len(members) != len(value):
        raise ConfigError(f"{where}: {key} has {len(value)} entries, expected {len(members)}")
    pairs = zip(members, value, strict=True)
    return tuple(_convert(m, v, where, f"{key}[{i}]") for i, (m, v) in enumerate(pairs))


def _name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(hint))
    if hint is types.NoneType:
        return "None"
    members = [member for member in typing.get_args(hint) if member is not Ellipsis]
    if typing.get_origin(hint) is tuple:
        return "a list" + ("" if members[0] is Any else " of " + ", ".join(map(_name, members)))
    if typing.get_origin(hint) is dict:
        return f"a table of {_name(members[1])}"
    return hint.__name__ if isinstance(hint, type) else str(hint)
