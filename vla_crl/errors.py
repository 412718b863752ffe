"""Errors a user can act on; each says where, what came, what was expected and what to do."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class ConfigError(ValueError):
    """A setting, name or file that the user gave is not usable."""


class SpecError(ValueError):
    """A value at a border has the wrong shape, dtype, key or range."""


class CheckpointError(ValueError):
    """A checkpoint is missing, truncated or does not fit the policy."""


class MissingDependencyError(ImportError):
    """An optional package is needed but not installed."""


USER_ERRORS = (ConfigError, SpecError, CheckpointError, MissingDependencyError)
"""What the command line reports without a traceback, with exit code 2."""


def unknown_name(where: str, kind: str, name: str, choices: Iterable[str]) -> ConfigError:
    """Build the error for a name that does not exist, with the nearest valid one.

    Args:
        where: File, flag or function in which the name stood.
        kind: What the name should have been, e.g. "task".
        name: What came.
        choices: All valid names.

    Returns:
        The error, to be raised by the caller.
    """
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return ConfigError(
        f"{where}: unknown {kind} '{name}'.{hint} Known: {', '.join(known) or 'none'}."
    )


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module or say how to install it.

    Args:
        module: Dotted module name.
        extra: The extra of vla-crl that provides it.

    Raises:
        MissingDependencyError: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{module} is not installed; it belongs to the extra '{extra}'. "
            f"Run: pip install 'vla-crl[{extra}]'"
        ) from error
