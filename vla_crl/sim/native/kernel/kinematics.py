"""Forward and inverse kinematics of one serial arm, compiled, without touching the simulator."""

from collections.abc import Sequence
from typing import NamedTuple

import mujoco
import numpy as np
from numba import njit

from vla_crl.sim.stepped import solve_positive_definite

DAMPING = 0.02
"""Damping of the least-squares inverse (m, rad): bounds joint motion near singularities."""
POSTURE_GAIN = 0.1
"""Fraction of the way to the rest posture that the null space moves in one iteration."""


class Chain(NamedTuple):
    """A serial arm from the world to its grip site.

    Attributes:
        offsets_m: [J + 1, 3] anchor of joint j in the frame after joint j - 1 (last: the site).
        rotations: [J + 1, 3, 3] orientation likewise, where the joint is at 0.
        axes: [J, 3] joint axes in their own frames.
        rest_rad: [J] posture that the null space is drawn to.
        low_rad: [J] joint limits.
        high_rad: [J] joint limits.
    """

    offsets_m: np.ndarray
    rotations: np.ndarray
    axes: np.ndarray
    rest_rad: np.ndarray
    low_rad: np.ndarray
    high_rad: np.ndarray


def chain_of(
    model: mujoco.MjModel, joint_names: Sequence[str], site_name: str, rest_rad: Sequence[float]
) -> Chain:
    """Read an arm's chain from a compiled model.

    Args:
        model: No other joints move the arm in it.
        joint_names: [J] from the base on.
        site_name: The grip site.
        rest_rad: [J] posture that the null space is drawn to.
    """
    joints = [model.joint(name).id for name in joint_names]
    site = model.site(site_name).id
    sites = [(int(model.site_bodyid[site]), model.site_pos[site], _matrix(model.site_quat[site]))]
    anchors = [(int(model.jnt_bodyid[j]), model.jnt_pos[j], _at_zero(model, j)) for j in joints]
    offsets, rotations, before, start = [], [], 0, np.zeros(3)
    for body, anchor, turned in (*anchors, *sites):
        offset, rotation = _relative_frame(model, body, before)
        offsets.append(offset + rotation @ anchor - start)
        rotations.append(rotation @ turned)
        before, start = body, anchor
    return Chain(
        np.array(offsets),
        np.array(rotations),
        model.jnt_axis[joints].copy(),
        np.array(rest_rad),
        model.jnt_range[joints, 0].copy(),
        model.jnt_range[joints, 1].copy(),
    )


