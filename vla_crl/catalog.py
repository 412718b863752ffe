"""Find definitions by name: suites, policy presets, recipes, and what "module:Attribute" names.

Those of the package lie in `envs/`, `policies/` and `experiments/` of a checkout and in
`vla_crl/_catalog/` of a wheel; your own in folders of these names in every folder that the
environment variable VLA_CRL_PATH lists, and modules of Python directly in such a folder.
"""

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, cast, get_args

from annotated_types import Interval

from vla_crl.config import Count, Settings, as_record, read_toml
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.files.reading import parse_json, read_text
from vla_crl.own_code import in_a_line

Kind = Literal["envs", "policies", "experiments"]
OWN_FOLDERS = "VLA_CRL_PATH"
"""Environment variable: folders with definitions and modules of your own, separated as in PATH."""
SUITE_NAME = re.compile(r"[\w-]+")
"""What Gymnasium, and collections that write suite.task, can make a part of a name."""


@dataclass(frozen=True, kw_only=True)
class ResultRow(Settings):
    """What 'vla-crl evaluate --output' tells of a task, as far as it is read again."""

    task: str
    successes: Annotated[int, Interval(ge=0, le=10**9)]
    episodes: Count


def catalog_dir(kind: Kind) -> Path:
    """Return the folder that holds the package's definitions of one kind."""
    package = Path(__file__).resolve().parent
    shipped, checkout = package / "_catalog" / kind, package.parent
    if shipped.is_dir():
        return shipped
    # Ask for pyproject.toml: site-packages/envs may be somebody else's package.
    if (checkout / "pyproject.toml").is_file() and (checkout / kind).is_dir():
        return checkout / kind
    raise ConfigError(f"no {kind}/ in {shipped} or {checkout}; reinstall vla-crl")


def list_suites() -> list[str]:
    """Return the names of all suites: folders with a suite.toml."""
    return sorted(_files("envs"))


def list_policies() -> list[str]:
    """Return the names of all policy presets."""
    return sorted(_files("policies"))


def list_recipes() -> list[str]:
    """Return the names of all recipes."""
    return sorted(_files("experiments"))


def suite_path(name: str) -> Path:
    """Return the folder of a suite.

    Args:
        name: Its name, also with a controller of its robot: "suite@controller".

    Raises:
        ConfigError: There is no such suite, or its folder's name cannot be a part of other names.
    """
    files, name = _files("envs"), name.partition("@")[0]
    if name not in files:
        raise unknown_name("catalog", "suite", name, sorted(files))
    if not SUITE_NAME.fullmatch(name):
        raise ConfigError(f"suite '{name}': expected a folder of letters, digits, '_' and '-' only")
    return files[name].parent


def expert_success(name: str) -> dict[str, float]:
    """Return how often the scripted expert succeeds in each task of a suite, where it was measured.

    The suite's expert.json (of another controller expert@CONTROLLER.json) is what `vla-crl evaluate
    --policy expert --output` writes.

    Raises:
        ConfigError: There is no such suite, or the file has other content.
    """
    _, at, controller = name.partition("@")
    path = suite_path(name) / f"expert{at}{controller}.json"
    if not path.exists():
        return {}
    rows = parse_json(read_text(path), str(path))
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: expected what 'vla-crl evaluate --output' writes, a list")
    records = [
        as_record(ResultRow, row, f"{path}: row {number}")
        for number, row in enumerate(cast(list[Any], rows))
    ]
    return {record["task"]: record["successes"] / record["episodes"] for record in records}


def policy_path(name: str) -> Path:
    """Return the preset file of that name, or the preset or checkpoint that `name` points to.

    Raises:
        ConfigError: There is neither such a preset nor such a path.
    """
    return _find("policy", name, _files("policies"))


def recipe_path(name: str) -> Path:
    """Return the recipe file of that name, or the file that `name` points to.

    Raises:
        ConfigError: There is neither such a recipe nor such a file.
    """
    path = _find("recipe", name, _files("experiments"))
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, expected a recipe file (.toml)")
    return path


def description(path: Path) -> str:
    """Return what a definition says it is: its `description`, else the comment in its first line.

    Raises:
        ConfigError: The file is not TOML.
    """
    content = read_toml(path)  # first: refuses what is no text
    first_line, _, _ = read_text(path).partition("\n")
    comment = first_line.removeprefix("#").strip() if first_line.startswith("#") else ""
    return str(content.get("description", comment))


