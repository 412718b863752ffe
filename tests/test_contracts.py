from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vla_crl.contracts import (
    ARM,
    Embodiment,
    Observation,
    check_actions,
    check_fits,
    compare_pictures,
)
from vla_crl.errors import ConfigError, SpecError


def observation(**changes: Any) -> Observation:
    fields: dict[str, Any] = {
        "images": np.arange(3 * 2 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 2, 4, 4, 3),
        "state": np.arange(24, dtype=np.float32).reshape(3, 8),
        "instruction": ("a", "b", "c"),
    }
    return Observation(**(fields | changes))


def test_a_valid_observation_returns_itself() -> None:
    valid = observation()
    assert valid.validate(ARM) is valid
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
        (
            {"images": np.zeros((3, 2, 3, 4, 4), np.uint8)},
            r"expected uint8 \[N, 2 cameras, H, W, 3",
        ),
        ({"images": np.zeros((3, 4, 4, 3), np.uint8)}, r"Observation.images: got uint8 \(3, 4, 4"),
        ({"images": np.zeros((2, 2, 4, 4, 3), np.uint8)}, "2 images but 3 instructions"),
        ({"state": np.zeros((3, 8))}, "Observation.state: got float64"),
        ({"state": np.zeros((3, 7), np.float32)}, r"got float32 \(3, 7\), expected float32 \(3, 8"),
        ({"state": np.zeros((2, 8), np.float32)}, r"got float32 \(2, 8\), expected float32 \(3, 8"),
    ],
)
def test_a_field_that_breaks_the_contract_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        observation(**changes).validate(ARM)


def test_another_robot_has_other_shapes() -> None:
    robot = Embodiment(action=("x",), state=("x", "y"), cameras=("top", "left", "right"))
    images, state = np.zeros((3, 3, 5, 6, 3), np.uint8), np.zeros((3, 2), np.float32)
    seen = observation(images=images, state=state)
    assert seen.validate(robot) is seen
    with pytest.raises(SpecError, match="got 2 cameras, expected 3: top, left, right"):
        observation(state=state).validate(robot)
    with pytest.raises(SpecError, match=r"float32 \(3, 8\), expected float32 \(3, 2\): x, y"):
        observation(images=images).validate(robot)


@pytest.mark.parametrize("kind", ["action", "state", "cameras"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "Embodiment: {kind} has 0 entries, expected at least 1"),
        (("x", "y", "x"), r"embodiment: {kind} is \[.*\], expected each name once"),
    ],
)
def test_channels_have_a_name_each(kind: str, names: tuple[str, ...], message: str) -> None:
    channels: dict[str, Any] = dict.fromkeys(("action", "state", "cameras"), ("x",))
    with pytest.raises(ConfigError, match=message.format(kind=kind)):
        Embodiment(**channels | {kind: names})


def test_binary_numbers_are_found_by_name() -> None:
    assert ARM.is_binary.tolist() == [False] * 6 + [True]
    pushing = replace(ARM, action=ARM.action[:3])
    assert pushing.is_binary.tolist() == [False] * 3
    assert replace(pushing, binary=("delta_z",)).is_binary.tolist() == [False, False, True]


def test_the_same_names_fit_whatever_is_binary() -> None:
    check_fits(ARM, replace(ARM, binary=()), "here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"action": ARM.action[:6]},
            r"action\[6\] of the suite is missing, the .* 'gripper'",
        ),
        (
            {"action": ("dx", *ARM.action[1:])},
            r"action\[0\] of the suite is 'dx', .* 'delta_x'; t",
        ),
        ({"state": (*ARM.state, "force")}, r"state\[8\] of the suite is 'force', .* with missing"),
        (
            {"cameras": ("eye_in_hand", "agentview")},
            r"here: cameras\[0\] of the suite is 'eye_in_hand', the policy was trained with "
            "'agentview'; the suite has eye_in_hand, agentview. Choose a policy of this robot, or",
        ),
    ],
)
def test_the_first_difference_of_two_robots_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_fits(ARM, replace(ARM, **changes), "here")


def test_a_policy_that_is_shown_pictures_of_another_kind_is_warned_of() -> None:
    with pytest.warns(
        UserWarning, match=r"here: the policy .* \('upright'\) than it is shown \(turn"
    ):
        compare_pictures("upright", "turned", "here")
    with pytest.warns(UserWarning, match="shown \\(of which the suite tells nothing"):
        compare_pictures("upright", "", "here")
    compare_pictures("upright", "upright", "here")
    compare_pictures("", "turned", "here")  # nobody said what it was trained on


class OnDevice:
    """What a device's array tells of itself; nothing else can be asked."""

    def __init__(self, shape: tuple[int, ...], typestr: str) -> None:
        self.__cuda_array_interface__ = {"shape": shape, "typestr": typestr, "version": 3}


def test_arrays_of_a_device_are_checked_as_they_are() -> None:
    images, state = OnDevice((3, 2, 4, 4, 3), "|u1"), OnDevice((3, 8), "<f4")
    seen = observation(images=images, state=state)
    assert seen.validate(ARM) is seen
    with pytest.raises(SpecError, match=r"Observation.images: got float32 \(3, 2, 4, 4, 3\), exp"):
        observation(images=OnDevice((3, 2, 4, 4, 3), "<f4")).validate(ARM)
    with pytest.raises(SpecError, match=r"Observation.state: got float32 \(3, 7\), expected"):
        observation(state=OnDevice((3, 7), "<f4")).validate(ARM)


def test_what_is_no_array_is_refused() -> None:
    with pytest.raises(SpecError, match="Observation.state: got a list, expected an array of num"):
        observation(state=[[0.0] * 8] * 3).validate(ARM)


def test_actions_are_clipped_to_their_range() -> None:
    actions = np.array([[[-2, -1, -0.5, 0, 0.5, 1, 3]]], dtype=np.float32)
    checked = check_actions(actions, num_slots=1, num_numbers=7)
    np.testing.assert_array_equal(checked, [[[-1, -1, -0.5, 0, 0.5, 1, 1]]])
    assert checked.dtype == np.float64


@pytest.mark.parametrize("shape", [(2, 4, 7), (3, 4, 6), (3, 0, 7), (3, 7), (3, 1, 4, 7)])
def test_actions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match=r"actions: got shape .*, expected \(3, steps, 7\) with at"):
        check_actions(np.zeros(shape), num_slots=3, num_numbers=7)


@pytest.mark.parametrize("dtype", [complex, bool, str, object])
def test_actions_that_are_no_numbers_are_refused(dtype: type) -> None:
    with pytest.raises(SpecError, match=r"actions: got .*, expected numbers"):
        check_actions(np.zeros((3, 4, 7), dtype), num_slots=3, num_numbers=7)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_action_that_is_not_finite_is_refused_with_its_place(value: float) -> None:
    actions = np.zeros((3, 4, 7))
    actions[2, 1, 5] = value
    with pytest.raises(SpecError, match=rf"actions\[2, 1, 5\] is {value}; every action must be"):
        check_actions(actions, num_slots=3, num_numbers=7)
