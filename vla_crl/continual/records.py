"""Rows of tensors as bytes, and files of such records; pictures are compressed without loss."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vla_crl.errors import CheckpointError, ConfigError, SpecError
from vla_crl.files.checksums import write_sums
from vla_crl.files.reading import require_file
from vla_crl.files.state_dicts import save_tensors
from vla_crl.rows import Rows

LEVEL = 6
"""Of zlib: of what the small policies see a row takes 1.4 kB in place of 24.6 kB, in 0.12 ms."""
_PICTURE_DIMS = 3
"""Dimensions of a row of bytes from which on it is a picture."""
_LENGTH = np.dtype("<u4")
_TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}


@dataclass(frozen=True)
class Column:
    """One tensor of a row.

    Attributes:
        name: As `Rows.flatten` calls it.
        dtype: Of its numbers.
        shape: Without the first dimension.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Of a row, uncompressed."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def is_picture(self) -> bool:
        """Whether it is compressed."""
        return self.dtype == torch.uint8 and len(self.shape) >= _PICTURE_DIMS


@dataclass(frozen=True)
class Layout:
    """What a record holds: columns as they are, lengths of compressed pictures, the pictures.

    Attributes:
        columns: In the order of `Rows.flatten`.
    """

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, rows: Mapping[str, Tensor]) -> "Layout":
        """Return the layout of flat rows.

        Raises:
            SpecError: A tensor is of a type that is not kept.
        """
        for name, tensor in rows.items():
            if tensor.dtype not in _TYPES.values():
                raise SpecError(
                    f"memory: '{name}' is of type {tensor.dtype}, expected one of "
                    f"{', '.join(_TYPES)}"
                )
        return cls(tuple(Column(n, t.dtype, tuple(t.shape[1:])) for n, t in rows.items()))

    @classmethod
    def from_text(cls, text: str, where: str) -> "Layout":
        """Read what `as_text` wrote.

        Raises:
            CheckpointError: It is something else.
        """
        try:
            return cls(tuple(Column(n, _TYPES[t], tuple(s)) for n, t, s in json.loads(text)))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{where}: its columns are not readable ({error})") from error

    def as_text(self) -> str:
        """Write it as JSON."""
        columns = [(c.name, str(c.dtype).removeprefix("torch."), c.shape) for c in self.columns]
        return json.dumps(columns)

    @cached_property
    def plain(self) -> tuple[Column, ...]:
        """Columns that are kept as they are."""
        return tuple(column for column in self.columns if not column.is_picture)

    @cached_property
    def pictures(self) -> tuple[Column, ...]:
        """Columns that are compressed."""
        return tuple(column for column in self.columns if column.is_picture)

    def encode(self, rows: Mapping[str, Tensor]) -> list[bytes]:
        """Return a record a row.

        Raises:
            SpecError: The rows are others.
        """
        if (other := Layout.of(rows)) != self:
            raise SpecError(
                f"memory: rows of the columns {other.as_text()}, expected {self.as_text()}"
            )
        flat = {name: _as_bytes(tensor) for name, tensor in rows.items()}
        num_rows = len(next(iter(flat.values())))
        records = []
        for row in range(num_rows):
            packed = [zlib.compress(flat[c.name][row].tobytes(), LEVEL) for c in self.pictures]
            lengths = np.array([len(data) for data in packed], _LENGTH).tobytes()
            whole = [flat[c.name][row].tobytes() for c in self.plain]
            records.append(b"".join([*whole, lengths, *packed]))
        return records

    def decode(self, records: Sequence[bytes]) -> dict[str, Tensor]:
        """Return the rows of records, flat.

        Raises:
            CheckpointError: They are damaged.
        """
        flat = {c.name: np.empty((len(records), c.num_bytes), np.uint8) for c in self.columns}
        try:
            for row, record in enumerate(records):
                self._decode_into(flat, row, record)
        except (zlib.error, ValueError) as error:
            raise CheckpointError(f"memory: a record is damaged ({error})") from error
        return {c.name: _as_tensor(flat[c.name], c) for c in self.columns}

    def _decode_into(self, flat: dict[str, np.ndarray], row: int, record: bytes) -> None:
        place = 0
        for column in self.plain:
            part = record[place : place + column.num_bytes]
            flat[column.name][row] = np.frombuffer(part, np.uint8)
            place += column.num_bytes
        lengths = np.frombuffer(record, _LENGTH, len(self.pictures), place)
        place += lengths.nbytes
        for column, length in zip(self.pictures, lengths.tolist(), strict=True):
            picture = zlib.decompress(record[place : place + length])
            flat[column.name][row] = np.frombuffer(picture, np.uint8)
            place += length


