"""Command-line flags that override settings, one for each field: `--learner.learning-rate 1e-3`."""

import argparse
import contextlib
import dataclasses
import io
import itertools
import re
import textwrap
import typing
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from vla_crl.config import chosen_by, from_mapping, hints_of, to_mapping
from vla_crl.errors import ConfigError

T = TypeVar("T")
MAX_CAUSE = 1000
"""Characters of what is told of a flag."""


def override(config: T, arguments: Sequence[str], prog: str) -> T:
    """Return `config` with flags applied.

    `--help` prints all flags and ends the program. Of settings that are chosen by a name, `Chosen`,
    a flag `--learner.kind` chooses others; their flags are there then, and what was set of the
    first is gone.

    Args:
        config: The defaults.
        arguments: Flags; empty leaves the config as it is.
        prog: What the help text calls the program.

    Raises:
        ConfigError: A wrong flag, type or range; names the nearest flag.
    """
    if not arguments:
        return config
    others = _of_other_kinds(config, arguments, prog)
    if not others:
        return _parse(config, arguments, prog)
    fields = {field.name: getattr(config, field.name) for field in _fields(config)}
    begun = {name: unfinished(other)(kind=kind) for name, (kind, other) in others.items()}
    parsed = _parse(unfinished(type(config))(**fields | begun), arguments, prog)
    fields = {name: getattr(parsed, name) for name in fields}
    for name, (_, other) in others.items():
        fields[name] = from_mapping(other, to_mapping(fields[name]), f"{prog}:{name}")
    try:
        return type(config)(**fields)
    except ConfigError as error:
        raise ConfigError(f"{prog}: {error}") from error


def switch_sections(config: Any, flags: Sequence[str]) -> tuple[Any, list[str]]:
    """Apply flags that switch a section off, `--lora None`, or on where it is off, `--lora.rank 4`.

    Args:
        config: With sections, of which some may be None.
        flags: As on the command line.

    Returns:
        The config, and the flags that are left.

    Raises:
        ConfigError: The config may not be so.
    """
    left, changes = list(flags), {}
    for name, hint in hints_of(type(config)).items():
        members = typing.get_args(hint)
        sections = [member for member in members if dataclasses.is_dataclass(member)]
        if type(None) not in members or len(sections) != 1:
            continue
        flag = f"--{name.replace('_', '-')}"
        is_off = any(pair == (flag, "None") for pair in itertools.pairwise(left))
        if is_off or f"{flag}=None" in left:
            place = left.index(flag) if is_off else left.index(f"{flag}=None")
            del left[place : place + 1 + is_off]
            changes[name] = None
        elif getattr(config, name) is None and any(f.startswith(f"{flag}.") for f in left):
            changes[name] = cast(Any, sections[0])()
    return (dataclasses.replace(config, **changes) if changes else config), left


def flag_value(name: str, arguments: Sequence[str]) -> str | None:
    """Return what is behind a flag, if that is there."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name, nargs="?", dest="value")
    return parser.parse_known_args(arguments)[0].value


def unfinished(settings_class: type[Any]) -> type[Any]:
    """Return the class with all settings optional and unchecked: tyro asks for missing ones."""
    import tyro

    types = typing.get_type_hints(settings_class, include_extras=True)
    required = [
        (field.name, types[field.name], tyro.MISSING)
        for field in dataclasses.fields(settings_class)
        if field.default is field.default_factory is dataclasses.MISSING
    ]
    unfinished_class = dataclasses.make_dataclass(
        settings_class.__name__,
        required,
        bases=(settings_class,),
        namespace={"__post_init__": lambda self: None},
        frozen=settings_class.__dataclass_params__.frozen,
        kw_only=True,
    )
    unfinished_class.__doc__ = settings_class.__doc__
    return unfinished_class


def _of_other_kinds(
    config: Any, arguments: Sequence[str], prog: str
) -> dict[str, tuple[str, type[Any]]]:
    """Return kind and class of the settings that flags choose in the place of others, by field."""
    others: dict[str, tuple[str, type[Any]]] = {}
    for name, hint in hints_of(type(config)).items():
        if not (chosen := chosen_by(hint)):
            continue
        flag = f"--{name.replace('_', '-')}.kind"
        kind = flag_value(flag, arguments)
        if kind is not None and kind != getattr(config, name).kind:
            try:
                others[name] = kind, chosen.settings_class(kind)
            except ConfigError as error:
                raise ConfigError(f"{prog}: {flag}: {error}") from error
    return others


def _fields(config: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(config)


def _parse(config: T, arguments: Sequence[str], prog: str) -> T:
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                type(config),
                default=config,
                args=arguments,
                prog=prog,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
    raise ConfigError(f"{prog}: {_unboxed(complaint.getvalue())} (see {prog} --help)")


def _unboxed(text: str) -> str:
    """Return in one line what tyro tells in a box: title, cause and hints, with lines between."""
    flat = " ".join(re.sub(r"\x1b\[[\d;]*m|[│╭╮╰╯]", " ", text).split())
    parts = [part for part in re.split(r" ?[─-]{5,} ?", flat) if part]
    cause = textwrap.shorten(parts[1] if len(parts) > 1 else flat, MAX_CAUSE, placeholder="...")
    nearest = re.search(r"Perhaps you meant: .*?(--\S+)", flat)
    return f"{cause}. Did you mean {nearest[1]}?" if nearest else cause.rstrip(".")
