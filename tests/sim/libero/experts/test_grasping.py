"""Grasps hold what fits between the fingers, and nothing is in their way."""

import mujoco
import numpy as np
import pytest

from vla_crl.sim.libero.experts.grasping import Grasp, best_grasp
from vla_crl.sim.libero.experts.grips import FINGER_M, HAND_M, WIDEST_M
from vla_crl.sim.libero.experts.motion import (
    DOWN,
    Command,
    action_of,
    height_to_pass,
    over,
    pointing_down,
)
from vla_crl.sim.libero.experts.shapes import CUBE_M, Shapes
from vla_crl.sim.libero.experts.view import View

BOX = '<geom type="box" size="0.04 0.02 0.015"/>'
RIM_M, WALL_M, HEIGHT_M = 0.05, 0.002, 0.025


def _bowl() -> str:
    angles = np.arange(16) * np.pi / 8
    walls = [
        f'<geom type="box" size="{WALL_M} 0.011 {HEIGHT_M}" euler="0 0 {angle}" '
        f'pos="{RIM_M * np.cos(angle)} {RIM_M * np.sin(angle)} 0"/>'
        for angle in angles
    ]
    floor = f'<geom type="cylinder" size="0.045 0.003" pos="0 0 {0.003 - HEIGHT_M}"/>'
    return "".join([*walls, floor])