def own_folders() -> list[Path]:
    """Return the folders that VLA_CRL_PATH lists.

    Raises:
        ConfigError: One is no folder, or holds nothing that could be meant.
    """
    folders: list[Path] = []
    for entry in filter(None, os.environ.get(OWN_FOLDERS, "").split(os.pathsep)):
        folder, kinds = Path(entry), get_args(Kind)
        if not folder.is_dir():
            raise ConfigError(
                f"{OWN_FOLDERS}: '{entry}' is no folder; list folders that hold envs/, policies/, "
                f"experiments/ or modules of Python, separated by '{os.pathsep}'"
            )
        if not (any((folder / kind).is_dir() for kind in kinds) or own_modules(folder)):
            raise ConfigError(
                f"{OWN_FOLDERS}: '{entry}' holds no envs/, policies/ or experiments/, nor a module "
                "of Python; name the folder that does"
            )
        folders.append(folder.resolve())
    return list(dict.fromkeys(folders))


def own_modules(folder: Path) -> dict[str, Path]:
    """Return the files of the modules and packages directly in a folder, by their names."""
    files = [*folder.glob("*.py"), *folder.glob("*/__init__.py")]
    names = {f: f.parent.name if f.name == "__init__.py" else f.stem for f in sorted(files)}
    return {name: f for f, name in names.items() if f.parent.name != f.stem and f.is_file()}


def _files(kind: Kind) -> dict[str, Path]:
    """Return the files of one kind by name, the package's and the user's; no name twice.

    Raises:
        ConfigError: VLA_CRL_PATH lists what holds no definitions, or a name is defined twice.
    """
    folders = [catalog_dir(kind), *(folder / kind for folder in own_folders())]
    found: dict[str, Path] = {}
    for folder in dict.fromkeys(folders):
        for file in folder.glob("*/suite.toml" if kind == "envs" else "*.toml"):
            name = file.parent.name if kind == "envs" else file.stem
            if name in found:
                raise ConfigError(f"{file}: the name '{name}' is taken by {found[name]}; rename it")
            found[name] = file
    return found


def _find(noun: str, name: str, known: dict[str, Path]) -> Path:
    if name in known:
        return known[name]
    # Only what looks like a path is one: a stray folder must not hide a misspelt name.
    if "/" in name or "\\" in name or name.endswith(".toml"):
        if Path(name).exists():
            return Path(name)
        names = ", ".join(sorted(known)) or "none"
        raise ConfigError(
            f"{name}: no such {noun}, looked for at {Path(name).absolute()}. If it has been moved, "
            f"name the new place, also to resume a run. Known names: {names}."
        )
    raise unknown_name("catalog", noun, name, sorted(known))


def load_attribute(
    target: str, where: str, *, fits: Callable[[object], bool] = lambda value: True
) -> object:
    """Import what a "package.module:Attr" string names.

    Args:
        target: Module and attribute; tables of methods and benchmarks hold such strings.
        where: File or flag in which it stood, for the error message.
        fits: Which values of the module the error may suggest.

    Raises:
        ConfigError: Not of that form, or the module or the attribute does not exist, or the module
            is the user's own and fails.
    """
    module_name, _, attribute = target.partition(":")
    names = [*module_name.split("."), attribute]
    if not all(name.isidentifier() for name in names):
        raise ConfigError(f"{where}: '{target}' is not of the form 'package.module:Attr'")
    try:
        module = _import(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(
            f"{error.name}."
        ):
            raise _missing_module(target, where, error) from error
        if isinstance(error, ConfigError) or _is_ours(module_name):
            raise
        told = in_a_line(error) or f"{type(error).__name__}: {error}"
        raise ConfigError(f"{where}: '{target}' cannot be imported: {told}") from error
    if not hasattr(module, attribute):
        names = [name for name, value in vars(module).items() if fits(value)]
        raise unknown_name(where, f"name in {module_name}", attribute, names)
    return getattr(module, attribute)


def _is_ours(module_name: str) -> bool:
    return module_name.partition(".")[0] == "vla_crl"


def _import(name: str) -> ModuleType:
    """Import a module, one that is not ours also from the folders of VLA_CRL_PATH.

    These come last, so that no file there can hide what Python or a package imports; whoever names
    one that is itself hidden is told.
    """
    if _is_ours(name):
        return importlib.import_module(name)
    top, folders = name.partition(".")[0], own_folders()
    sys.path += [str(folder) for folder in folders if str(folder) not in sys.path]
    importlib.invalidate_caches()  # a file may be younger than this process
    module = importlib.import_module(name)
    found = sys.modules[top].__file__
    for file in (own_modules(folder).get(top) for folder in folders):
        if file and not (found and Path(found).resolve() == file.resolve()):
            raise ConfigError(
                f"{file}: the name '{top}' is taken by {found or 'Python'}; rename it"
            )
    return module


def _missing_module(target: str, where: str, error: ModuleNotFoundError) -> ConfigError:
    names = [name for folder in own_folders() for name in own_modules(folder)]
    close = difflib.get_close_matches(target.partition(":")[0], names, n=1)
    hint = f". Did you mean '{close[0]}'?" if close else ""
    return ConfigError(
        f"{where}: '{target}': there is no module '{error.name}'; one of your own must be "
        f"installed, or its folder be in {OWN_FOLDERS} or PYTHONPATH{hint}"
    )
