"""Pick a thing up and put it down somewhere."""

from collections.abc import Callable

import numpy as np

from vla_crl.sim.native.experts.skill import (
    TOO_LOW_M,
    Command,
    above,
    horizontal_distance,
    through_funnel,
)
from vla_crl.sim.native.goals import DIRECTIONS, Goal
from vla_crl.sim.native.kernel.progress import EMPTY_FINGER_M, HELD_M, OPEN_FINGER_M
from vla_crl.sim.native.layout import rest_height
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.simulation import NO_THING

HOVER_HEIGHT_M = 0.09
"""Grip height above an object's origin while moving over it; clears the other objects."""
CARRY_HEIGHT_M = 0.13
"""Grip height above the table while carrying; a held object clears every wall."""
DROP_HEIGHT_M = 0.017
"""Grip height above a region's box at which the object is let go into it."""
OVER_GOAL_M = 0.02
"""Horizontal error below which the grip may descend with an object, and let it go."""
CLEARANCE_M = 0.004
"""Height over its rest at which an object is put down."""
BESIDE_M = 0.075
"""Distance of the origins of things that are put side by side."""

Places = Callable[[np.ndarray], np.ndarray]


class PickAndPlace:
    """Makes "in", "on", "stacked", "between" and the directions true for a thing it can grasp."""

    def __init__(self, sim: VectorSim, scene: int, goal: Goal) -> None:
        """Prepare for one predicate of one of the suite's scenes."""
        world, name = sim.suite.scenes[scene], goal.arguments[0]
        self._sim = sim
        self._thing = sim.suite.thing_index(name)
        self._places, place = _places(sim, scene, goal)
        self._drops = goal.name == "in"
        self._rest_m = rest_height(world.model, world.bodies[name])
        self.named = (self._thing, place)

    def command(self, slots: np.ndarray) -> Command:
        """Reach, grasp, carry, put down and move away."""
        sim = self._sim
        thing, goal = sim.thing_positions(slots)[:, self._thing], self._places(slots)
        grip, _ = sim.grip_pose(slots)
        fingers = sim.finger_positions(slots).mean(axis=1)
        is_open = fingers > OPEN_FINGER_M
        is_near = np.linalg.norm(thing - grip, axis=1) < HELD_M
        is_held = is_near & ~is_open

        # Reach: above the thing, then down around it, then close.
        high = thing[:, 2] + HOVER_HEIGHT_M
        target, close = through_funnel(grip, thing, high), is_near.copy()
        opens = ~is_open & (grip[:, 2] > thing[:, 2] + HOVER_HEIGHT_M / 2)
        target[opens] = above(target, high)[opens]
        rises = target[:, 2] - grip[:, 2] > TOO_LOW_M
        close |= (fingers < EMPTY_FINGER_M) & rises  # opened low, it gets caught in a handle

        # Carry: up, across, down, open. A drop is aimed with the grip, a placement with the thing.
        aim = grip if self._drops else thing
        gap = horizontal_distance(goal, aim)
        is_over = gap < OVER_GOAL_M
        if self._drops:
            down = goal[:, 2] + DROP_HEIGHT_M
            is_down = is_over & (grip[:, 2] < down + 0.02)
        else:
            down = goal[:, 2] + self._rest_m + CLEARANCE_M + grip[:, 2] - thing[:, 2]
            is_down = is_over & (grip[:, 2] < down + CLEARANCE_M)
        there = above(grip + goal - aim, down)
        carry = through_funnel(grip, there, np.maximum(CARRY_HEIGHT_M, down), OVER_GOAL_M)
        target[is_held], close[is_held] = carry[is_held], ~is_down[is_held]

        # Move away from what stands in its place, straight up.
        height = np.abs(thing[:, 2] - goal[:, 2] - self._rest_m)
        is_placed = (not self._drops) & (horizontal_distance(goal, thing) < 1.5 * OVER_GOAL_M)
        leave = is_placed & (height < 2 * CLEARANCE_M) & is_open
        target[leave] = above(grip, grip[:, 2] + HOVER_HEIGHT_M)[leave]
        close[leave] = False
        return Command(target, close)


def _places(sim: VectorSim, scene: int, goal: Goal) -> tuple[Places, int]:
    """Return where the thing is to go, as the height to stand (or drop) on, and by which thing."""
    suite, world, names = sim.suite, sim.suite.scenes[scene], goal.arguments

    if goal.name == "in":
        site = world.model.site(names[1])
        bodies = suite.thing_bodies[scene].tolist()
        place = bodies.index(site.bodyid[0]) if site.bodyid[0] in bodies else NO_THING
        top = np.array([0.0, 0.0, site.size[2]])
        return lambda slots: sim.site_positions(site.id, slots) + top, place

    other = suite.thing_index(names[1])
    height = rest_height(world.model, world.bodies[names[1]])
    base = np.array([0.0, 0.0, -height])  # from a thing's origin to what it stands on

    def of(thing: int, slots: np.ndarray) -> np.ndarray:
        return sim.thing_positions(slots)[:, thing]

    if goal.name in {"on", "stacked"}:
        return lambda slots: of(other, slots) - base, other
    if goal.name == "between":
        third = suite.thing_index(names[2])
        return lambda slots: above(
            (of(other, slots) + of(third, slots)) / 2, (of(other, slots) + base)[:, 2]
        ), other
    step = np.array([*DIRECTIONS[goal.name], 0.0]) * BESIDE_M
    return lambda slots: of(other, slots) + step + base, other
