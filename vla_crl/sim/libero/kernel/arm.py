"""robosuite's OSC_POSE controller and its Panda gripper, as compiled code.

Operational space control (Khatib 1987) as robosuite 1.4 does it with LIBERO's settings: gains of
150 with critical damping, position and orientation uncoupled, no interpolation, and a null space
that pulls the joints to where the robot began. The same numbers to rounding: matrices are inverted
by Cholesky's method instead of by pseudo-inverses.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit  # pyright: ignore[reportPrivateImportUsage]

from vla_crl.sim.stepped import cholesky, solve_positive_definite

NUM_JOINTS = 7
NUM_SUBSTEPS = 25
"""Physics steps of 2 ms in a control step."""
STIFFNESS, JOINT_STIFFNESS = 150.0, 10.0
DAMPING, JOINT_DAMPING = 2.0 * math.sqrt(STIFFNESS), 2.0 * math.sqrt(JOINT_STIFFNESS)
MAX_STEP_M, MAX_STEP_RAD = 0.05, 0.5
FINGER_SPEED = 0.01
"""Change of a finger's command in a physics step; commands are in [-1, 1]."""
GOAL_POS, GOAL_MAT, FINGERS, IS_STALE = slice(0, 3), slice(3, 12), slice(12, 14), 14
"""Places in a controller's state."""
STATE_SIZE = 15


class Reading(NamedTuple):
    """What the controller reads of the arm.

    Attributes:
        pos: [3] m, world, of the site.
        mat: [3, 3] its rotation.
        jacobian: [6, 7] of its velocity, linear and angular.
        mass: [7, 7] mass matrix of the arm.
        joints: [7] rad.
        speed: [7] rad/s.
    """

    pos: np.ndarray
    mat: np.ndarray
    jacobian: np.ndarray
    mass: np.ndarray
    joints: np.ndarray
    speed: np.ndarray


class Arm(NamedTuple):
    """Numbers of the robot of a scene.

    Attributes:
        site: Id of the site between the fingers.
        hand: Id of the hand's body, whose rotation is felt.
        mass_address: [7] where the rows of the joints begin in MuJoCo's `qM`.
        rest_joints: [7] rad, where the null space pulls to.
        torque_limit: [7] N m.
        finger_middle: [2] actuator command (m) at 0.
        finger_range: [2] m, from there to that at 1.
        reset: What the controller has read when the world was reset.
    """

    site: int
    hand: int
    mass_address: np.ndarray
    rest_joints: np.ndarray
    torque_limit: np.ndarray
    finger_middle: np.ndarray
    finger_range: np.ndarray
    reset: Reading


@njit(nogil=True)
def set_goal(state, action, reading):
    """Set where the hand is to go: relative to where it is; without a turn, the last rotation."""
    for i in range(3):
        state[i] = MAX_STEP_M * action[i] + reading.pos[i]
    turn = MAX_STEP_RAD * action[3:6]
    if turn[0] != 0.0 or turn[1] != 0.0 or turn[2] != 0.0:
        rotation = _rotation(turn)
        for i in range(3):
            for j in range(3):
                total = 0.0
                for k in range(3):
                    total += rotation[i, k] * reading.mat[k, j]
                state[3 + 3 * i + j] = total


@njit(nogil=True)
def _rotation(turn):
    """Return the matrix of a rotation vector as robosuite does: products in single precision."""
    angle = math.sqrt(turn[0] * turn[0] + turn[1] * turn[1] + turn[2] * turn[2])
    q = np.empty(4, np.float32)
    q[0] = math.cos(angle / 2.0)
    for i in range(3):
        q[i + 1] = turn[i] / angle * math.sin(angle / 2.0)
    total = 0.0
    for i in range(4):
        total += float(q[i] * q[i])
    scale = math.sqrt(2.0 / float(np.float32(total)))
    for i in range(4):
        q[i] = float(q[i]) * scale
    p = np.empty((4, 4), np.float32)
    for i in range(4):
        for j in range(4):
            p[i, j] = q[i] * q[j]
    rotation = np.empty((3, 3))
    rotation[0, 0] = 1.0 - float(p[2, 2]) - float(p[3, 3])
    rotation[0, 1] = p[1, 2] - p[3, 0]
    rotation[0, 2] = p[1, 3] + p[2, 0]
    rotation[1, 0] = p[1, 2] + p[3, 0]
    rotation[1, 1] = 1.0 - float(p[1, 1]) - float(p[3, 3])
    rotation[1, 2] = p[2, 3] - p[1, 0]
    rotation[2, 0] = p[1, 3] - p[2, 0]
    rotation[2, 1] = p[2, 3] + p[1, 0]
    rotation[2, 2] = 1.0 - float(p[1, 1]) - float(p[2, 2])
    return rotation


