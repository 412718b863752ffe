"""Strict settings: TOML file -> frozen dataclass; `flags` overrides them on the command line.

A file names only what differs from the defaults. An unknown key, a missing one or a value of the
wrong type or out of range is an error that says where it stands; building a config never changes
it. A range is declared where its field is, in the words of the package annotated-types:

    rank: Annotated[int, Interval(ge=1, le=4096)] = 8
"""

import dataclasses
import difflib
import functools
import json
import operator
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

from annotated_types import (
    BaseMetadata,
    Ge,
    GroupedMetadata,
    Gt,
    Interval,
    Le,
    Lt,
    MaxLen,
    MinLen,
    MultipleOf,
)

from vla_crl.errors import ConfigError
from vla_crl.files.reading import check_plain, parse_toml, read_text, shown
from vla_crl.files.writing import write_atomically

T = TypeVar("T")
MAX_SEED = 2**32 - 1
"""Greatest seed of a recipe; seeds of stages and episodes are made of it."""
Seed = Annotated[int, Interval(ge=0, le=MAX_SEED)]
Count = Annotated[int, Interval(ge=1, le=10**9)]
"""Of what there is at least one."""
Size = Annotated[int, Interval(ge=1, le=2**16)]
"""Of an edge, a layer, a batch."""
ImageSize = Annotated[int, Interval(ge=1, le=4096)]
"""Height and width in pixels."""
Fraction = Annotated[float, Interval(ge=0, le=1)]
Names = Annotated[tuple[str, ...], MinLen(1)]
"""At least one."""


