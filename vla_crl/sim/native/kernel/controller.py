"""The end-effector interface of LIBERO (OSC_POSE): delta pose and gripper to actuator commands."""

from typing import NamedTuple

import numpy as np
from numba import njit

from vla_crl.sim.native.kernel.kinematics import Chain, inverse, multiply, rotation_about

MAX_LEAD_M = 0.06
"""The commanded position may run ahead of the measured one by this much per axis (anti-windup)."""
MAX_JOINT_STEP_RAD = 0.3
"""Largest change of a joint command in one control step."""
FINGER_STEP_M = 0.02
"""Change of the finger command in one control step: fully open to closed takes two."""
FINGER_OPEN_M = 0.04

POSITION, ROTATION, JOINTS = slice(0, 3), slice(3, 12), slice(12, -1)
"""Layout of a controller row; its last entry is the finger command (m)."""


class Controller(NamedTuple):
    """Constants of the interface.

    Attributes:
        chain: The arm.
        max_step_m: Displacement commanded by an action of 1.
        max_step_rad: Rotation commanded by an action of 1.
        low_m: [3] corner of the box that holds the commanded position.
        high_m: [3] its other corner.
    """

    chain: Chain
    max_step_m: float
    max_step_rad: float
    low_m: np.ndarray
    high_m: np.ndarray


def row_size(chain: Chain) -> int:
    """Return the length of a controller row: position, rotation, joints, finger."""
    return 3 + 9 + len(chain.rest_rad) + 1


@njit(nogil=True)
def command(controller, row, action, measured_position, base_shift):
    """Advance one controller row by one action.

    Deltas accumulate on the *commanded* pose, not on the measured one: a tracking error then does
    not eat small motions. Rotations are given in the world frame and multiply from the left.

    Args:
        controller: Constants.
        row: Commanded pose, joints and finger; updated in place.
        action: [7] in [-1, 1]; see `vla_crl.contracts.POSE_ACTION`. Gripper 0 holds.
        measured_position: [3] of the grip site, m, world.
        base_shift: [3] displacement of the robot from where the chain says it stands, m, world.
    """
    for i in range(3):
        lead = row[i] + controller.max_step_m * action[i]
        lead = min(max(lead, measured_position[i] - MAX_LEAD_M), measured_position[i] + MAX_LEAD_M)
        row[i] = min(max(lead, controller.low_m[i]), controller.high_m[i])
    turn, product = np.empty((3, 3)), np.empty((3, 3))
    rotation = row[3:12].reshape((3, 3))
    rotation_about(action[3:6] * controller.max_step_rad, turn)
    multiply(turn, rotation, product)
    rotation[:] = product
    joints = row[12:-1]
    previous = joints.copy()
    inverse(controller.chain, joints, row[0:3] - base_shift, rotation, 2)
    for j in range(joints.shape[0]):
        joints[j] = min(
            max(joints[j], previous[j] - MAX_JOINT_STEP_RAD), previous[j] + MAX_JOINT_STEP_RAD
        )
    finger = row[-1] - np.sign(action[6]) * FINGER_STEP_M
    row[-1] = min(max(finger, 0.0), FINGER_OPEN_M)
