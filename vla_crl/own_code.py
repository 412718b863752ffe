"""Code of the user's own: methods, suites' backends and whatever else a setting names.

Whatever goes wrong in it is told with its file and line.
"""

import inspect
import site
import sysconfig
import traceback
from functools import cache
from pathlib import Path
from typing import Any, cast

from vla_crl.errors import USER_ERRORS, SpecError, describe

_WITH_PLACE = (SpecError, FloatingPointError)
"""Errors of ours that do not say themselves where to look."""


def is_own(file: str | Path) -> bool:
    """Tell whether a file of Python is neither ours nor of an installed package."""
    path = Path(file).resolve()
    return path.is_file() and not any(path.is_relative_to(folder) for folder in _installed())


@cache
def _installed() -> tuple[Path, ...]:
    """Return the folders of Python's own modules, of installed packages and of this one."""
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages(), Path(__file__).parent]
    return tuple(Path(folder).resolve() for folder in folders)


def place_of(error: BaseException) -> str | None:
    """Return where in the user's own code an error came from, as "file:line", if it did."""
    if isinstance(error, SyntaxError) and error.filename and is_own(error.filename):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f"{frame.filename}:{frame.lineno}" for frame in frames if is_own(frame.filename)]
    return own[-1] if own else None


def defined_at(function: object) -> str | None:
    """Return where a function of the user's own code begins, as "file:line"; None of others."""
    code = getattr(inspect.unwrap(cast(Any, function)), "__code__", None)
    if code is None or not is_own(code.co_filename):
        return None
    return f"{code.co_filename}:{code.co_firstlineno}"


def in_a_line(error: BaseException) -> str | None:
    """Return all that a user has to know of an error; None of a fault that is ours."""
    is_users = isinstance(error, USER_ERRORS)
    place = place_of(error) if not is_users or isinstance(error, _WITH_PLACE) else None
    if place:
        said = error.msg if isinstance(error, SyntaxError) else describe(error)
        return f"{place}: {type(error).__name__}: {' '.join(said.split())}".rstrip(": ")
    return describe(error) if is_users or isinstance(error, (MemoryError, OSError)) else None
