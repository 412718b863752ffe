"""Grasp a thing and put it where a term of the goal wants it."""

from dataclasses import dataclass, field
from typing import Literal

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

AT_GRASP_M, AT_DEPTH_M, LOST_M = 0.008, 0.01, 0.03
"""Distances of the grip point from the grasp, in the plane and in height, at which the fingers
close, and in space at which they have not got the thing."""
HELD_M = 0.008
"""Fingers that hold something are no further from it."""
STILL = 0.02
"""Speed (m/s) below which fingers have closed."""
STILL_M, STUCK = 0.0015, 12
"""Motion of a step (m) that is none, and steps without one after which something is in the way."""
MAX_FAILED = 4
OPEN_M = 0.03
"""From the middle to a finger of an open gripper."""
FINGERS_M = 0.06
"""Half the width of open fingers."""
OVER_M, DOWN_M = 0.015, 0.008
"""Errors in the plane and in height with which a thing is let go."""
GAP_M = 0.003
"""Height over what it will stand on at which a thing is let go."""


@dataclass
class Attempt:
    """To grasp a thing and carry it.

    Attributes:
        grasp: How.
        phase: What is done now.
        anchor: [3] m, world, where the grip point is while the fingers close.
    """

    grasp: Grasp
    phase: Literal["reach", "close", "carry"] = "reach"
    anchor: np.ndarray | None = None


@dataclass
class Memory:
    """What an expert remembers in an episode.

    Attributes:
        attempts: Of each thing, the present attempt.
        failed: Of each thing, the grasps that failed.
        still: Steps in which the hand has not moved.
        grip: Where it was a step ago.
    """

    attempts: dict[int, Attempt] = field(default_factory=dict)
    failed: dict[int, tuple[Grasp, ...]] = field(default_factory=dict)
    still: int = 0
    grip: np.ndarray | None = None

    def watch(self, grip: np.ndarray) -> None:
        """Count the steps in which the hand stays where it is."""
        is_still = self.grip is not None and np.linalg.norm(grip - self.grip) < STILL_M
        self.still = self.still + 1 if is_still else 0
        self.grip = grip.copy()

    def give_up(self, thing: int) -> None:
        """Try another grasp."""
        grasp = self.attempts.pop(thing).grasp
        self.failed[thing] = (*self.failed.get(thing, ()), grasp)[-MAX_FAILED:]
        self.still = 0


def command_to_place(view: View, memory: Memory, thing: int, goal: np.ndarray) -> Command:
    """Reach, grasp, carry, put down.

    Args:
        view: Where all is.
        memory: Of the slot's episode.
        thing: Body of what is moved.
        goal: [2] m, world, where its origin is to be.
    """
    if memory.still > STUCK and thing in memory.attempts:
        memory.give_up(thing)
    if thing not in memory.attempts:
        grasp = best_grasp(view, thing, memory.failed.get(thing, ()))
        if grasp is None:
            return Command(view.grip + np.array([0.0, 0.0, 0.05]), DOWN, closes=False)
        memory.attempts[thing] = Attempt(grasp)
    attempt = memory.attempts[thing]
    grasp = attempt.grasp
    point = view.pos[thing] + view.mat[thing] @ grasp.point
    hand = pointing_down(view.mat[thing] @ grasp.axis)
    error = view.grip - point
    is_held = view.opening < grasp.width / 2 + HELD_M
    if attempt.phase == "reach":
        if np.hypot(error[0], error[1]) < AT_GRASP_M and abs(error[2]) < AT_DEPTH_M:
            attempt.phase, attempt.anchor = "close", point
    elif np.linalg.norm(error) > LOST_M:
        memory.give_up(thing)
        return command_to_place(view, memory, thing, goal)
    elif attempt.phase == "close":
        attempt.phase = "carry" if is_held and view.speed > -STILL else "close"
    elif not is_held:
        attempt.phase = "reach"
    if attempt.phase == "carry":
        return _carry(view, thing, goal)
    if attempt.phase == "close":
        return Command(attempt.anchor, hand, closes=True)
    return _reach(view, thing, point, hand)


def _reach(view: View, thing: int, point: np.ndarray, hand: np.ndarray) -> Command:
    if view.opening < OPEN_M and is_among(view, 0.015):
        return Command(view.grip.copy(), view.hand, closes=False)
    height = height_to_pass(view, point, FINGERS_M, (), TIP_M)
    return Command(over(view.grip, point, height, 0.006, 0.015), hand, closes=False)


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
