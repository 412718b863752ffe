"""Arrays are as their record declares them."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pytest

from vla_crl.errors import ConfigError
from vla_crl.files.arrays import Array, check_arrays


@dataclass(frozen=True)
class Steps:
    name: Annotated[str, Array("", np.str_)]
    images: Annotated[np.ndarray, Array("S H H 3", np.uint8)]
    actions: Annotated[np.ndarray, Array("S A", np.floating)]
    note: str = ""


GOOD = {
    "name": np.array("a"),
    "images": np.zeros((5, 8, 8, 3), np.uint8),
    "actions": np.zeros((5, 2), np.float32),
    "more": np.zeros(1),
}


def test_arrays_as_declared_pass() -> None:
    check_arrays(Steps, GOOD, "f")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": np.array(["a"])}, r"^f: 'name' is <U1 \(1,\), expected str_ \(\)$"),
        ({"images": np.zeros((5, 8, 8, 3))}, r"'images' is float64 \(5, 8, 8, 3\), expected uint8"),
        ({"images": np.zeros((5, 8, 9, 3), np.uint8)}, r"expected uint8 \(5, 8, 8, 3\)$"),
        ({"images": np.zeros((5, 8, 8, 4), np.uint8)}, r"expected uint8 \(5, 8, 8, 3\)$"),
        (
            {"actions": np.zeros((4, 2))},
            r"'actions' is float64 \(4, 2\), expected floating \(5, A\)",
        ),
        ({"actions": np.zeros(5)}, r"'actions' is float64 \(5,\), expected floating \(5, A\)$"),
        ({"actions": np.full((5, 2), np.nan)}, "'actions' has numbers that are not finite$"),
    ],
)
def test_an_array_of_another_shape_or_type_is_named(changes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_arrays(Steps, GOOD | changes, "f")


def test_a_missing_array_is_named() -> None:
    with pytest.raises(ConfigError, match="^f: no 'actions'$"):
        check_arrays(Steps, {name: GOOD[name] for name in ("name", "images")}, "f")
