"""Errors a user can act on; each says where, what came, what was expected and what to do."""

import difflib
import os
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A setting, name or file that the user gave is not usable."""


class SpecError(ValueError):
    """A value at a border has the wrong shape, dtype, key or range."""


class CheckpointError(ValueError):
    """A checkpoint is missing, truncated or does not fit the policy."""


class ForeignError(RuntimeError):
    """An environment of somebody else raised, hung or died, also when it was tried again."""


class StoppedEvaluationError(ForeignError):
    """An environment of somebody else failed for good; what was finished is kept.

    Attributes:
        results: Of the episodes that had ended, a `TaskResult` a task.
    """

    def __init__(self, reason: str, results: list[Any]) -> None:
        """Keep what is known."""
        super().__init__(reason)
        self.results = results


class UnfinishedError(RuntimeError):
    """Some of several runs failed; the others are complete."""


USER_ERRORS = (
    *(ConfigError, SpecError, CheckpointError, ForeignError, UnfinishedError),
    FloatingPointError,
)
"""What the command line reports without a traceback, with exit code 2; the last one where training
meets a number that is not finite."""


def install_extra(extra: str) -> str:
    """Return the command that brings the packages of an extra: in a clone, as PyPI has none."""
    return f"pip install --editable '.[{extra}]' in the project's folder"


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


def what_is(value: object) -> str:
    """Return what came where something else was expected: its kind, of tensors with the shape."""
    if value is None:
        return "None"
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + ("" if shape is None else f" of shape {list(shape)}")


@contextmanager
def naming(place: Path | str, temporary: Path | None = None) -> Generator[None]:
    """Let errors of the operating system in the block tell a place where they tell none.

    Args:
        place: The file that is written, or what else is worked on.
        temporary: Another name for `place`, which nobody should have to know.
    """
    try:
        yield
    except OSError as error:
        hidden = (None, str(temporary)) if temporary else (None,)
        if error.strerror and error.filename in hidden:
            error.filename, error.filename2 = str(place), None
        raise


_ENDLESS = re.compile(r"\S{1000,}")
"""A word longer than a path can be, which is not told whole."""


def describe(error: BaseException) -> str:
    """Return what to tell of an error in one line, with the notes that were added to it.

    Of those of the operating system: the path, then the reason. Characters that would command the
    terminal are told by their numbers.
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        if error.filename is not None:
            text = f"{os.fsdecode(error.filename)}: {text}"
    told = ". ".join([text, *getattr(error, "__notes__", [])])
    told = _ENDLESS.sub(lambda word: f"{word[0][:200]}...{word[0][-50:]}", told)
    told = told.strip("\n").replace("\n", " ")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in told)
