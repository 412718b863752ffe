"""Grasp a thing and put it where a term of the goal wants it."""

from dataclasses import dataclass, field

import numpy as np

from vla_crl.sim.libero.experts.grasping import (
    HAND_M,
    HAND_WIDTH_M,
    PALM_M,
    TIP_M,
    Grasp,
    best_grasp,
)
from vla_crl.sim.libero.experts.motion import (
    DOWN,
    Command,
    height_to_pass,
    over,
    pointing_down,
)
from vla_crl.sim.libero.experts.view import View

AT_GRASP_M, LOST_M = 0.012, 0.03
"""Distances of the grip point from the grasp at which the fingers close, and at which they have not
got the thing."""
STILL = 0.02
"""Speed (m/s) below which fingers have closed."""
OPEN_M = 0.03
"""From the middle to a finger of an open gripper."""
FINGERS_M = 0.06
"""Half the width of open fingers."""
OVER_M, DOWN_M = 0.015, 0.008
"""Errors in the plane and in height with which a thing is let go."""
GAP_M = 0.003
"""Height over what it will stand on at which a thing is let go."""


@dataclass
class Memory:
    """What an expert remembers in an episode.

    Attributes:
        grasps: Of each thing, how it is to be grasped.
        failed: Grasps of it that failed.
        closed: Of each thing, whether its grasp has been closed.
    """

    grasps: dict[int, Grasp] = field(default_factory=dict)
    failed: dict[int, tuple[Grasp, ...]] = field(default_factory=dict)
    closed: dict[int, bool] = field(default_factory=dict)


def command_to_place(view: View, memory: Memory, thing: int, goal: np.ndarray) -> Command:
    """Reach, grasp, carry, put down.

    Args:
        view: Where all is.
        memory: Of the slot's episode.
        thing: Body of what is moved.
        goal: [2] m, world, where its origin is to be.
    """
    grasp = _grasp_of(view, memory, thing)
    if grasp is None:
        return Command(view.grip + [0.0, 0.0, 0.05], DOWN, closes=False)
    point = view.pos[thing] + view.mat[thing] @ grasp.point
    hand = pointing_down(view.mat[thing] @ grasp.axis)
    error = view.grip - point
    is_there = max(np.hypot(error[0], error[1]), abs(error[2])) < AT_GRASP_M
    is_closing = view.opening < max(OPEN_M, grasp.width / 2 + 0.004)
    memory.closed[thing] = is_closing and view.speed > -STILL
    if is_closing and np.linalg.norm(error) < LOST_M:
        if not memory.closed[thing]:
            return Command(point, hand, closes=True)
        return _carry(view, thing, goal)
    if is_there:
        return Command(point, hand, closes=True)
    return _reach(view, thing, point, hand)


def _grasp_of(view: View, memory: Memory, thing: int) -> Grasp | None:
    """Return the grasp that is remembered, or the best one now."""
    if memory.grasps.get(thing) is None:
        grasp = best_grasp(view, thing, memory.failed.get(thing, ()))
        if grasp is None:
            return None
        memory.grasps[thing] = grasp
    grasp = memory.grasps[thing]
    point = view.pos[thing] + view.mat[thing] @ grasp.point
    is_lost = np.linalg.norm(view.grip - point) > LOST_M
    if memory.closed.get(thing) and is_lost and view.opening < OPEN_M:
        memory.failed[thing] = (*memory.failed.get(thing, ()), grasp)
        memory.closed[thing] = False
        del memory.grasps[thing]
        return _grasp_of(view, memory, thing)
    return grasp


def _reach(view: View, thing: int, point: np.ndarray, hand: np.ndarray) -> Command:
    if view.opening < OPEN_M and is_among(view, 0.015):
        return Command(view.grip.copy(), view.hand, closes=False)
    height = height_to_pass(view, point, FINGERS_M, (), TIP_M)
    return Command(over(view.grip, point, height), hand, closes=False)


def is_among(view: View, distance: float) -> bool:
    """Tell whether something is between the fingers."""
    for body in view.shapes.cubes:
        bounds = view.bounds(body)
        if (view.grip > bounds[0] - distance).all() and (view.grip < bounds[1] + distance).all():
            points = view.points(body) - view.grip
            if np.abs(points).max(axis=1).min() < distance:
                return True
    return False


def _carry(view: View, thing: int, goal: np.ndarray) -> Command:
    points = view.points(thing)
    offset = view.grip - view.pos[thing]
    below = view.grip[2] - min(points[:, 2].min(), view.grip[2] - TIP_M)
    radius = float(np.abs(points[:, :2] - view.grip[:2]).max())
    target = np.append(goal + offset[:2], 0.0)
    target[2] = _release_height(view, thing, points, target)
    height = height_to_pass(view, target, radius, (thing,), below)
    gap = np.hypot(*(view.grip - target)[:2])
    is_down = gap < OVER_M and view.grip[2] < target[2] + DOWN_M
    return Command(over(view.grip, target, height), _upright(view), closes=not is_down)


def _upright(view: View) -> np.ndarray:
    """Return the rotation that the hand has, but pointing down."""
    return pointing_down(view.hand[:, 0])


def _release_height(view: View, thing: int, points: np.ndarray, target: np.ndarray) -> float:
    """Return the height (m, world) of the grip point at which the thing is let go over a target."""
    moved = points - view.grip + np.append(target[:2], 0.0)
    low, high = moved.min(0) - HAND_M, moved.max(0) + HAND_M
    bodies = []
    for body in view.shapes.cubes:
        bounds = view.bounds(body)
        if body != thing and ((bounds[0] < high) & (bounds[1] > low))[:2].all():
            bodies.append(body)
    others = view.cloud(bodies)
    if not len(others):
        return -np.inf
    # What it comes to stand on: columns of 1 cm.
    size = 0.01
    corner = moved[:, :2].min(0)
    shape = np.ceil((moved[:, :2].max(0) - corner) / size).astype(int) + 1
    bottom, top = np.full(shape, np.inf), np.full(shape, -np.inf)
    np.minimum.at(bottom, tuple(((moved[:, :2] - corner) / size).astype(int).T), moved[:, 2])
    cells = np.floor((others[:, :2] - corner) / size).astype(int)
    inside = ((cells >= 0) & (cells < shape)).all(axis=1)
    np.maximum.at(top, tuple(cells[inside].T), others[inside, 2])
    contact = float((top - bottom).max()) + 0.005 + GAP_M
    beside = (others[:, :2] - target[:2]) @ view.hand[:2, :2]
    is_below = (np.abs(beside[:, 0]) < HAND_M) & (np.abs(beside[:, 1]) < HAND_WIDTH_M)
    palm = float(others[is_below, 2].max(initial=-np.inf)) - PALM_M + 0.012
    return max(contact, palm)