@dataclass(frozen=True)
class Records:
    """Rows as bytes.

    Attributes:
        layout: Of each.
        data: One a row.
    """

    layout: Layout
    data: list[bytes]

    @classmethod
    def of(cls, rows: Rows) -> "Records":
        """Encode rows."""
        flat = rows.flatten()
        layout = Layout.of(flat)
        return cls(layout, layout.encode(flat))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], where: str) -> "Records":
        """Read what `as_tensors` returned.

        Raises:
            CheckpointError: It is something else.
        """
        try:
            text, rows, sizes = tensors["layout"], tensors["rows"], tensors["sizes"]
        except KeyError as error:
            raise CheckpointError(f"{where}: {error} is missing") from error
        layout = Layout.from_text(text.numpy().tobytes().decode("utf-8", "replace"), where)
        ends = sizes.cumsum(0).tolist()
        if not len(rows) == (ends[-1] if ends else 0):
            raise CheckpointError(
                f"{where}: has {len(rows)} bytes, expected {ends[-1] if ends else 0}"
            )
        data = rows.numpy().tobytes()
        return cls(layout, [data[e - s : e] for e, s in zip(ends, sizes.tolist(), strict=True)])

    def as_tensors(self) -> dict[str, Tensor]:
        """Return them as tensors for a file or a state."""
        text = self.layout.as_text().encode()
        return {
            "layout": _bytes(text),
            "rows": _bytes(b"".join(self.data)),
            "sizes": torch.tensor([len(record) for record in self.data], dtype=torch.int64),
        }


class RecordFile:
    """A file of records, which are read one by one; nothing in it is ever changed."""

    def __init__(self, path: Path) -> None:
        """Read what it holds, but not the records.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            require_file(path)
            file = cast(Any, safe_open(path, "np"))
            text, sizes = file.get_tensor("layout").tobytes(), file.get_tensor("sizes")
            self._rows = file.get_slice("rows")
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: holds no records ({error})") from error
        self.path, self.layout = path, Layout.from_text(text.decode("utf-8", "replace"), str(path))
        self._ends = sizes.cumsum().tolist()
        self._starts = (sizes.cumsum() - sizes).tolist()

    def __len__(self) -> int:
        return len(self._ends)

    def read(self, row: int) -> bytes:
        """Return a record."""
        return self._rows[self._starts[row] : self._ends[row]].tobytes()

    @staticmethod
    def write(path: Path, records: Records) -> None:
        """Write a new file, and its checksum beside it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(records.as_tensors(), path)
        write_sums(path.parent, path.name)


def _bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _as_bytes(tensor: Tensor) -> np.ndarray:
    """Return [B, bytes of a row]."""
    numbers = tensor.detach().cpu().contiguous().reshape(-1)  # without odd strides of size 1
    size = prod(tensor.shape[1:]) * tensor.dtype.itemsize
    return numbers.view(torch.uint8).reshape(len(tensor), size).numpy()


def _as_tensor(flat: np.ndarray, column: Column) -> Tensor:
    tensor = torch.from_numpy(flat).view(column.dtype)
    return tensor.reshape(len(flat), *column.shape)