@njit(nogil=True)
def torques(arm, state, reading, bias, out):
    """Compute what the motors do: out [7] N m, within their limits.

    J' L_p f + J' L_r t + N' M (k (rest - q) - d q') + bias, with L the inverse of J M^-1 J' of the
    rows for position, for rotation or for both, and N' p = p - J' L J M^-1 p.
    """
    jacobian, mass = reading.jacobian, reading.mass
    wrench = _wrench(state, reading)
    inverse = _mobility(jacobian, mass)
    linear, angular = inverse[:3, :3].copy(), inverse[3:, 3:].copy()
    solve_positive_definite(linear, wrench[:3])
    solve_positive_definite(angular, wrench[3:])
    pull = JOINT_STIFFNESS * (arm.rest_joints - reading.joints) - JOINT_DAMPING * reading.speed
    pulled = _product(jacobian, pull)
    solve_positive_definite(inverse, pulled)
    for j in range(NUM_JOINTS):
        torque = bias[j]
        for i in range(6):
            torque += jacobian[i, j] * (wrench[i] - pulled[i])
        for k in range(NUM_JOINTS):
            torque += mass[j, k] * pull[k]
        out[j] = min(max(torque, -arm.torque_limit[j]), arm.torque_limit[j])


@njit(nogil=True)
def _wrench(state, reading):
    """Return the acceleration [6] that springs and dampers to the goal ask for."""
    wrench, velocity = np.empty(6), _product(reading.jacobian, reading.speed)
    turn = _rotation_error(state[GOAL_MAT].reshape((3, 3)), reading.mat)
    for i in range(3):
        wrench[i] = (state[i] - reading.pos[i]) * STIFFNESS - velocity[i] * DAMPING
        wrench[3 + i] = turn[i] * STIFFNESS - velocity[3 + i] * DAMPING
    return wrench


@njit(nogil=True)
def _mobility(jacobian, mass):
    """Return J M^-1 J' [6, 6]: with M = C C' it is W W' for W = J C'^-1."""
    root, half, mobility = mass.copy(), np.empty((6, NUM_JOINTS)), np.empty((6, 6))
    cholesky(root)
    for i in range(6):
        for j in range(NUM_JOINTS):
            total = jacobian[i, j]
            for k in range(j):
                total -= root[j, k] * half[i, k]
            half[i, j] = total / root[j, j]
    for i in range(6):
        mobility[i] = _product(half, half[i])
    return mobility


@njit(nogil=True)
def _product(matrix, vector):
    """Return a matrix times a vector."""
    result = np.zeros(matrix.shape[0])
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            result[i] += matrix[i, j] * vector[j]
    return result


@njit(nogil=True)
def _rotation_error(goal, mat):
    """Return half the sum of the cross products of the axes [3]: the sine of what is to turn."""
    error = np.zeros(3)
    for c in range(3):
        error[0] += mat[1, c] * goal[2, c] - mat[2, c] * goal[1, c]
        error[1] += mat[2, c] * goal[0, c] - mat[0, c] * goal[2, c]
        error[2] += mat[0, c] * goal[1, c] - mat[1, c] * goal[0, c]
    return 0.5 * error


@njit(nogil=True)
def move_fingers(arm, state, action, out):
    """Open (-1) or close (+1) by one physics step: out [2] m."""
    direction = np.sign(action)
    for side in range(2):
        change = -FINGER_SPEED if side == 0 else FINGER_SPEED
        command = state[12 + side] + change * direction
        state[12 + side] = min(max(command, -1.0), 1.0)
        out[side] = arm.finger_middle[side] + arm.finger_range[side] * state[12 + side]
