"""The compiled evaluation of goals: a small stack machine, and what each predicate means."""

import enum
from typing import NamedTuple

import mujoco
import numpy as np
from numba import njit

SINK_M = 0.025
"""On: how far the lowest point of the upper thing may lie below the highest point of the lower
one, such as the rim of a plate."""
HOVER_M = 0.004
"""On: how far it may lie above."""
LEAST_GAP_M = 0.035
"""Left of, behind ...: least distance of the origins along the direction."""
GREATEST_GAP_M = 0.13
"""Greatest distance along it."""
OFF_LINE_M = 0.04
"""Greatest distance across it; also of the middle of "between" from the line."""
SAME_HEIGHT_M = 0.015
"""Left of, between ...: difference of the lowest points of things that stand side by side."""
RELEASED_M = 0.04
"""Least distance of the grip from a thing that was let go."""


class Op(enum.IntEnum):
    """Steps of a compiled goal."""

    AND = 0
    OR = 1
    NOT = 2
    IN = 3
    ON = 4
    RELEASED = 5
    JOINT_ABOVE = 6
    JOINT_BELOW = 7
    BESIDE = 8
    BETWEEN = 9


class Goals(NamedTuple):
    """The compiled goals of all tasks.

    Attributes:
        programs: [tasks, L, 4] an Op and up to three ids: bodies, a site, an index into qpos.
        lengths: [tasks] used part of a program.
        numbers: [tasks, L, 2] the joint position of a threshold, or the direction of "beside".
        site_size: [sites, 3] half sizes, m.
        half_width: [bodies] of the body's own geoms as they stand in the file, the smallest, m.
        geoms: [bodies, 2] first and last + 1 of a body's geoms.
        geom_type: [geoms] mjtGeom.
        geom_size: [geoms, 3].
    """

    programs: np.ndarray
    lengths: np.ndarray
    numbers: np.ndarray
    site_size: np.ndarray
    half_width: np.ndarray
    geoms: np.ndarray
    geom_type: np.ndarray
    geom_size: np.ndarray


class Poses(NamedTuple):
    """What goals look at, of one world, as in mjData (world frame, m).

    Attributes:
        body_pos: [bodies, 3].
        site_pos: [sites, 3].
        site_mat: [sites, 9].
        geom_pos: [geoms, 3].
        geom_mat: [geoms, 9].
        qpos: [nq].
        grip: [3] of the grip site.
    """

    body_pos: np.ndarray
    site_pos: np.ndarray
    site_mat: np.ndarray
    geom_pos: np.ndarray
    geom_mat: np.ndarray
    qpos: np.ndarray
    grip: np.ndarray


SPHERE = int(mujoco.mjtGeom.mjGEOM_SPHERE)
CAPSULE = int(mujoco.mjtGeom.mjGEOM_CAPSULE)
ELLIPSOID = int(mujoco.mjtGeom.mjGEOM_ELLIPSOID)
CYLINDER = int(mujoco.mjtGeom.mjGEOM_CYLINDER)
AND, OR, NOT, IN, ON = int(Op.AND), int(Op.OR), int(Op.NOT), int(Op.IN), int(Op.ON)
RELEASED, BESIDE, BETWEEN = int(Op.RELEASED), int(Op.BESIDE), int(Op.BETWEEN)
JOINT_ABOVE, JOINT_BELOW = int(Op.JOINT_ABOVE), int(Op.JOINT_BELOW)


@njit(nogil=True)
def poses_of(published, slot, grip_site):
    """Return `Poses` of a slot, from `SlotPoses`."""
    return Poses(
        published.body_pos[slot],
        published.site_pos[slot],
        published.site_mat[slot],
        published.geom_pos[slot],
        published.geom_mat[slot],
        published.qpos[slot],
        published.site_pos[slot, grip_site],
    )