def _relative_frame(
    model: mujoco.MjModel, body: int, ancestor: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compose the fixed transforms from `ancestor` (exclusive) down to `body` (inclusive)."""
    position, rotation = np.zeros(3), np.eye(3)
    while body != ancestor:
        parent_rotation = _matrix(model.body_quat[body])
        position = model.body_pos[body] + parent_rotation @ position
        rotation = parent_rotation @ rotation
        body = int(model.body_parentid[body])
    return position, rotation


def _at_zero(model: mujoco.MjModel, joint: int) -> np.ndarray:
    """Return the rotation of a hinge at 0: its body is as in the file where it is at its ref."""
    quat_wxyz = np.empty(4)
    ref = model.qpos0[model.jnt_qposadr[joint]]
    mujoco.mju_axisAngle2Quat(quat_wxyz, model.jnt_axis[joint], -ref)
    return _matrix(quat_wxyz)


def _matrix(quat_wxyz: np.ndarray) -> np.ndarray:
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, quat_wxyz / np.linalg.norm(quat_wxyz))
    return matrix.reshape(3, 3)


@njit(nogil=True)
def rotation_about(axis_angle, out):
    """Write the rotation matrix of an axis-angle vector (rad) into `out` (Rodrigues' formula)."""
    angle = np.sqrt(axis_angle[0] ** 2 + axis_angle[1] ** 2 + axis_angle[2] ** 2)
    if angle < 1e-12:
        x, y, z = 0.0, 0.0, 0.0
    else:
        x, y, z = axis_angle[0] / angle, axis_angle[1] / angle, axis_angle[2] / angle
    c, s = np.cos(angle), np.sin(angle)
    out[0, 0], out[0, 1], out[0, 2] = (
        c + x * x * (1 - c),
        x * y * (1 - c) - z * s,
        x * z * (1 - c) + y * s,
    )
    out[1, 0], out[1, 1], out[1, 2] = (
        y * x * (1 - c) + z * s,
        c + y * y * (1 - c),
        y * z * (1 - c) - x * s,
    )
    out[2, 0], out[2, 1], out[2, 2] = (
        z * x * (1 - c) - y * s,
        z * y * (1 - c) + x * s,
        c + z * z * (1 - c),
    )


@njit(nogil=True)
def multiply(a, b, out):
    """Write the product of two 3x3 matrices into `out`."""
    for i in range(3):
        for j in range(3):
            out[i, j] = a[i, 0] * b[0, j] + a[i, 1] * b[1, j] + a[i, 2] * b[2, j]


@njit(nogil=True)
def forward(chain, joints, position, rotation, jacobian):
    """Compute the grip site's pose and geometric Jacobian, all in the world frame.

    Args:
        chain: The arm.
        joints: [J] rad.
        position: [3] written, m.
        rotation: [3, 3] written.
        jacobian: [6, J] written; rows: linear velocity, angular velocity.
    """
    num_joints = joints.shape[0]
    origins = np.empty((num_joints, 3))
    step, product, axis = np.empty((3, 3)), np.empty((3, 3)), np.empty(3)
    position[:] = 0.0
    rotation[:] = np.eye(3)
    for j in range(num_joints + 1):
        for i in range(3):
            axis[i] = (
                rotation[i, 0] * chain.offsets_m[j, 0]
                + rotation[i, 1] * chain.offsets_m[j, 1]
                + rotation[i, 2] * chain.offsets_m[j, 2]
            )
        position += axis
        multiply(rotation, chain.rotations[j], product)
        rotation[:] = product
        if j < num_joints:
            for i in range(3):
                origins[j, i] = position[i]
                jacobian[3 + i, j] = (
                    rotation[i, 0] * chain.axes[j, 0]
                    + rotation[i, 1] * chain.axes[j, 1]
                    + rotation[i, 2] * chain.axes[j, 2]
                )
            rotation_about(chain.axes[j] * joints[j], step)
            multiply(rotation, step, product)
            rotation[:] = product
    for j in range(num_joints):  # linear part: axis x (grip - joint origin)
        lever = position - origins[j]
        jacobian[0, j] = jacobian[4, j] * lever[2] - jacobian[5, j] * lever[1]
        jacobian[1, j] = jacobian[5, j] * lever[0] - jacobian[3, j] * lever[2]
        jacobian[2, j] = jacobian[3, j] * lever[1] - jacobian[4, j] * lever[0]


@njit(nogil=True)
def inverse(chain, joints, target_position, target_rotation, num_iterations):
    """Move `joints` in place so that the grip approaches a target pose.

    Damped least squares with a posture task in the null space (Wampler 1986; Nakamura and
    Hanafusa 1986):
    dq = dq0 + J' (J J' + DAMPING^2 I)^-1 (e - J dq0), dq0 = POSTURE_GAIN (rest - q).

    Args:
        chain: The arm.
        joints: [J] rad, start and result.
        target_position: [3] m, world.
        target_rotation: [3, 3] world.
        num_iterations: Newton steps; two suffice along a path, fifty from the rest posture.
    """
    num_joints = joints.shape[0]
    position, rotation = np.empty(3), np.empty((3, 3))
    jacobian, error, gram = np.empty((6, num_joints)), np.empty(6), np.empty((6, 6))
    for _ in range(num_iterations):
        forward(chain, joints, position, rotation, jacobian)
        error[:3] = target_position - position
        error[3:] = 0.0
        for k in range(3):  # half the sum of column cross products: small-angle rotation error
            error[3] += 0.5 * (
                rotation[1, k] * target_rotation[2, k] - rotation[2, k] * target_rotation[1, k]
            )
            error[4] += 0.5 * (
                rotation[2, k] * target_rotation[0, k] - rotation[0, k] * target_rotation[2, k]
            )
            error[5] += 0.5 * (
                rotation[0, k] * target_rotation[1, k] - rotation[1, k] * target_rotation[0, k]
            )
        posture = POSTURE_GAIN * (chain.rest_rad - joints)
        for i in range(6):
            for j in range(num_joints):
                error[i] -= jacobian[i, j] * posture[j]
            for k in range(6):
                gram[i, k] = DAMPING**2 if i == k else 0.0
                for j in range(num_joints):
                    gram[i, k] += jacobian[i, j] * jacobian[k, j]
        solve_positive_definite(gram, error)
        for j in range(num_joints):
            joints[j] += posture[j]
            for i in range(6):
                joints[j] += jacobian[i, j] * error[i]
            joints[j] = min(max(joints[j], chain.low_rad[j]), chain.high_rad[j])
