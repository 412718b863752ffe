"""Rotation conventions at the border to policies."""

import numpy as np


def axis_angle_from_matrix(matrices: np.ndarray) -> np.ndarray:
    """Convert rotation matrices to axis-angle vectors the way LIBERO's state does.

    The quaternion's largest component is made positive, so a gripper pointing down (half a turn
    about x) sits in the interior of the chart: angles run over [0, 2 pi) without a jump there.

    Args:
        matrices: [..., 3, 3].

    Returns:
        [..., 3] rad.
    """
    m = matrices
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    # 4 q q' as a symmetric matrix (wxyz): its largest-diagonal row is the best-conditioned q.
    outer = np.empty((*m.shape[:-2], 4, 4))
    outer[..., 0, 0] = 1.0 + trace
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        outer[..., 1 + i, 1 + i] = 1.0 + 2.0 * m[..., i, i] - trace
        outer[..., 0, 1 + i] = outer[..., 1 + i, 0] = m[..., k, j] - m[..., j, k]
        outer[..., 1 + i, 1 + j] = outer[..., 1 + j, 1 + i] = m[..., i, j] + m[..., j, i]
    best = np.argmax(np.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    quat = np.take_along_axis(outer, best[..., None, None], axis=-2)[..., 0, :]
    quat /= np.linalg.norm(quat, axis=-1, keepdims=True)
    sine = np.linalg.norm(quat[..., 1:], axis=-1, keepdims=True)
    angle = 2.0 * np.arctan2(sine, quat[..., :1])
    scale = np.where(sine > 1e-9, angle / np.maximum(sine, 1e-9), 2.0)
    return quat[..., 1:] * scale


def matrix_from_axis_angle(axis_angle: np.ndarray) -> np.ndarray:
    """Convert one axis-angle vector [3] (rad) to a rotation matrix [3, 3] (Rodrigues' formula)."""
    angle = np.linalg.norm(axis_angle)
    x, y, z = axis_angle / max(angle, 1e-300)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross
