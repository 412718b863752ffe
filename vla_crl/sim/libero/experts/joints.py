"""Open and close drawers and doors, turn knobs."""

from typing import NamedTuple

import mujoco
import numpy as np

from vla_crl.sim.libero.experts.grasping import best_grasp
from vla_crl.sim.libero.experts.motion import Command, over, pointing_down
from vla_crl.sim.libero.experts.place import Attempt, Memory, is_blocked, reach
from vla_crl.sim.libero.experts.view import View

HANDLE_M = 0.017
"""What sticks out of a drawer this far is its handle."""
BEFORE_M, ON_LINE_M = 0.09, 0.02
"""From where a handle is approached, and the distance from that line with which one advances."""
AT_HANDLE_M = 0.016
PULL_M, PUSH_M = 0.06, 0.04
"""How far beyond itself the hand is asked to go, with and against a drawer."""
GRIPPED_M = 0.014
"""Of closed fingers from the middle, around a handle."""
TURN_RAD = 0.5
"""How far ahead a knob is turned."""
LEAN_RAD = 0.5
"""Of the hand that pushes, from pointing down: lower than its wrist."""
UP = np.array([0.0, 0.0, 1.0])


class Joint(NamedTuple):
    """A joint that is to move.

    Attributes:
        joint: Its number.
        is_up: Whether its position is to become greater.
    """

    joint: int
    is_up: bool


def command_to_move(view: View, memory: Memory, wanted: Joint) -> Command:
    """Move a joint one way until the goal is content."""
    model = view.shapes.model
    body = int(model.jnt_bodyid[wanted.joint])
    axis = view.mat[body] @ model.jnt_axis[wanted.joint]
    sign = 1.0 if wanted.is_up else -1.0
    if model.jnt_type[wanted.joint] == mujoco.mjtJoint.mjJNT_SLIDE:
        return _slide(view, memory, body, sign * axis)
    if abs(axis[2]) > 0.9 and _is_knob(view, body):
        return _turn(view, memory, body, sign * float(np.sign(axis[2])))
    return _swing(view, body, sign * axis)


def _is_knob(view: View, body: int) -> bool:
    bounds = view.bounds(body)
    return bool((bounds[1] - bounds[0]).max() < 0.12)


def _slide(view: View, memory: Memory, body: int, direction: np.ndarray) -> Command:
    """Pull a drawer by its handle, or push it there; the handle is where it sticks out."""
    points = view.points(body)
    outward = _outward(view, body)
    out = points @ outward
    handle = points[out > out.max() - HANDLE_M]
    centre = (handle.min(0) + handle.max(0)) / 2
    if direction @ outward < 0.0:
        return _push(view, centre + (out.max() - centre @ outward) * outward, -outward)
    hand = _leaning(outward, np.pi / 2, pointing_down(outward))
    aside = view.grip - centre
    along = float(aside @ outward)
    off = float(np.linalg.norm(aside - along * outward))
    is_there = off < AT_HANDLE_M and abs(along) < AT_HANDLE_M
    is_holding = memory.pulls.get(body, False) and off < 2 * ON_LINE_M and abs(along) < 0.025
    memory.pulls[body] = is_there or is_holding
    if memory.pulls[body]:
        is_closed = view.opening < GRIPPED_M and view.speed > -0.02
        return Command(centre + (PULL_M if is_closed else 0.0) * outward, hand, closes=True)
    return _advance(view, centre, outward, hand, closes=False)


def _outward(view: View, body: int) -> np.ndarray:
    """Return the horizontal direction [3] in which a drawer comes out of its cabinet."""
    model = view.shapes.model
    joint = int(model.body_jntadr[body])
    axis = view.mat[body] @ model.jnt_axis[joint]
    low, high = model.jnt_range[joint]
    return -axis if abs(low) > abs(high) else axis


