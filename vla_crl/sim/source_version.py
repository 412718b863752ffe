"""When cached machine code is stale."""

import zlib
from functools import cache
from pathlib import Path


@cache
def source_version() -> int:
    """Return a checksum of the source files of `vla_crl.sim` but `experts/`, which is plain Python.

    Numba checks the file of a cached function only, not the files of what it calls, but it also
    compares the values in the function's closure. A cached entry point therefore keeps this number
    in its closure, and nothing else is cached.
    """
    folder = Path(__file__).parent
    files = sorted(set(folder.rglob("*.py")) - set((folder / "experts").rglob("*.py")))
    return zlib.crc32(b"".join(file.read_bytes() for file in files))
