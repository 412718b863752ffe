"""Standard input, output and error of the process, for Python and for the C code in it."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

from vla_crl.errors import naming


def open_closed_streams() -> None:
    """Give streams that were closed before the process began something to stand for them.

    Otherwise the next files that are opened would get their numbers, and in them what C code
    prints. Nothing comes from the input, writing to the output is an error, and what is told on
    the error stream is lost.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)  # lowest number
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


@contextlib.contextmanager
def writing_stdout() -> Iterator[None]:
    """Print what the block prints, and what was printed before, at once.

    Raises:
        BrokenPipeError: Who read it, such as `head`, has gone.
        OSError: It cannot be written.
    """
    try:
        with naming("standard output"):
            yield
            sys.stdout.flush()
    except OSError:  # drop what is left: Python would try it again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what is printed elsewhere, also by C code, such as MuJoCo's warnings."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C has not written yet
        os.dup2(own, 1)
        os.close(own)
