"""Arrays in an npz file: what they say of themselves, and their rows without the whole of them."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from vla_crl.errors import ConfigError

_DAMAGE = (EOFError, ValueError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)
"""What zipfile and numpy raise where a file is no archive of theirs, or a torn one."""


@contextmanager
def telling_damage(path: Path) -> Iterator[None]:
    """Let errors of a damaged file be ours."""
    try:
        yield
    except ConfigError:  # a ValueError too
        raise
    except _DAMAGE as error:
        raise ConfigError(
            f"{path}: not a whole file of numpy arrays ({error}); write or copy it again"
        ) from error


class Header(NamedTuple):
    """What an array says of itself, and where in its member of the archive the numbers begin."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype
    offset: int

    @property
    def end(self) -> int:
        """How long the member is to be."""
        num = self.dtype.itemsize
        for size in self.shape:  # not numpy's product, which overflows
            num *= size
        return self.offset + num


def read_header(member: Any) -> Header:
    """Read the beginning of a member.

    Raises:
        ValueError: It is no array that `np.savez` wrote.
    """
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
    elif version == (2, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(member)
    else:
        raise ValueError(f"an array of version {version}")
    return Header(shape, is_fortran, dtype, member.tell())


class ArrayRows:
    """Rows of a large array, read from front to back; each jump back begins at the front again."""

    def __init__(self, path: Path, name: str, shape: tuple[int, ...]) -> None:
        """Open nothing yet.

        Args:
            path: Of the archive.
            name: Of an array of bytes in C's order.
            shape: Its shape.
        """
        self._path, self._name, self._shape = path, name, shape
        self._lock, self._opened = Lock(), ExitStack()
        self._member: Any = None
        self._begin = 0

    def read(self, rows: slice) -> np.ndarray:
        """Return some rows.

        Raises:
            ConfigError: The file is damaged.
        """
        _, *rest = self._shape
        size = int(np.prod(rest))
        with self._lock, telling_damage(self._path):
            if self._member is None:
                archive = zipfile.ZipFile(self._path)
                self._member = self._opened.enter_context(archive.open(f"{self._name}.npy"))
                self._begin = read_header(self._member).offset
            begin, wanted = self._begin + rows.start * size, (rows.stop - rows.start) * size
            if self._member.tell() != begin:  # else the checksum would be passed over
                self._member.seek(begin)
            content = self._member.read(wanted)
            if len(content) < wanted:
                raise EOFError(f"{self._name} ends in row {rows.start + len(content) // size}")
            if rows.stop == self._shape[0]:
                self._opened.close()
                self._member = None
        return np.frombuffer(content, np.uint8).reshape(-1, *rest)
