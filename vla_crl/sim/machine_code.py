"""Machine code that numba keeps on the disk: when it is stale, and a word while it is made."""

import logging
import zlib
from functools import cache
from pathlib import Path

from numba.core.caching import NullCache
from numba.core.event import Event, Listener, register

logger = logging.getLogger(__name__)


@cache
def source_version(*patterns: str) -> int:
    """Return a checksum of source files that numba compiles.

    Numba checks the file of a cached function only, not the files of what it calls, but it also
    compares the values in the function's closure. A cached entry point therefore keeps this number
    in its closure, and nothing else is cached.

    Args:
        patterns: Of the files below `vla_crl/sim` that hold code or constants of an entry point.
    """
    folder = Path(__file__).parent
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    return zlib.crc32(b"".join(file.read_bytes() for file in files))


class _Announcer(Listener):
    """Says once why the first call takes so long: one of our cached functions is compiled."""

    def on_start(self, event: Event) -> None:
        """Tell whoever waits."""
        dispatcher = (event.data or {})["dispatcher"]
        is_ours = dispatcher.py_func.__module__.startswith("vla_crl.")
        if is_ours and not isinstance(dispatcher._cache, NullCache):
            _announce()

    def on_end(self, event: Event) -> None:
        """Say nothing."""


@cache
def _announce() -> None:
    logger.info(
        "Compiling the simulation for this machine: a minute or two, after installation only."
    )


register("numba:compile", _Announcer())
