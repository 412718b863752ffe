"""Scripted experts: actions from privileged state, for demonstrations and as upper reference."""

import numpy as np

from vla_crl.contracts import ACTION_DIM
from vla_crl.sim.layout import GRIP_DOWN
from vla_crl.sim.rotations import axis_angle_from_matrix
from vla_crl.sim.vector_sim import VectorSim

HOVER_HEIGHT_M = 0.09
"""Grip height above an object's origin while moving over it; clears the other objects."""
CARRY_HEIGHT_M = 0.13
"""Grip height above the table while carrying; a held object clears every wall."""
RELEASE_HEIGHT_M = 0.075
"""Grip height above the table at which the object is let go inside a fixture."""
ALIGNED_M = 0.012
"""Horizontal error below which the grip may descend on an object."""
OVER_GOAL_M = 0.02
"""Horizontal error below which the grip may descend into a fixture."""
HELD_M = 0.022
"""An object this close to the grip site, between closed fingers, counts as held."""
OPEN_FINGER_M = 0.03
"""Finger position beyond which the gripper counts as open."""


class PickAndPlaceExpert:
    """Pick a thing up and let it go over a region, for tasks with one "in" goal.

    The action is a function of the current state alone, so it is also a valid label for states that
    a perturbed or learnt policy has reached (DAgger-like relabelling).

    Attributes:
        things: [tasks] index of the thing that each task moves.
        places: [tasks] index of the thing that it is to be put in.
    """

    def __init__(self, sim: VectorSim) -> None:
        """Prepare for all tasks of the simulation's suite."""
        suite = sim.suite
        self._sim = sim
        goals = [goal.arguments for goal in suite.goals]
        self.things = np.array([suite.thing_index(thing) for thing, _ in goals])
        bodies = {suite.model.body(thing.body).id: i for i, thing in enumerate(suite.config.things)}
        region_body = [suite.model.site(region).bodyid[0] for _, region in goals]
        self.places = np.array([bodies[body] for body in region_body])

    def act(self, slots: np.ndarray) -> np.ndarray:
        """Return the expert's action [B, 7] for each of `slots`."""
        sim = self._sim
        rows, tasks = np.arange(len(slots)), sim.tasks[slots]
        positions = sim.thing_positions(slots)
        thing, goal = positions[rows, self.things[tasks]], positions[rows, self.places[tasks]]
        grip, rotation = sim.grip_pose(slots)
        fingers = sim.finger_positions(slots).mean(axis=1)

        is_near = np.linalg.norm(thing - grip, axis=1) < HELD_M
        is_open = fingers > OPEN_FINGER_M
        is_held = is_near & ~is_open
        target, close = np.empty_like(grip), np.empty(len(slots), dtype=bool)

        # Reach: above the thing, then down around it, then close.
        offset = np.linalg.norm((thing - grip)[:, :2], axis=1)
        aligned = offset < ALIGNED_M
        low = grip[:, 2] - thing[:, 2] < HOVER_HEIGHT_M / 2
        descend = aligned | (low & (offset < 2 * ALIGNED_M))
        target[:] = thing
        target[:, 2] += np.where(descend & (is_open | low), 0.0, HOVER_HEIGHT_M)
        close[:] = is_near

        # Carry: up, across, down, open.
        gap = np.linalg.norm((goal - grip)[:, :2], axis=1)
        over = gap < OVER_GOAL_M
        lifted = grip[:, 2] > CARRY_HEIGHT_M - 0.03
        carry = np.where(
            (lifted | (gap < 2 * OVER_GOAL_M))[:, None], goal, np.where(lifted[:, None], goal, grip)
        )
        carry[:, 2] = np.where(over, RELEASE_HEIGHT_M, CARRY_HEIGHT_M)
        released = over & (grip[:, 2] < RELEASE_HEIGHT_M + 0.02)
        target[is_held] = carry[is_held]
        close[is_held] = ~released[is_held]

        action = np.empty((len(slots), ACTION_DIM))
        arm = sim.suite.config.arm
        action[:, :3] = (target - grip) / arm.max_step_m
        correction = GRIP_DOWN @ np.swapaxes(rotation, 1, 2)  # world-frame turn back to upright
        turn = axis_angle_from_matrix(correction)
        angle = np.linalg.norm(turn, axis=1, keepdims=True)
        turn *= np.where(angle > np.pi, (angle - 2 * np.pi) / np.maximum(angle, 1e-9), 1.0)
        action[:, 3:6] = turn / arm.max_step_rad
        action[:, 6] = np.where(close, 1.0, -1.0)
        return np.clip(action, -1.0, 1.0)
