"""Recipes: files that may build on one another, and the flags that override them."""

import dataclasses
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from vla_crl import catalog
from vla_crl.config import differing_settings, from_mapping, hints_of, read_toml, to_mapping
from vla_crl.errors import CheckpointError, ConfigError
from vla_crl.flags import flag_value, override, switch_sections
from vla_crl.left_out import Choice, Key, LeftOut, chosen_by_flags, lay_over, leaves

logger = logging.getLogger(__name__)

RECIPE_CLASSES = {
    "pretrain": "vla_crl.pretraining.recipe:PretrainConfig",
    "train": "vla_crl.continual.recipe:TrainConfig",
    "baseline": "vla_crl.sb3.recipe:BaselineConfig",
}
"""What a recipe says, for each command that takes one."""
EXTENDS = "extends"
"""Key of a recipe: the name of another one, or its path from the folder of this one."""


@dataclass(frozen=True)
class Recipe:
    """A recipe with those that it builds on.

    Attributes:
        files: Its file, then that of the recipe which it extends, and so on.
        settings: What they say together: settings of the first that has them, sections merged.
        origins: The file of each setting.
        left_out: Settings of a learner or a method in whose place a file chooses another one.
    """

    files: tuple[Path, ...]
    settings: dict[str, Any]
    origins: dict[Key, Path]
    left_out: dict[Choice, LeftOut]

    @property
    def where(self) -> str:
        """What errors call it."""
        return _chain(self.files)

    def as_toml(self) -> str:
        """Write the settings as a recipe that builds on nothing, each with the file it is from."""
        lines = [f"# {path}" for path in self.files]
        for key, value in leaves(self.settings):
            lines.append(f"{_line(key, value)}  # {self.origins[key].name}")
        for left in self.left_out.values():
            reason = f"of {left.choice.what} '{left.before}', not '{left.now}'"
            lines += [f"# left out: {_line(key, v)}  # {reason}" for key, v in left.keys.items()]
        return "\n".join(lines) + "\n"


def read_recipe(name: str) -> Recipe:
    """Read a recipe and all that it builds on.

    Args:
        name: Of the catalogue, or a path.

    Raises:
        ConfigError: There is none, it is no TOML, or what it extends is missing or extends it.
    """
    files = [catalog.recipe_path(name)]
    contents = [read_toml(files[0])]
    while EXTENDS in contents[-1]:
        files.append(_extended(contents[-1].pop(EXTENDS), files))
        contents.append(read_toml(files[-1]))
    settings: dict[str, Any] = {}
    left: dict[Choice, LeftOut] = {}
    for place in reversed(range(len(files))):
        where = _chain(files[place:])
        settings, left = lay_over(settings, contents[place], left, where)
    said = [dict(leaves(content)) for content in contents]
    origins = {
        key: next(file for file, keys in zip(files, said, strict=True) if key in keys)
        for key, _ in leaves(settings)
    }
    return Recipe(tuple(files), settings, origins, left)


def load_recipe(command: str, name: str, overrides: Sequence[str] = ()) -> Any:
    """Return the settings of a recipe with flags applied.

    Args:
        command: One of `RECIPE_CLASSES`.
        name: Of the catalogue, or a path.
        overrides: Flags, as on the command line.

    Returns:
        An instance of the command's class; of a method the settings are complete.

    Raises:
        ConfigError: The recipe or a flag is not as it should be.
    """
    recipe, prog = read_recipe(name), f"vla-crl {command} {name}"
    try:
        config = _read(command, recipe)
    except ConfigError as error:
        for other in RECIPE_CLASSES:
            if other != command and _is_recipe(other, recipe):
                raise ConfigError(
                    f"{recipe.files[0]}: is a recipe of 'vla-crl {other}', not of 'vla-crl "
                    f"{command}'"
                ) from error
        raise
    try:
        config, overrides = switch_sections(config, overrides)
    except ConfigError as error:
        raise ConfigError(f"{prog}: {error}") from error
    _tell_left_out(recipe, overrides, prog)
    if not hasattr(config, "method_settings"):
        return override(config, overrides, prog)
    return _override_open(config, overrides, prog, recipe.where)


def _tell_left_out(recipe: Recipe, overrides: Sequence[str], prog: str) -> None:
    """Tell which settings of another learner or method, than is chosen, are not taken over."""
    chosen = chosen_by_flags(overrides)
    settings, left_out = lay_over(recipe.settings, chosen, recipe.left_out, prog)
    for choice, left in left_out.items():
        if told := left.told(settings.get(choice.section, {}), overrides):
            logger.warning("%s", told)


