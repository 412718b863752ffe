"""Grasp a thing and put it where a term of the goal wants it."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from vla_crl.sim.libero.experts.grasping import Grasp, best_grasp
from vla_crl.sim.libero.experts.grips import TIP_M
from vla_crl.sim.libero.experts.motion import (
    DOWN,
    Command,
    height_to_pass,
    over,
    pointing_down,
)
from vla_crl.sim.libero.experts.spots import Place, Surface, best_spot
from vla_crl.sim.libero.experts.view import View

AT_GRASP_M, AT_DEPTH_M, LOST_M = 0.008, 0.01, 0.03
"""Distances of the grip point from the grasp, in the plane and in height, at which the fingers
close, and in space at which they have not got the thing."""
HELD_M = 0.008
"""Fingers that hold something are no further from it."""
STILL = 0.006
"""Speed (m/s) below which fingers have closed."""
STILL_M, STUCK = 0.0015, 12
"""Motion of a step (m) that is none, and steps without one after which something is in the way."""
MAX_FAILED = 4
FREE_M, PATIENCE = 0.036, 8
"""From the middle to fingers that have let go, and how many steps are waited for that."""
LEVEL, RETREAT_M = 0.8, 0.05
"""A hand that does not point down, less than by this cosine, first backs away from what is near and
turns."""
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
        surface: What the place looked like when the thing was grasped.
        spot: [2] where its origin goes from the middle of the place, m.
    """

    grasp: Grasp
    phase: Literal["reach", "close", "carry"] = "reach"
    anchor: np.ndarray = field(default_factory=lambda: np.zeros(3))
    surface: Surface | None = None
    spot: np.ndarray | None = None

    def follow(self, view: View, point: np.ndarray) -> None:
        """Go on to what is next, the grasp being at a point [3] (m, world) now."""
        error, is_held = view.grip - point, view.opening < self.grasp.width / 2 + HELD_M
        if self.phase == "reach":
            if np.hypot(error[0], error[1]) < AT_GRASP_M and abs(error[2]) < AT_DEPTH_M:
                self.phase, self.anchor = "close", point
        elif self.phase == "close":
            self.phase = "carry" if is_held and view.speed > -STILL else "close"
        elif not is_held:
            self.phase, self.spot = "reach", None


@dataclass
class Memory:
    """What an expert remembers in an episode.

    Attributes:
        attempts: Of each thing, the present attempt.
        failed: Of each thing, the grasps that failed.
        pulls: Of each drawer, whether its handle is held.
        still: Steps in which the hand has not moved.
        grip: Where it was a step ago.
    """

    attempts: dict[int, Attempt] = field(default_factory=dict)
    failed: dict[int, tuple[Grasp, ...]] = field(default_factory=dict)
    pulls: dict[int, bool] = field(default_factory=dict)
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


def command_to_place(view: View, memory: Memory, thing: int, place: Place) -> Command:
    """Reach, grasp, carry, put down.

    Args:
        view: Where all is.
        memory: Of the slot's episode.
        thing: Body of what is moved.
        place: Where it is to be.
    """
    if is_blocked(memory, thing):
        memory.give_up(thing)
    if thing not in memory.attempts:
        failed = memory.failed.get(thing, ())
        grasp = best_grasp(view, thing, failed) or best_grasp(view, thing, failed, is_alone=True)
        if grasp is None:
            return Command(view.grip + np.array([0.0, 0.0, 0.05]), DOWN, closes=False)
        memory.attempts[thing] = Attempt(grasp)
    attempt = memory.attempts[thing]
    point = view.pos[thing] + view.mat[thing] @ attempt.grasp.point
    hand = pointing_down(view.mat[thing] @ attempt.grasp.axis)
    if attempt.phase != "reach" and np.linalg.norm(view.grip - point) > LOST_M:
        memory.give_up(thing)
        return command_to_place(view, memory, thing, place)
    attempt.follow(view, point)
    if attempt.phase == "carry":
        return _carry(view, attempt, thing, place)
    if attempt.phase == "close":
        return Command(attempt.anchor, hand, closes=True)
    return reach(view, memory, point, hand)


def is_blocked(memory: Memory, thing: int) -> bool:
    """Tell whether the hand does not get on with a thing."""
    return memory.still > STUCK and thing in memory.attempts


def reach(view: View, memory: Memory, point: np.ndarray, hand: np.ndarray) -> Command:
    """Come to a grasp from above, with open fingers; let go of what was held before."""
    if view.opening < FREE_M and memory.still < PATIENCE and is_among(view, 0.015):
        return Command(view.grip.copy(), view.hand, closes=False)
    if view.hand[2, 2] > -LEVEL:
        if is_among(view, RETREAT_M):
            return Command(view.grip - 0.06 * view.hand[:, 2], view.hand, closes=False)
        return Command(view.grip + np.array([0.0, 0.0, 0.03]), hand, closes=False)
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


def _carry(view: View, attempt: Attempt, thing: int, place: Place) -> Command:
    points = view.thing(thing)
    offset = view.grip - view.pos[thing]
    below = view.grip[2] - min(points[:, 2].min(), view.grip[2] - TIP_M)
    radius = float(np.abs(points[:, :2] - view.grip[:2]).max())
    if attempt.spot is None or attempt.surface is None:
        attempt.surface = Surface(view, thing, place.centre(view))
        attempt.spot = best_spot(view, thing, place, attempt.surface) - place.centre(view)[:2]
    surface = attempt.surface
    target = np.append(attempt.spot + place.centre(view)[:2] + offset[:2], 0.0)
    contact = surface.height_under(points - view.pos[thing], target[:2] - offset[:2]) + offset[2]
    target[2] = max(contact + GAP_M, surface.palm(view, target))
    height = height_to_pass(view, target, radius, (thing,), below)
    gap = np.hypot(*(view.grip - target)[:2])
    is_down = gap < OVER_M and view.grip[2] < target[2] + DOWN_M
    hand = pointing_down(view.hand[:, 0])
    return Command(over(view.grip, target, height), hand, closes=not is_down)