def _view(*things: tuple[str, str]) -> View:
    """Return a view of things, each of geoms and a place, and of a hand that is high over them."""
    bodies = "".join(
        f'<body name="thing{i}" {place}><freejoint/>{geoms}</body>'
        for i, (geoms, place) in enumerate(things)
    )
    model = mujoco.MjModel.from_xml_string(
        f'<mujoco><compiler angle="radian"/><worldbody><body name="robot0_base" pos="-0.6 0 0"/>'
        f"{bodies}</worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    roots = [model.body(f"thing{i}").id for i in range(len(things))]
    rotations = data.xmat.reshape(-1, 3, 3)
    hand = np.array([0.0, 0.0, 0.3])
    return View(Shapes(model, roots), data.xpos, rotations, np.zeros(9), 0.0, hand, DOWN)


def _grasp(view: View, **settings) -> tuple[Grasp, np.ndarray, np.ndarray]:
    """Return the grasp of the first thing, its point and its axis in the world."""
    body = view.shapes.model.body("thing0").id
    grasp = best_grasp(view, body, **settings)
    assert grasp is not None
    turn = view.mat[body]
    return grasp, view.pos[body] + turn @ grasp.point, turn @ grasp.axis


@pytest.mark.parametrize("yaw", [0.0, 0.7, 1.5])
def test_a_box_is_grasped_across_its_narrow_side(yaw: float) -> None:
    view = _view((BOX, f'pos="0.05 0 0" euler="0 0 {yaw}"'))
    grasp, point, axis = _grasp(view)
    narrow = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
    assert abs(axis @ narrow) > np.cos(np.pi / 12)  # yaws are tried in steps of 15 degrees
    assert 0.04 <= grasp.width < 0.056
    assert np.hypot(*(point - [0.05, 0.0, 0.0])[:2]) < 0.012


def test_a_bowl_that_is_too_wide_is_grasped_by_its_rim() -> None:
    view = _view((_bowl(), ""))
    grasp, point, axis = _grasp(view)
    assert grasp.width < 0.02
    radial = np.array([*point[:2], 0.0]) / np.hypot(*point[:2])
    assert np.hypot(*point[:2]) == pytest.approx(RIM_M, abs=0.006)
    assert abs(radial @ axis) > 0.9  # one finger inside, one outside


def test_fingers_keep_away_from_a_neighbour() -> None:
    block = '<geom type="box" size="0.02 0.02 0.015"/>'
    alone, _, axis = _grasp(_view((block, "")))
    assert abs(axis[1]) > 0.9
    wall = '<geom type="box" size="0.04 0.005 0.05"/>'
    beside = _view((block, ""), (wall, 'pos="0 0.05 0.035"'))  # where a finger was
    _, point, axis = _grasp(beside)
    cloud = beside.thing(beside.shapes.model.body("thing1").id) - point
    along, across = cloud @ axis, cloud @ np.array([-axis[1], axis[0], 0.0])
    in_finger = (np.abs(along) > 0.037) & (np.abs(along) < FINGER_M) & (np.abs(across) < 0.01)
    assert not in_finger.any()
    assert not ((np.abs(along) < HAND_M) & (np.abs(across) < 0.03) & (cloud[:, 2] > 0.031)).any()
    forgetful, _, _ = _grasp(beside, is_alone=True)
    np.testing.assert_allclose(forgetful.point, alone.point)


def test_what_is_too_wide_cannot_be_grasped_and_a_failed_grasp_is_not_tried_again() -> None:
    block = '<geom type="box" size="0.06 0.06 0.05"/>'
    view = _view((block, ""))
    assert best_grasp(view, view.shapes.model.body("thing0").id) is None
    assert WIDEST_M < 0.08
    bowl = _view((_bowl(), ""))
    first, point, _ = _grasp(bowl)
    _, second, _ = _grasp(bowl, skip=(first,))
    assert np.linalg.norm(second - point) > 0.015


def test_cubes_fill_boxes_and_nothing_else() -> None:
    view = _view((BOX, 'pos="0.1 0 0"'))
    cubes = view.shapes.cubes[view.shapes.model.body("thing0").id]
    assert (np.abs(cubes) <= np.array([0.04, 0.02, 0.015]) + 1e-9).all()
    volume = len(cubes) * CUBE_M**3
    assert volume == pytest.approx(0.08 * 0.04 * 0.03, rel=0.4)
    low, high = view.bounds(view.shapes.model.body("thing0").id)
    np.testing.assert_allclose((low + high) / 2, [0.1, 0.0, 0.0], atol=1e-9)


def test_a_hand_that_is_there_stays_and_one_that_is_turned_turns_back() -> None:
    view = _view((BOX, ""))
    still = action_of(view, Command(view.grip, DOWN, closes=True))
    np.testing.assert_allclose(still, [0, 0, 0, 0, 0, 0, 1], atol=1e-12)
    for axis in ([1.0, 0.0, 0.0], [0.6, 0.8, 0.0]):
        hand = pointing_down(np.array(axis))
        np.testing.assert_allclose(hand @ hand.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(hand) == pytest.approx(1.0)
        np.testing.assert_allclose(hand[:, 2], [0.0, 0.0, -1.0])
    turned = action_of(
        view, Command(view.grip, pointing_down(np.array([-0.1, 1.0, 0])), closes=False)
    )
    assert turned[5] > 0.3
    np.testing.assert_allclose(turned[:5], 0.0, atol=1e-9)
    far = action_of(view, Command(view.grip + 1.0, DOWN, closes=False))
    np.testing.assert_allclose(far, [1, 1, 1, 0, 0, 0, -1], atol=1e-12)


def test_the_hand_passes_over_what_is_on_its_way_and_comes_down_at_its_end() -> None:
    wall = '<geom type="box" size="0.01 0.1 0.1"/>'
    view = _view((BOX, 'pos="0.3 0 0"'), (wall, 'pos="0.15 0 0"'), (wall, 'pos="-0.3 0 0.5"'))
    goal = np.array([0.3, 0.0, 0.02])
    height = height_to_pass(view, goal, 0.05, (), 0.01)
    assert 0.11 < height < 0.15  # over the first wall; the second one is behind
    high, low = np.array([0.2, 0.0, 0.2]), np.array([0.1, 0.0, 0.02])
    assert over(high, goal, height)[2] == height
    assert over(goal + np.array([0.005, 0.0, 0.1]), goal, height)[2] == goal[2]
    np.testing.assert_allclose(over(low, goal, height)[:2], low[:2])  # too low: it rises first