class Settings:
    """Base of settings: a frozen dataclass that is as its fields declare, whoever makes it.

    What its fields demand of each other is checked by a `__post_init__` that calls this one first.
    """

    def __post_init__(self) -> None:
        """Check types and ranges.

        Raises:
            ConfigError: Names the first field that is wrong.
        """
        for name, hint in hints_of(type(self)).items():
            _convert(hint, getattr(self, name), type(self).__name__, name)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Declared beside a field of type `Settings`: of which class they are is chosen by a name.

        learner: Annotated[Settings, Chosen("learner", find_learner)]

    As plain data they are a table with the name as `kind`; all other keys are fields of the class
    that has the name. So everybody may bring a class, with settings of its own.

    Attributes:
        what: Is chosen, for errors.
        find: From a name to what has it, with the class of its settings as `config_class`; these
            declare `kind: str`.
    """

    what: str
    find: Callable[[str], Any]

    def settings_class(self, kind: str) -> type[Any]:
        """Return the class of the settings of one kind.

        Raises:
            ConfigError: There is no such kind.
        """
        return self.find(kind).config_class

    def convert(self, value: Any, where: str, key: str) -> Any:
        """Return the settings that a table holds, or settings themselves if they are of a kind."""
        if not isinstance(value, Mapping):
            kind = getattr(value, "kind", None)
            if isinstance(value, Settings) and type(value) is self.settings_class(str(kind)):
                return value
            raise ConfigError(
                f"{where}: {key} = {shown(value)} ({type(value).__name__}), expected settings of "
                f"a {self.what}: a table with a kind"
            )
        table = cast(Mapping[str, Any], value)
        if not isinstance(kind := table.get("kind"), str):
            raise ConfigError(
                f"{where}: {key}.kind = {shown(kind)}, expected the name of a {self.what}"
            )
        section = f"{where}.{key}" if ":" in where else f"{where}:{key}"
        try:
            config_class = self.settings_class(kind)
        except ConfigError as error:
            raise ConfigError(f"{section}: {error}") from error
        return from_mapping(config_class, table, section)


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
    return parse_toml(read_text(path), str(path))


def from_mapping(config_class: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Build `config_class` from plain data such as TOML or JSON.

    Args:
        config_class: A dataclass; fields may be dataclasses, tuples, dicts, unions and literals.
        mapping: Keys are field names.
        where: File or flag, the beginning of every error message.

    Raises:
        ConfigError: Unknown or missing key, wrong type, or a range that the class rejects.
    """
    hints = hints_of(_require_mapping(mapping, config_class, where))
    for key in mapping:
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1, cutoff=0.5)
            hint = f"Did you mean '{close[0]}'? " if close else ""
            raise ConfigError(
                f"{where}: unknown key {shown(key)} in {config_class.__name__}. {hint}"
                f"Known: {', '.join(hints) or 'none'}."
            )
    values = _values(config_class, mapping, where)
    try:
        return config_class(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def as_record(record_class: type[Any], mapping: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return plain data of which a dataclass declares what it needs to hold; it may hold more.

    Args:
        record_class: As of `from_mapping`.
        mapping: Likewise.
        where: Likewise.

    Raises:
        ConfigError: Missing key, wrong type or range.
    """
    values = _values(_require_mapping(mapping, record_class, where), mapping, where)
    return {**mapping, **{name: _plain(value) for name, value in values.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [*cast(tuple[Any, ...], value)]
    return to_mapping(value) if dataclasses.is_dataclass(value) else value


def _require_mapping(mapping: object, config_class: type[T], where: str) -> type[T]:
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            f"{where}: got {shown(mapping)}, expected settings of {config_class.__name__}"
        )
    return config_class


def _values(config_class: type[Any], mapping: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the values of all fields that the mapping names."""
    for field in dataclasses.fields(config_class):
        if _is_required(field) and field.name not in mapping:
            raise ConfigError(f"{where}: key '{field.name}' of {config_class.__name__} is missing")
    return {
        name: _convert(hint, _with_kind(field, hint, mapping[name]), where, name)
        for field, (name, hint) in zip(
            dataclasses.fields(config_class), hints_of(config_class).items(), strict=True
        )
        if name in mapping
    }


def _with_kind(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """Return a table of settings that are chosen by name; without one, that of the default."""
    make = cast(Any, field.default_factory)
    if make is dataclasses.MISSING or not chosen_by(hint) or not isinstance(value, Mapping):
        return value  # pyright: ignore[reportUnknownVariableType]
    return {"kind": make().kind, **cast(Mapping[str, Any], value)}


@functools.cache
def hints_of(config_class: type[Any]) -> dict[str, Any]:
    """Return what the fields of a dataclass declare, by name."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def to_mapping(config: object) -> dict[str, Any]:
    """Return a config as plain data that `from_mapping` reads back to an equal config."""
    return dataclasses.asdict(cast(Any, config))


def differing_settings(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the settings of two configs, as plain data, that differ; a missing one is None.

    Returns:
        Keys like `learner.learning_rate`, sorted, to the values of both.
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
    if origin is Annotated:
        if chosen := chosen_by(hint):
            return chosen.convert(value, where, key)
        return _within(arguments[1:], _convert(arguments[0], value, where, key), where, key)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        section = f"{where}.{key}" if ":" in where else f"{where}:{key}"
        return from_mapping(cast(type[Any], hint), cast(Mapping[str, Any], value), section)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where, key)
    if origin is tuple and isinstance(value, (list, tuple)):
        return _convert_tuple(arguments, cast(Sequence[Any], value), where, key)
    if origin is dict and isinstance(value, Mapping):
        items = cast(Mapping[str, Any], value).items()
        return {
            _convert(arguments[0], name, where, f"a key of {key}"): _convert(
                arguments[1], item, where, f"{key}.{name}"
            )
            for name, item in items
        }
    # `type` and not `isinstance`: True is an int to Python, but never to a user.
    if origin is Literal:
        is_value = any(type(value) is type(choice) and value == choice for choice in arguments)
    else:
        is_value = hint is Any or (hint, type(value)) in ((float, int), (Path, str))
        is_value |= isinstance(hint, type) and type(value) is hint
    if not is_value:
        choices = [*map(str, arguments)] if origin is Literal and type(value) is str else []
        close = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
        came = shown(value) if choices else f"{shown(value)} ({type(value).__name__})"
        suggestion = f". Did you mean '{close[0]}'?" if close else ""
        raise ConfigError(f"{where}: {key} = {came}, expected {_name(hint)}{suggestion}")
    if hint in (Any, int, float, str, Path):
        check_plain(str(value) if hint is Path else value, where, key)
    return hint(value) if hint in (float, Path) else value


_LIMITS: dict[type, tuple[str, str, Callable[[Any, Any], bool]]] = {
    Ge: ("ge", "at least", operator.ge),
    Gt: ("gt", "more than", operator.gt),
    Le: ("le", "at most", operator.le),
    Lt: ("lt", "less than", operator.lt),
    MinLen: ("min_length", "at least", operator.ge),
    MaxLen: ("max_length", "at most", operator.le),
    MultipleOf: ("multiple_of", "a multiple of", lambda value, bound: value % bound == 0),
}
"""By what declares it: attribute with the bound, words and comparison."""


def _limits(metadata: Sequence[object]) -> Iterator[tuple[str, Callable[[Any], bool]]]:
    """Yield in words, and as a test, what is declared beside a type; notes of others are none."""
    for limit in metadata:
        if isinstance(limit, GroupedMetadata):
            yield from _limits([*limit])
        elif isinstance(limit, BaseMetadata):
            attribute, words, compare = _LIMITS[type(limit)]
            bound = getattr(limit, attribute)
            yield f"{words} {bound}", functools.partial(_fits, compare, bound)


def _fits(compare: Callable[[Any, Any], bool], bound: float, value: Any) -> bool:
    return compare(value if isinstance(value, (int, float)) else len(value), bound)


def _within(metadata: Sequence[object], value: Any, where: str, key: str) -> Any:
    """Return `value` if it is within what is declared beside its type."""
    limits = dict(_limits(metadata))
    if all(fits(value) for fits in limits.values()):
        return value
    came = f"= {shown(value)}" if isinstance(value, (int, float)) else f"has {len(value)} entries"
    raise ConfigError(f"{where}: {key} {came}, expected {' and '.join(limits)}")


def chosen_by(hint: Any) -> Chosen | None:
    """Return how the class of a field is chosen, if it is."""
    found = [data for data in getattr(hint, "__metadata__", ()) if isinstance(data, Chosen)]
    return found[0] if found else None


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
    raise ConfigError(f"{where}: {key} = {shown(value)} ({type(value).__name__}), expected {names}")


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
    if typing.get_origin(hint) is Annotated:
        base, *metadata = typing.get_args(hint)
        limits = " and ".join(words for words, _ in _limits(metadata))
        return f"{_name(base)} {limits}".rstrip()
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