@njit(nogil=True)
def goal_reached(goals, task, poses):
    """Run the program of a task; truth values are pushed onto the bits of one integer.

    Args:
        goals: `Goals`.
        task: Index.
        poses: `Poses`.

    Returns:
        Whether the goal holds.
    """
    stack = 0
    for k in range(goals.lengths[task]):
        op, a, b, c = goals.programs[task, k]
        if op == NOT:
            stack ^= 1
        elif op == AND:
            stack = (stack >> 1) & (stack | ~1)
        elif op == OR:
            stack = (stack >> 1) | (stack & 1)
        else:
            holds = predicate_holds(goals, op, a, b, c, goals.numbers[task, k], poses)
            stack = (stack << 1) | (1 if holds else 0)
    return stack & 1 == 1


@njit(nogil=True)
def predicate_holds(goals, op, a, b, c, numbers, poses):
    """Return whether one predicate holds; arguments are a step of a program and its numbers."""
    position = poses.body_pos
    if op == IN:
        return _is_in(position[a], poses.site_pos[b], poses.site_mat[b], goals.site_size[b])
    if op == ON:
        gap = extent(goals, a, poses, -1.0) - extent(goals, b, poses, 1.0)
        apart = np.hypot(position[a, 0] - position[b, 0], position[a, 1] - position[b, 1])
        return -SINK_M <= gap <= HOVER_M and apart <= goals.half_width[b]
    if op == RELEASED:
        x, y, z = position[a] - poses.grip
        return x * x + y * y + z * z >= RELEASED_M**2
    if op == BESIDE:
        dx, dy = position[a, 0] - position[b, 0], position[a, 1] - position[b, 1]
        along, across = dx * numbers[0] + dy * numbers[1], dx * numbers[1] - dy * numbers[0]
        is_near = LEAST_GAP_M <= along <= GREATEST_GAP_M and abs(across) <= OFF_LINE_M
        return is_near and _stand_level(goals, a, b, poses)
    if op == BETWEEN:
        dx, dy = position[c, 0] - position[b, 0], position[c, 1] - position[b, 1]
        x, y = position[a, 0] - position[b, 0], position[a, 1] - position[b, 1]
        length = np.hypot(dx, dy)
        if length == 0.0:
            return False  # the others stand in one place
        along, across = (x * dx + y * dy) / length, (x * dy - y * dx) / length
        in_middle = abs(along - length / 2) <= length / 4 and abs(across) <= OFF_LINE_M
        return in_middle and _stand_level(goals, a, b, poses)
    if op == JOINT_ABOVE:
        return poses.qpos[a] >= numbers[0]
    return poses.qpos[a] <= numbers[0]


@njit(nogil=True)
def _is_in(point, centre, axes, half_size):
    for axis in range(3):  # |R' (p - c)| <= size, per axis
        distance = 0.0
        for i in range(3):
            distance += axes[3 * i + axis] * (point[i] - centre[i])
        if abs(distance) > half_size[axis]:
            return False
    return True


@njit(nogil=True)
def _stand_level(goals, a, b, poses):
    difference = extent(goals, a, poses, -1.0) - extent(goals, b, poses, -1.0)
    return abs(difference) <= SAME_HEIGHT_M


@njit(nogil=True)
def extent(goals, body, poses, sign):
    """Return the height (m) of a body's highest (sign 1) or lowest (sign -1) point."""
    best = -np.inf
    for geom in range(goals.geoms[body, 0], goals.geoms[body, 1]):
        reach = support(goals.geom_type[geom], goals.geom_size[geom], poses.geom_mat[geom])
        best = max(best, sign * poses.geom_pos[geom, 2] + reach)
    return sign * best


@njit(nogil=True)
def support(kind, size, axes):
    """Return how far a geom reaches up (and down) from its centre; axes[6:9] is its third row."""
    x, y, z = abs(axes[6]), abs(axes[7]), abs(axes[8])
    if kind == SPHERE:
        return size[0]
    if kind == CAPSULE:
        return size[0] + size[1] * z
    if kind == CYLINDER:
        return size[0] * np.sqrt(max(1.0 - z * z, 0.0)) + size[1] * z
    if kind == ELLIPSOID:
        return np.sqrt((size[0] * x) ** 2 + (size[1] * y) ** 2 + (size[2] * z) ** 2)
    return size[0] * x + size[1] * y + size[2] * z
