"""Which classes lie in the folders of VLA_CRL_PATH, found without running anything there."""

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_crl.catalog import own_folders, own_modules
from vla_crl.own_code import in_a_line


@dataclass(frozen=True)
class OwnClass:
    """A class of the user's.

    Attributes:
        description: The first line of its docstring.
        file: Where it stands.
        bases: Names of the classes that it derives from, as they were called where they came from.
        told: Its class attributes that are plain numbers or text.
    """

    description: str
    file: Path
    bases: frozenset[str]
    told: dict[str, Any]


def own_classes(names: Mapping[str, str], base: str) -> tuple[dict[str, OwnClass], dict[Path, str]]:
    """Find the user's classes that derive from some of ours, directly or through one another.

    Args:
        names: Of ours, with what they stand for as "module:Attribute".
        base: Name of the class from which all derive.

    Returns:
        The classes by the name that recipes take, "module:Class"; and files that are not
        Python, with what is wrong with them.

    Raises:
        ConfigError: VLA_CRL_PATH lists what holds no definitions.
    """
    classes: dict[str, OwnClass] = {}
    broken: dict[Path, str] = {}
    for module, file in _modules():
        try:
            tree = ast.parse(file.read_bytes(), str(file))
        except (SyntaxError, ValueError, RecursionError, OSError) as error:
            broken[file] = in_a_line(error) or f"{file}: {error}"
        else:
            classes |= _classes_in(tree, module, file)
    known = {target.partition(":")[2] for target in names.values()} | {base}
    found: dict[str, OwnClass] = {}
    while new := {n: c for n, c in classes.items() if n not in found and known & c.bases}:
        found |= new
        known |= {name.partition(":")[2] for name in new}
    public = {name: found[name] for name in sorted(found) if ":_" not in name}
    return public, broken


def all_names(names: Mapping[str, str], base: str) -> list[str]:
    """Return the names of ours and of the user's classes; arguments as of `own_classes`."""
    return [*names, *own_classes(names, base)[0]]


def list_classes(
    names: Mapping[str, str], find: Callable[[str], type], base: type
) -> list[dict[str, str]]:
    """Return name, description and file of classes: of ours, then of the user's, which are not run.

    Args:
        names: Of ours, with what they stand for as "module:Attribute".
        find: Returns one of ours.
        base: From which all derive.
    """
    rows = [(name, find(name)) for name in names]
    told = [(name, c.__doc__ or "", sys.modules[c.__module__].__file__) for name, c in rows]
    own, broken = own_classes(names, base.__name__)
    told += [(name, each.description, each.file) for name, each in own.items()]
    told += [(file.stem, f"cannot be read: {why}", file) for file, why in broken.items()]
    return [
        {"name": name, "description": text.partition("\n")[0], "file": str(file)}
        for name, text, file in told
    ]


def _modules() -> Iterator[tuple[str, Path]]:
    """Yield name and file of every module in own folders and in packages there."""
    for folder in own_folders():
        for name, file in own_modules(folder).items():
            yield name, file
            for inner in sorted(file.parent.rglob("*.py")) if file.stem == "__init__" else ():
                parts = inner.relative_to(folder).with_suffix("").parts
                if inner.is_file() and parts[-1] != "__init__":
                    yield ".".join(parts), inner


def _classes_in(tree: ast.Module, module: str, file: Path) -> dict[str, OwnClass]:
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    renamed = {name.asname: name.name for node in imports for name in node.names if name.asname}
    classes: dict[str, OwnClass] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names = [_last_name(base) for base in node.bases]
            description = (ast.get_docstring(node) or "").partition("\n")[0]
            bases = frozenset(renamed.get(name, name) for name in names if name)
            told = dict(_constants(node))
            classes[f"{module}:{node.name}"] = OwnClass(description, file, bases, told)
    return classes


def _constants(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    """Yield what is assigned to the names of a class as it stands."""
    for line in node.body:
        if isinstance(line, ast.Assign | ast.AnnAssign) and isinstance(line.value, ast.Constant):
            for target in line.targets if isinstance(line, ast.Assign) else (line.target,):
                if isinstance(target, ast.Name):
                    yield target.id, line.value.value


def _last_name(node: ast.expr) -> str | None:
    """Return `Base` of the expressions `Base`, `module.Base` and `Base[...]`."""
    if isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None
