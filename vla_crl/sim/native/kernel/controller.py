"""From actions to commanded joints and fingers, in one of three ways.

EEF_POSE is the end-effector interface of LIBERO (OSC_POSE): delta position, delta rotation,
gripper. EEF_POSITION leaves the rotation out (OSC_POSITION). JOINT_POSITION has a target for each
joint.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from vla_crl.sim.machine_code import source_version
from vla_crl.sim.native.kernel.kinematics import (
    Chain,
    forward,
    inverse,
    multiply,
    rotation_about,
)
from vla_crl.sim.stepped import SOURCES

MAX_LEAD_M = 0.06
"""The commanded position may run ahead of the measured one by this much per axis (anti-windup)."""
MAX_JOINT_STEP_RAD = 0.2175
"""Largest change of a joint command in one control step: 2.175 rad/s, the Franka Panda's limit."""
MAX_JOINT_LEAD_RAD = 0.087
"""A servo is told to go this far ahead of its joint at most, so that an arm which was held up does
not lash out when it comes free: with servos that follow 0.03 s behind, 2.9 rad/s."""
FINGER_STEP_M = 0.02
"""Change of the finger command in one control step: fully open to closed takes two."""
FINGER_OPEN_M = 0.04

EEF_POSE, EEF_POSITION, JOINT_POSITION = 0, 1, 2
POSE_ITERATIONS = 2
"""Steps of the inverse kinematics in one control step."""

POSITION, ROTATION, JOINTS, FINGER = slice(0, 3), slice(3, 12), slice(12, -1), -1
"""Where a controller state has the commanded position (m, world), rotation matrix, joints (rad) and
finger (m). With JOINT_POSITION the first two stay as they were when the episode began."""


class Controller(NamedTuple):
    """Constants of the interface.

    Attributes:
        kind: EEF_POSE, EEF_POSITION or JOINT_POSITION.
        chain: The arm.
        max_step_m: Displacement commanded by an action of 1.
        max_step_rad: Rotation commanded by an action of 1.
        low_m: [3] corner of the box that holds the commanded position.
        high_m: [3] its other corner.
    """

    kind: int
    chain: Chain
    max_step_m: float
    max_step_rad: float
    low_m: np.ndarray
    high_m: np.ndarray


@njit(nogil=True)
def state_size(num_joints):
    """Return R, the length of a controller state."""
    return JOINTS.start + num_joints + 1


def action_size(controller: Controller) -> int:
    """Return A, the numbers of an action."""
    num_joints = len(controller.chain.rest_rad)
    return {EEF_POSE: 6, EEF_POSITION: 3, JOINT_POSITION: num_joints}[controller.kind] + 1


@njit(nogil=True)
def command(controller, state, action, measured_position, base_shift):
    """Advance one controller state by one action.

    Args:
        controller: Constants.
        state: [R] updated in place.
        action: [A] in [-1, 1]; the last number is the gripper's: -1 opens, 1 closes, 0 holds.
        measured_position: [3] of the grip site, m, world.
        base_shift: [3] displacement of the robot from where the chain says it stands, m, world.
    """
    if controller.kind == JOINT_POSITION:
        _move_joints(controller.chain, state[JOINTS], action)
    elif controller.kind == EEF_POSITION:
        move_pose(controller, state, action[:3], np.zeros(3), measured_position, base_shift)
    else:
        move_pose(controller, state, action[:3], action[3:6], measured_position, base_shift)
    finger = state[FINGER] - np.sign(action[-1]) * FINGER_STEP_M
    state[FINGER] = min(max(finger, 0.0), FINGER_OPEN_M)


@njit(nogil=True)
def move_pose(controller, state, delta_position, delta_rotation, measured_position, base_shift):
    """Move the commanded pose, and the joints after it.

    Deltas accumulate on the *commanded* pose, not on the measured one: a tracking error then does
    not eat small motions. Rotations are given in the world frame and multiply from the left.
    """
    position, rotation = state[POSITION], state[ROTATION].reshape((3, 3))
    for i in range(3):
        lead = position[i] + controller.max_step_m * delta_position[i]
        lead = min(max(lead, measured_position[i] - MAX_LEAD_M), measured_position[i] + MAX_LEAD_M)
        position[i] = min(max(lead, controller.low_m[i]), controller.high_m[i])
    turn, product = np.empty((3, 3)), np.empty((3, 3))
    rotation_about(delta_rotation * controller.max_step_rad, turn)
    multiply(turn, rotation, product)
    rotation[:] = product
    joints = state[JOINTS]
    previous = joints.copy()
    inverse(controller.chain, joints, position - base_shift, rotation, POSE_ITERATIONS)
    _shorten(joints, previous)


@njit(nogil=True)
def servo_command(joint, measured):
    """Return what a servo is told of where its joint (rad) is to be."""
    return min(max(joint, measured - MAX_JOINT_LEAD_RAD), measured + MAX_JOINT_LEAD_RAD)


@njit(nogil=True)
def _move_joints(chain, joints, action):
    previous = joints.copy()
    for j in range(joints.shape[0]):
        part = 0.5 * (action[j] + 1.0)
        joints[j] = chain.low_rad[j] + part * (chain.high_rad[j] - chain.low_rad[j])
    _shorten(joints, previous)


@njit(nogil=True)
def _shorten(joints, previous):
    """Shorten, in its direction, a step of the joint command in which one joint is too fast."""
    fastest = MAX_JOINT_STEP_RAD
    for j in range(joints.shape[0]):
        fastest = max(fastest, abs(joints[j] - previous[j]))
    for j in range(joints.shape[0]):
        joints[j] = previous[j] + MAX_JOINT_STEP_RAD / fastest * (joints[j] - previous[j])


def _make_entry_points(version):
    """Return the function that Python calls, the only one cached (see `source_version`)."""

    @njit(nogil=True, cache=True)
    def follow_poses(controller, states, actions, grips, is_late, base_shifts):
        """Move commanded joints as actions of EEF_POSE would, starting at the pose they stand for.

        Args:
            controller: Constants, of any kind.
            states: [B, R] updated in place.
            actions: [B, 7] in [-1, 1].
            grips: [B, 3] measured positions of the grip site, m, world.
            is_late: [B] whether the grip is behind because actions take effect late, not because
                something is in its way: then the command may run ahead.
            base_shifts: [B, 3] m, world.
        """
        _ = version
        jacobian = np.empty((6, controller.chain.rest_rad.shape[0]))
        for b in range(states.shape[0]):
            state, action = states[b], actions[b]
            position, rotation = state[POSITION], state[ROTATION].reshape((3, 3))
            forward(controller.chain, state[JOINTS], position, rotation, jacobian)
            position += base_shifts[b]
            measured = position.copy() if is_late[b] else grips[b]
            move_pose(controller, state, action[:3], action[3:6], measured, base_shifts[b])

    return follow_poses


follow_poses = _make_entry_points(source_version("native/kernel/*.py", *SOURCES))
