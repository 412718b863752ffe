"""What arrays a file holds: declared where their record is, and checked when it is read."""

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_crl.errors import ConfigError


@dataclass(frozen=True)
class Array:
    """Shape and type of a field, in `Annotated[np.ndarray, Array("S C H W 3", np.uint8)]`.

    Attributes:
        shape: A letter is the same number in all fields of a record.
        dtype: Or a kind of them, such as np.integer.
    """

    shape: str
    dtype: type[Any]


def check_arrays(record_class: type[Any], arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Check that all declared arrays are there, as declared, and finite.

    Args:
        record_class: Declares them.
        arrays: By the names of its fields; others are left alone.
        where: The beginning of the error message.

    Raises:
        ConfigError: Names the first that is not.
    """
    lengths: dict[str, int] = {}
    for name, hint in typing.get_type_hints(record_class, include_extras=True).items():
        for array in getattr(hint, "__metadata__", ()):
            if name not in arrays:
                raise ConfigError(f"{where}: no '{name}'")
            came, letters = arrays[name], array.shape.split()
            lengths |= {letter: int(letter) for letter in letters if letter.isdecimal()}
            fits = len(letters) == came.ndim and all(
                length == lengths.setdefault(letter, length)
                for letter, length in zip(letters, came.shape, strict=True)
            )
            if not fits or not np.issubdtype(came.dtype, array.dtype):
                shape = ", ".join(str(lengths.get(letter, letter)) for letter in letters)
                raise ConfigError(
                    f"{where}: '{name}' is {came.dtype} {came.shape}, expected "
                    f"{array.dtype.__name__} ({shape})"
                )
            if np.issubdtype(came.dtype, np.floating) and not np.isfinite(came).all():
                raise ConfigError(f"{where}: '{name}' has numbers that are not finite")
