"""When cached machine code is stale."""

import zlib
from functools import cache
from pathlib import Path


@cache
def source_version() -> int:
    """Return a checksum of the source files of `vla_crl.sim` that numba may compile.

    Those in `experts/` are plain Python, those in `warp/` are compiled by Warp.

    Numba checks the file of a cached function only, not the files of what it calls, but it also
    compares the values in the function's closure. A cached entry point therefore keeps this number
    in its closure, and nothing else is cached.
    """
    folder = Path(__file__).parent
    others = {file for name in ("experts", "warp") for file in (folder / name).rglob("*.py")}
    files = sorted(set(folder.rglob("*.py")) - others)
    return zlib.crc32(b"".join(file.read_bytes() for file in files))
