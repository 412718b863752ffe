"""When Meta-World's tasks are done; which task has which condition stands in `metaworld.rules`."""

import numpy as np
from numba import njit  # pyright: ignore[reportPrivateImportUsage]

from vla_crl.sim.metaworld.kernel.senses import length, place
from vla_crl.sim.metaworld.kernel.slots import (
    ABOVE,
    ANGLE,
    BEYOND,
    HELD,
    HOOKED,
    THREADED,
)
from vla_crl.sim.mujoco_c import mj_contact_force, mj_forward
from vla_crl.sim.stepped import view_integers

AROUND_PEG_M = 0.02
HOOK_Y_M, HOOK_Z_M = 0.04, 0.06
STICK_Z_M, LIFTED_M = 0.02, 0.01
MAX_CONTACTS = 128
"""More than a task has at a time."""


@njit(nogil=True)
def succeeds(task, scratch, world, sensed, goal):
    """Tell whether a task is done.

    Args:
        task: `TaskConstants`.
        scratch: Whose kinematics are those of the current state.
        world: Its `World`.
        sensed: [NUM_SENSED] what Meta-World observes now.
        goal: [3] m, world.
    """
    success, kind = task.success, task.success.kind
    point, apart = np.empty(3), np.empty(3)
    place(task, world, success.points, 0, point)
    for i in range(3):
        from_goal = i < 2 or np.isnan(success.height)  # else from a height of the task's own
        target = goal[i] if from_goal else success.height
        apart[i] = (point[i] - target) * success.scale[i]
    if kind == ANGLE:  # a joint, after its offset, is close to zero
        return abs(point[0]) <= success.limit
    if kind == BEYOND:  # a joint has gone beyond the limit
        return point[0] > success.limit
    if kind == ABOVE:  # the point is above the goal
        return apart[2] > 0.0
    if kind == THREADED:  # the nut is around the peg and below its top
        return length(apart[:2]) < AROUND_PEG_M and apart[2] < 0.0
    is_near = length(apart) <= success.limit
    if kind == HOOKED:
        return is_near and _is_hooked(task, world, point)
    if kind == HELD:
        return is_near and _is_held(task, scratch, sensed)
    return is_near


@njit(nogil=True)
def _is_hooked(task, world, handle):
    """Tell whether the second point, the end of the stick, is inside the handle."""
    end = np.empty(3)
    place(task, world, task.success.points, 1, end)
    return (
        end[0] >= handle[0]
        and abs(end[1] - handle[1]) <= HOOK_Y_M
        and abs(end[2] - handle[2]) <= HOOK_Z_M
    )


@njit(nogil=True)
def _is_held(task, scratch, sensed):
    """Tell whether the fingers, not shut, hold the stick above where it lay."""
    return sensed[3] > 0.0 and sensed[6] - LIFTED_M > STICK_Z_M and _is_touched(task, scratch)


@njit(nogil=True)
def _is_touched(task, scratch):
    """Tell whether both fingers press against the held geom; runs `mj_forward`."""
    mj_forward(scratch.model, scratch.data)
    step = scratch.contacts.stride // 4
    geoms = view_integers(scratch.contacts.geoms, (MAX_CONTACTS * step,))
    force, pressed = np.empty(6), np.zeros(2)
    for contact in range(MAX_CONTACTS):
        one, two = geoms[contact * step], geoms[contact * step + 1]
        if task.held not in (one, two):
            continue
        mj_contact_force(scratch.model, scratch.data, contact, force.ctypes.data)
        for side in range(2):  # beyond the last contact the force is zero
            if task.pads[side] in (one, two):
                pressed[side] += force[0]
    return pressed[0] > 0.0 and pressed[1] > 0.0
