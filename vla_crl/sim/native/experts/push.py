"""Move a handle, a button or a thing along a line with the closed gripper."""

from abc import ABC, abstractmethod

import mujoco
import numpy as np

from vla_crl.sim.native.experts.skill import Command, above, ramp, through_funnel
from vla_crl.sim.native.goals import Goal
from vla_crl.sim.native.layout import rest_height
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.simulation import NO_THING

START_M = 0.03
"""Distance from the contact point at which a push begins, on the side from which it pushes."""
TRAVEL_HEIGHT_M = 0.09
"""Height over the contact point while moving to that side."""
RUN_UP_M = 0.07
"""Distance behind the contact point up to which it is reached along the line."""
ON_LINE_M, OFF_LINE_M = 0.01, 0.025
"""Distances to the line at which the grip only pushes on, and only goes back to the start."""
LOW_M, TOO_HIGH_M = 0.004, 0.012
"""Heights over the contact point likewise; from higher up it would press down on the thing."""
LIFT_M = 0.008
"""A thing is pushed this far above its origin at rest: the fingertips stay off the table."""
PUSH_STEP_M = 0.03
"""Commanded advance of one control step."""


class _Push(ABC):
    """Go round the contact point, descend behind it, push."""

    named: tuple[int, int]

    def __init__(self, sim: VectorSim) -> None:
        self._sim = sim

    @abstractmethod
    def _line(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the contact points [B, 3] (m, world) and unit directions [B, 3] of the push."""

    def command(self, slots: np.ndarray) -> Command:
        """Return what to do next in each of `slots`."""
        contact, direction = self._line(slots)
        grip, _ = self._sim.grip_pose(slots)
        start = contact - START_M * direction
        along = np.einsum("bi,bi->b", grip - contact, direction)
        offset = grip - contact - along[:, None] * direction
        back = ramp(np.linalg.norm(offset, axis=1), ON_LINE_M, OFF_LINE_M)
        back = np.maximum(back, ramp(offset[:, 2], LOW_M, TOO_HIGH_M))
        back[(along > 0.0) | (along < -RUN_UP_M)] = 1.0
        round_it = through_funnel(grip, start, contact[:, 2] + TRAVEL_HEIGHT_M)
        # On the line, not only parallel to it: what is pushed turns away otherwise.
        ahead = contact + (along[:, None] + PUSH_STEP_M) * direction
        target = ahead + back[:, None] * (round_it - ahead)
        return Command(target, np.ones(len(slots), dtype=bool))


class MoveJoint(_Push):
    """Makes "open", "closed", "turned_on", "turned_off" and "pressed" true."""

    def __init__(self, sim: VectorSim, scene: int, goal: Goal) -> None:
        """Prepare for one predicate; the joint's axis must not turn with its parents."""
        super().__init__(sim)
        world, model = sim.suite.scenes[scene], sim.suite.scenes[scene].model
        thing = world.thing(goal.arguments[0])
        joint, thresholds = model.joint(thing.joint), world.joints[thing.name]
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        is_on = goal.name in {"open", "turned_on", "pressed"}
        sign = np.sign(thresholds.on_at - thresholds.off_at) * (1.0 if is_on else -1.0)
        self._axis = sign * data.xaxis[joint.id]
        self._is_hinge = joint.type[0] == mujoco.mjtJoint.mjJNT_HINGE
        self._handle = model.site(thing.handle).id
        self.named = (sim.suite.thing_index(thing.name), NO_THING)

    def _line(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        handle = self._sim.site_positions(self._handle, slots)
        if not self._is_hinge:
            return handle, np.broadcast_to(self._axis, handle.shape)
        anchor = self._sim.thing_positions(slots)[:, self.named[0]]
        tangent = np.cross(self._axis, handle - anchor)
        return handle, tangent / np.linalg.norm(tangent, axis=1, keepdims=True)


class PushThing(_Push):
    """Makes "in" true for a thing that is not grasped, by pushing it over the table."""

    def __init__(self, sim: VectorSim, scene: int, goal: Goal) -> None:
        """Prepare for one predicate of one of the suite's scenes."""
        super().__init__(sim)
        world, name = sim.suite.scenes[scene], goal.arguments[0]
        self._half_width = float(world.compile([goal]).half_width[world.bodies[name]])
        self._height_m = rest_height(world.model, world.bodies[name]) + LIFT_M
        self._region = world.model.site(goal.arguments[1]).id
        self.named = (sim.suite.thing_index(name), NO_THING)

    def _line(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        thing = self._sim.thing_positions(slots)[:, self.named[0]]
        way = above(self._sim.site_positions(self._region, slots), thing[:, 2]) - thing
        direction = way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-9)
        return above(thing - self._half_width * direction, self._height_m), direction
