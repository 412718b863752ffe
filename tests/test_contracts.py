from typing import Any

import numpy as np
import pytest

from vla_crl.contracts import Observation, check_actions
from vla_crl.errors import SpecError


def observation(**changes: Any) -> Observation:
    fields: dict[str, Any] = {
        "images": np.arange(3 * 2 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 2, 4, 4, 3),
        "state": np.arange(24, dtype=np.float32).reshape(3, 8),
        "instruction": ("a", "b", "c"),
    }
    return Observation(**(fields | changes))


def test_a_valid_observation_returns_itself() -> None:
    valid = observation()
    assert valid.validate() is valid
    assert len(valid) == 3


def test_select_takes_rows_in_the_order_asked_for() -> None:
    full = observation()
    part = full.select([2, 0])
    assert part.instruction == ("c", "a")
    np.testing.assert_array_equal(part.state, full.state[[2, 0]])
    np.testing.assert_array_equal(part.images, full.images[[2, 0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((3, 2, 4, 4, 3), np.float32)}, "Observation.images: got float32"),
        ({"images": np.zeros((3, 2, 3, 4, 4), np.uint8)}, r"expected uint8 \[N, cameras, H, W, 3"),
        ({"images": np.zeros((3, 4, 4, 3), np.uint8)}, r"Observation.images: got uint8 \(3, 4, 4"),
        ({"images": np.zeros((2, 2, 4, 4, 3), np.uint8)}, "2 images but 3 instructions"),
        ({"state": np.zeros((3, 8))}, "Observation.state: got float64"),
        ({"state": np.zeros((3, 7), np.float32)}, r"got float32 \(3, 7\), expected float32 \(3, 8"),
        ({"state": np.zeros((2, 8), np.float32)}, r"got float32 \(2, 8\), expected float32 \(3, 8"),
    ],
)
def test_a_field_that_breaks_the_contract_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        observation(**changes).validate()


def test_actions_are_clipped_to_their_range() -> None:
    actions = np.array([[[-2, -1, -0.5, 0, 0.5, 1, 3]]], dtype=np.float32)
    checked = check_actions(actions, num_slots=1)
    np.testing.assert_array_equal(checked, [[[-1, -1, -0.5, 0, 0.5, 1, 1]]])
    assert checked.dtype == np.float64


@pytest.mark.parametrize("shape", [(2, 4, 7), (3, 4, 6), (3, 0, 7), (3, 7), (3, 1, 4, 7)])
def test_actions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match=r"actions: got shape .*, expected \(3, steps, 7\) with at"):
        check_actions(np.zeros(shape), num_slots=3)


@pytest.mark.parametrize("dtype", [complex, bool, str, object])
def test_actions_that_are_no_numbers_are_refused(dtype: type) -> None:
    with pytest.raises(SpecError, match=r"actions: got .*, expected numbers"):
        check_actions(np.zeros((3, 4, 7), dtype), num_slots=3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_not_finite_is_refused_with_its_place(value: float) -> None:
    actions = np.zeros((3, 4, 7))
    actions[2, 1, 5] = value
    with pytest.raises(SpecError, match=rf"actions\[2, 1, 5\] is {value}; every action must be"):
        check_actions(actions, num_slots=3)
