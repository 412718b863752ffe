"""Machine code that numba keeps on the disk: where, when it is stale, and a word while it is made.

Numba keeps it beside the source, or where `NUMBA_CACHE_DIR` says. Whatever is wrong with what is
kept costs the time to compile again, never a command.
"""

import logging
import os
import pickle
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from numba.core import caching, config
from numba.core.caching import IndexDataCacheFile, NullCache
from numba.core.event import Event, Listener, register

from vla_crl.files.writing import cache_folder

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


def _use_folder_that_can_be_written() -> None:
    """Keep machine code in the user's cache where it cannot be kept beside the source.

    Numba would look for such a folder too, and end the process where there is none, or make a
    folder `~` where no home is known.
    """
    beside = [file.parent / "__pycache__" for file in Path(__file__).parent.rglob("*.py")]
    if not os.environ.get("NUMBA_CACHE_DIR") and not all(map(_can_be_written, set(beside))):
        os.environ["NUMBA_CACHE_DIR"] = str(cache_folder("machine_code"))
        config.reload_config()


def _can_be_written(folder: Path) -> bool:
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


_DAMAGE = (
    *(OSError, EOFError, MemoryError, LookupError, ValueError, TypeError, AttributeError),
    *(ImportError, pickle.UnpicklingError),
)
"""What unpickling raises where bytes are missing or have changed."""


class _CacheFile(IndexDataCacheFile):
    """Goes on where numba would stop: damaged files are compiled again, full disks keep nothing."""

    def _load_index(self) -> dict[Any, Any]:
        try:
            return super()._load_index()
        except _DAMAGE as error:
            return self._tell("is damaged", error, {})

    def load(self, key: Any) -> Any:
        try:
            return super().load(key)
        except _DAMAGE as error:
            return self._tell("is damaged", error, None)

    def save(self, key: Any, data: Any) -> None:
        try:
            super().save(key, data)
        except OSError as error:
            self._tell("cannot be written", error, None)

    def _tell(self, fault: str, error: Exception, instead: Any) -> Any:
        logger.warning("%s: %s (%s); it is compiled again", self._index_path, fault, error)
        return instead


_use_folder_that_can_be_written()
caching.IndexDataCacheFile = _CacheFile  # numba has no setting for it


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
