"""Records of tensors that share their first dimension, e.g. one row per observation."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Self

import torch
from torch import Tensor

RowIndex = int | slice | Sequence[int] | Tensor


class Rows:
    """Base of frozen dataclasses whose fields are tensors `[B, ...]` or again `Rows`."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # pyright: ignore[reportArgumentType]

    def __getitem__(self, index: RowIndex) -> Self:
        """Return the chosen rows; a single number keeps the first dimension, with length 1."""
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        if isinstance(index, Tensor) and index.dtype == torch.int64:
            # Three times as fast as advanced indexing for the wide rows of a Context.
            return self._map(lambda tensor: tensor.index_select(0, index))
        return self._map(lambda tensor: tensor[index])

    def detach(self) -> Self:
        """Return the same values cut off from the graph."""
        return self._map(Tensor.detach)

    def to(self, device: torch.device | str) -> Self:
        """Return the rows on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def allocate(self, num_rows: int) -> Self:
        """Return zeroed storage for `num_rows` rows of this kind, made once before a loop."""
        return self._map(lambda tensor: tensor.new_zeros((num_rows, *tensor.shape[1:])))

    def copy_into(self, buffer: Self, rows: RowIndex) -> None:
        """Write these rows into `rows` of storage made by `allocate`; takes no new memory."""
        for field in fields(self):  # pyright: ignore[reportArgumentType]
            target, source = getattr(buffer, field.name), getattr(self, field.name)
            if isinstance(source, Rows):
                source.copy_into(target, rows)
            else:
                target[rows] = source.detach()

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Join parts along the first dimension."""
        columns = {}
        for field in fields(cls):  # pyright: ignore[reportArgumentType]
            values = [getattr(part, field.name) for part in parts]
            is_nested = isinstance(values[0], Rows)
            columns[field.name] = type(values[0]).cat(values) if is_nested else torch.cat(values)
        return cls(**columns)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        columns = {}
        for field in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            columns[field.name] = (
                value._map(function) if isinstance(value, Rows) else function(value)
            )
        return type(self)(**columns)
