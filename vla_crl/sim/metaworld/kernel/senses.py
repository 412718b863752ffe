"""Where things are in an MjData, and what Meta-World observes of them."""

from typing import NamedTuple

import numpy as np
from numba import njit  # pyright: ignore[reportPrivateImportUsage]

from vla_crl.sim.metaworld.kernel.slots import (
    BODY,
    BODY_MATRIX,
    BODY_QUAT,
    DIAL,
    GEOM,
    GEOM_MATRIX,
    IDENTITY,
    JOINT,
    SITE,
    SITE_MATRIX,
    TIPS,
)
from vla_crl.sim.stepped import view

OPEN_FINGERS_M = 0.1
"""Distance of the fingers that Meta-World calls 1."""
DIAL_RADIUS_M = 0.05


class World(NamedTuple):
    """Views into one MjData, as far as places are read from it."""

    qpos: np.ndarray
    xpos: np.ndarray
    xquat: np.ndarray
    xmat: np.ndarray
    site_xpos: np.ndarray
    site_xmat: np.ndarray
    geom_xpos: np.ndarray
    geom_xmat: np.ndarray


@njit(nogil=True)
def world_of(sizes, arrays):
    """Return the `World` of an MjData with these `Sizes` and `Addresses`."""
    return World(
        view(arrays.qpos, (sizes.nq,)),
        view(arrays.xpos, (sizes.nbody, 3)),
        view(arrays.xquat, (sizes.nbody, 4)),
        view(arrays.xmat, (sizes.nbody, 9)),
        view(arrays.site_xpos, (sizes.nsite, 3)),
        view(arrays.site_xmat, (sizes.nsite, 9)),
        view(arrays.geom_xpos, (sizes.ngeom, 3)),
        view(arrays.geom_xmat, (sizes.ngeom, 9)),
    )


@njit(nogil=True)
def copy(source, target):
    """Copy an array [K]; numba compiles loops ten times as fast as it does slices."""
    for i in range(target.shape[0]):
        target[i] = source[i]


@njit(nogil=True)
def copy_rows(source, target, num_rows):
    """Copy the first rows of an array [K, W] into one [L, W]."""
    for row in range(num_rows):
        copy(source[row], target[row])


@njit(nogil=True)
def place(task, world, points, k, position):
    """Write where the k-th of some `Points` is into position [3]."""
    source, part = points.source[k], points.part[k]
    if source == BODY:
        copy(world.xpos[part], position)
    elif source == SITE:
        copy(world.site_xpos[part], position)
    elif source == GEOM:
        copy(world.geom_xpos[part], position)
    elif source == TIPS:
        right, left = world.site_xpos[task.tips[0]], world.site_xpos[task.tips[1]]
        for i in range(3):
            position[i] = (right[i] + left[i]) / 2.0
    elif source == DIAL:
        angle = world.qpos[points.joint[k]]
        copy(world.xpos[part], position)
        position[0] += np.sin(angle) * DIAL_RADIUS_M
        position[1] += -np.cos(angle) * DIAL_RADIUS_M
    elif source == JOINT:
        position[0], position[1], position[2] = world.qpos[points.joint[k]], 0.0, 0.0
    for i in range(3):
        position[i] += points.offset[k, i]


@njit(nogil=True)
def length(vector):
    """Return the Euclidean norm of a vector."""
    total = 0.0
    for x in vector:
        total += x * x
    return np.sqrt(total)


@njit(nogil=True)
def sense(task, world, sensed):
    """Write what Meta-World observes now into sensed [NUM_SENSED].

    That is `_get_curr_obs_combined_no_goal` of its sawyer_xyz_env.py.
    """
    between = np.empty(3)
    right, left = world.xpos[task.claws[0]], world.xpos[task.claws[1]]
    for i in range(3):
        between[i] = right[i] - left[i]
    for i in range(sensed.shape[0]):
        sensed[i] = world.xpos[task.hand, i] if i < 3 else 0.0
    sensed[3] = min(max(length(between) / OPEN_FINGERS_M, 0.0), 1.0)
    for k in range(task.objects.source.shape[0]):
        first = 4 + 7 * k
        place(task, world, task.objects, k, sensed[first : first + 3])
        _turn(world, task.turns, k, sensed[first + 3 : first + 7])


@njit(nogil=True)
def _turn(world, turns, k, quat):
    """Write the k-th of some `Turns` into quat [4]."""
    source, part = turns.source[k], turns.part[k]
    if source == BODY_QUAT:
        copy(world.xquat[part], quat)
    elif source == BODY_MATRIX:
        _quat_from_matrix(world.xmat[part], quat)
    elif source == SITE_MATRIX:
        _quat_from_matrix(world.site_xmat[part], quat)
    elif source == GEOM_MATRIX:
        _quat_from_matrix(world.geom_xmat[part], quat)
    elif source == IDENTITY:
        quat[0] = 1.0


@njit(nogil=True)
def _quat_from_matrix(matrix, quat):
    """Write a rotation [9] as quaternion [4], x first and the largest component positive."""
    m = matrix.reshape((3, 3))
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    best = 0
    for i in (1, 2):
        if m[i, i] > m[best, best]:
            best = i
    if trace > m[best, best]:
        quat[0] = m[2, 1] - m[1, 2]
        quat[1] = m[0, 2] - m[2, 0]
        quat[2] = m[1, 0] - m[0, 1]
        quat[3] = 1.0 + trace
    else:
        i, j, k = best, (best + 1) % 3, (best + 2) % 3
        quat[i] = 1.0 - trace + 2.0 * m[i, i]
        quat[j] = m[j, i] + m[i, j]
        quat[k] = m[k, i] + m[i, k]
        quat[3] = m[k, j] - m[j, k]
    norm = length(quat)
    for i in range(4):
        quat[i] /= norm