def _extended(name: object, files: Sequence[Path]) -> Path:
    """Return the file that the last of some files extends."""
    chain, folder = _chain(files), files[-1].parent
    if not isinstance(name, str):
        raise ConfigError(f"{chain}: {EXTENDS} = {name!r}, expected the name of a recipe")
    is_path = "/" in name or name.endswith(".toml")
    try:
        path = catalog.recipe_path(str(folder / name) if is_path else name)
    except ConfigError as error:
        beside = f"{name}.toml"
        hint = f" Beside it lies {beside}: name it so." if (folder / beside).is_file() else ""
        raise ConfigError(f"{chain}: {EXTENDS} = '{name}': {error}{hint}") from error
    if path.resolve() in [file.resolve() for file in files]:
        raise ConfigError(f"{chain} -> {path}: a recipe cannot build on itself")
    return path


def _chain(files: Sequence[Path]) -> str:
    return " -> ".join(map(str, files))


def _line(key: Key, value: Any) -> str:
    return f"{'.'.join(map(_toml_key, key))} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_toml_key(k)} = {_toml(v)}' for k, v in value.items())}}}"
    if isinstance(value, (str, bool)):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _read(command: str, recipe: Recipe) -> Any:
    config_class = cast(type[Any], catalog.load_attribute(RECIPE_CLASSES[command], "vla-crl"))
    return from_mapping(config_class, recipe.settings, recipe.where)


def _is_recipe(command: str, recipe: Recipe) -> bool:
    try:
        _read(command, recipe)
    except ConfigError:
        return False
    return True


def _override_open(config: Any, overrides: Sequence[str], prog: str, where: str) -> Any:
    """Apply flags, also those of sections whose settings others declare: of method and head."""
    from vla_crl.continual.known_methods import settings_class

    method, settings = flag_value("--method", overrides) or config.method, config.method_settings
    if method != config.method:
        settings = {}
    method_class = settings_class(method)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    where = f"{where}:method_settings"
    if overrides:
        given = from_mapping(settings_class(method, finished=False), settings, where)
        flagged = method_class if isinstance(given, method_class) else type(given)
        sections = {"method_settings": (flagged, given)} | _exploration(config, overrides)
        flags_class = dataclasses.make_dataclass(
            type(config).__name__,
            [(name, section_class) for name, (section_class, _) in sections.items()],
            bases=(type(config),),
            namespace={"__post_init__": lambda self: None},  # checked below, when all is there
            frozen=True,
            kw_only=True,
        )
        flags_class.__doc__ = type(config).__doc__
        begun = {name: section for name, (_, section) in sections.items()}
        chosen = override(flags_class(**fields | begun), overrides, prog)
        fields = {name: getattr(chosen, name) for name in fields}
        settings = _plain(chosen.method_settings, method)
        where = f"{prog}: method_settings"
        if "exploration" in sections:
            changed = differing_settings(
                to_mapping(sections["exploration"][1]), to_mapping(chosen.exploration)
            )
            fields["exploration"] = config.exploration | {k: v for k, (_, v) in changed.items()}
            known = cast(type[Any], type(chosen.exploration).__base__)
            from_mapping(known, to_mapping(chosen.exploration), f"{prog}: exploration")
    complete = from_mapping(method_class, settings, where)
    try:
        return type(config)(**fields | {"method_settings": _plain(complete, method)})
    except ConfigError as error:
        raise ConfigError(f"{prog}: {error}") from error


def _exploration(config: Any, overrides: Sequence[str]) -> dict[str, tuple[type[Any], Any]]:
    """Return class and values of the exploration that the head of the policy has, if flags ask.

    Of the settings of the head those that are no exploration are hidden.
    """
    flags = [flag.partition("=")[0] for flag in overrides]
    asks_help = "--help" in flags or "-h" in flags
    if not asks_help and not any(flag.startswith("--exploration.") for flag in flags):
        return {}
    import tyro

    from vla_crl.models.heads.head import find_head
    from vla_crl.models.presets import policy_config

    policy = flag_value("--policy", overrides) or config.policy
    try:
        head = policy_config(policy, flag_value("--base", overrides) or config.base).head
    except (ConfigError, CheckpointError):
        if asks_help:
            return {}  # what there is without a policy
        raise
    head_class = find_head(head.kind)
    hints = hints_of(type(head))
    hidden = [
        (name, Annotated[hints[name], tyro.conf.Suppress], dataclasses.field(default=value))
        for name, value in vars(head).items()
        if name not in head_class.exploration
    ]
    flags_class = dataclasses.make_dataclass(
        type(head).__name__,
        hidden,
        bases=(type(head),),
        namespace={"__post_init__": lambda self: None},  # checked when the policy takes them over
        frozen=True,
        kw_only=True,
    )
    given = from_mapping(type(head), to_mapping(head) | config.exploration, "exploration")
    return {"exploration": (flags_class, flags_class(**vars(given)))}


def _plain(settings: Any, method: str) -> dict[str, Any]:
    """Return the settings of a method as config.json keeps them."""

    def to_text(value: object) -> str:
        if isinstance(value, Path):
            return str(value)
        raise ConfigError(
            f"method '{method}': a setting is of the type {type(value).__name__}, which a file "
            "cannot hold; use numbers, text, paths, and lists and tables of these"
        )

    return json.loads(json.dumps(to_mapping(settings), default=to_text))