def _leaning(outward: np.ndarray, angle: float, upright: np.ndarray) -> np.ndarray:
    """Turn a hand that points down until it points against a direction."""
    turn = np.empty(4)
    mujoco.mju_axisAngle2Quat(turn, np.cross(UP, outward), angle)
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, turn)
    return matrix.reshape(3, 3) @ upright


def _advance(
    view: View, point: np.ndarray, outward: np.ndarray, hand: np.ndarray, *, closes: bool
) -> Command:
    """Go in front of a point, then along a line to it."""
    aside = view.grip - point
    along = float(aside @ outward)
    off = float(np.linalg.norm(aside - along * outward))
    turned = np.abs(hand - view.hand).max()
    start = point + BEFORE_M * outward
    if off < ON_LINE_M and along < BEFORE_M + ON_LINE_M and turned < 0.2:
        target = view.grip - aside + max(along - 0.03, 0.0) * outward
        return Command(target, hand, closes)
    if along < BEFORE_M - ON_LINE_M and off > ON_LINE_M:  # not through the cabinet
        return Command(view.grip + 0.06 * outward + 0.04 * UP, hand, closes)
    return Command(start, hand, closes)


def _push(view: View, point: np.ndarray, direction: np.ndarray) -> Command:
    """Push at a point, with closed fingers."""
    outward = -direction
    hand = _leaning(outward, LEAN_RAD, pointing_down(np.cross(UP, outward)))
    aside = view.grip - point
    along = float(aside @ outward)
    off = float(np.linalg.norm(aside - along * outward))
    if off < 2 * ON_LINE_M and along < 0.05 and np.abs(hand - view.hand).max() < 0.35:
        target = point + (along - PUSH_M) * outward
        return Command(target, hand, closes=True)
    return _advance(view, point, outward, hand, closes=True)


def _turn(view: View, memory: Memory, body: int, sign: float) -> Command:
    """Grasp a knob and turn it about its vertical axis."""
    if is_blocked(memory, body):
        memory.give_up(body)
    if body not in memory.attempts:
        grasp = best_grasp(view, body, memory.failed.get(body, ()))
        if grasp is None:
            return Command(view.grip + 0.05 * UP, pointing_down(view.hand[:, 0]), closes=False)
        memory.attempts[body] = Attempt(grasp)
    attempt = memory.attempts[body]
    point = view.pos[body] + view.mat[body] @ attempt.grasp.point
    axis = view.mat[body] @ attempt.grasp.axis
    hand = pointing_down(axis)
    attempt.follow(view, point)
    if attempt.phase == "reach":
        return reach(view, memory, point, hand)
    if attempt.phase == "close":
        return Command(point, hand, closes=True)
    turn = sign * TURN_RAD
    cosine, sine = np.cos(turn), np.sin(turn)
    rotation = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    target = view.pos[body] + rotation @ (point - view.pos[body])
    return Command(target, rotation @ pointing_down(view.hand[:, 0]), closes=True)


def _swing(view: View, body: int, axis: np.ndarray) -> Command:
    """Push a door at its free edge, with closed fingers, about its hinge."""
    points = view.points(body)
    model = view.shapes.model
    hinge = view.pos[body] + view.mat[body] @ model.jnt_pos[int(model.body_jntadr[body])]
    arm = points - hinge
    arm -= (arm @ axis)[:, None] * axis
    edge = points[np.linalg.norm(arm, axis=1) > np.linalg.norm(arm, axis=1).max() - 0.04]
    way = np.cross(axis, edge.mean(0) - hinge)
    way /= np.linalg.norm(way)
    behind = edge[(edge @ way) < (edge @ way).min() + 0.01].mean(0)
    hand = pointing_down(np.cross(UP, way))
    start = behind - 0.06 * way
    aside = view.grip - behind
    along = float(aside @ way)
    off = float(np.linalg.norm(aside - along * way))
    if off < 0.035 and along < 0.01:
        return Command(behind + (along + PUSH_M) * way, hand, closes=True)
    top = float(points[:, 2].max()) + 0.05
    return Command(over(view.grip, start, top), hand, closes=True)
