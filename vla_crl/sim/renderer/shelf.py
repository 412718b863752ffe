"""Meshes and textures that the scenes of one process have in common, each kept once.

Compiled loops read one array of texels, one of vertices and so on; so these arrays are longer than
one scene needs, and each scene knows where its own contents begin.
"""

import hashlib
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Column(NamedTuple):
    """One array of a shelf: what its rows are, and for how many there is room at first.

    Room costs memory only where something lies: the system gives pages when they are written.
    """

    dtype: type
    row: tuple[int, ...]
    room: int


class Content(NamedTuple):
    """What one key stands for: rows for every column, and whatever its user wants to know."""

    rows: tuple[NDArray[Any], ...]
    note: Any


class Place(NamedTuple):
    """Where a content lies: its first row in every column."""

    first: tuple[int, ...]
    note: Any


class Shelf:
    """Arrays, and what lies where in them; gone when nobody uses it any more."""

    def __init__(self, columns: Iterable[Column]) -> None:
        self.arrays = tuple(
            np.empty((column.room, *column.row), column.dtype) for column in columns
        )
        self._used = [0] * len(self.arrays)
        self._places: dict[Hashable, Place] = {}

    def has_room(self, contents: Mapping[Hashable, Content]) -> bool:
        """Return whether all contents that do not lie here yet would fit."""
        needed = list(self._used)
        for key, content in contents.items():
            if key not in self._places:
                needed = [n + len(rows) for n, rows in zip(needed, content.rows, strict=True)]
        return all(n <= len(array) for n, array in zip(needed, self.arrays, strict=True))

    def knows(self, key: Hashable) -> bool:
        """Return whether something lies here under a key."""
        return key in self._places

    def place(self, key: Hashable) -> Place:
        """Return where something lies."""
        return self._places[key]

    def put(self, key: Hashable, content: Content) -> None:
        """Lay something down, unless it lies here already."""
        if key in self._places:
            return
        first = tuple(self._used)
        for column, rows in enumerate(content.rows):
            stop = first[column] + len(rows)
            self.arrays[column][first[column] : stop] = rows
            self._used[column] = stop
        self._places[key] = Place(first, content.note)


class Shelves:
    """The shelf of one kind of content that is filled now; full ones live on in their scenes."""

    def __init__(self, *columns: Column) -> None:
        self._columns = columns
        self._lock = threading.Lock()
        self._current: weakref.ref[Shelf] | None = None

    def shelve(self, wanted: Mapping[Hashable, Callable[[], Content]]) -> Shelf:
        """Return a shelf on which all that is wanted lies.

        Args:
            wanted: Key of a content, and what makes it; called only if it lies nowhere yet.
        """
        with self._lock:
            shelf = self._current() if self._current else None
            missing = [key for key in wanted if shelf is None or not shelf.knows(key)]
            made = {key: wanted[key]() for key in missing}
            if shelf is None or not shelf.has_room(made):
                made = {key: made[key] if key in made else wanted[key]() for key in wanted}
                shelf = self._new_shelf(made)
            for key, content in made.items():
                shelf.put(key, content)
            return shelf

    def _new_shelf(self, contents: Mapping[Hashable, Content]) -> Shelf:
        needed = [
            sum(len(content.rows[column]) for content in contents.values())
            for column in range(len(self._columns))
        ]
        columns = [
            column._replace(room=max(column.room, 2 * count))
            for column, count in zip(self._columns, needed, strict=True)
        ]
        shelf = Shelf(columns)
        self._current = weakref.ref(shelf)
        return shelf


def content_key(*parts: Any) -> str:
    """Return a hash of arrays and of what `repr` shows of everything else."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()
