"""How far a goal has come, from 0 to 1: what a dense reward is made of.

The progress of a goal is a function of the world as it stands. It is 1 where, and only where, the
goal holds. Every predicate that does not hold yet has a progress of its own,

    held by the fingers:  0.4 near(grip, thing) + 0.1 [is held] + 0.5 near(thing, its place)
    pushed over the table:  0.4 near(grip, behind the thing) + 0.6 near(thing, its place)
    moved on its joint:  0.4 near(grip, behind the handle) + 0.6 (q - q_from) / (q_to - q_from)
    released:  0.5 (opening of the fingers) + 0.5 (distance from the grip) / RELEASED_M

    near(a, b) = SCALE_M / (SCALE_M + way(a, b))

A way leads over what stands around: the farther aside a is, the higher it should be over b. Of
"and", predicates count in the order in which they are written: (how many hold up to the first that
does not + its progress) / (how many there are). "or" is its most advanced part, "not" 0 or 1.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from vla_crl.sim.machine_code import source_version
from vla_crl.sim.native.kernel.controller import FINGER_OPEN_M
from vla_crl.sim.native.kernel.predicates import (
    AND,
    BESIDE,
    BETWEEN,
    GREATEST_GAP_M,
    IN,
    JOINT_ABOVE,
    JOINT_BELOW,
    LEAST_GAP_M,
    NOT,
    ON,
    OR,
    RELEASED,
    RELEASED_M,
    extent,
    poses_of,
    predicate_holds,
)
from vla_crl.sim.stepped import SOURCES

SCALE_M = 0.1
"""Length of a way that counts as half."""
HELD_M = 0.022
"""A thing this close to the grip site, between closed fingers, counts as held."""
EMPTY_FINGER_M = 0.01
"""Finger position below which closed fingers hold nothing."""
OPEN_FINGER_M = 0.03
"""Finger position beyond which the gripper counts as open."""
CLEARANCE_M = 0.08
"""Height over the end of a way at which nothing is in it."""
TIP_M, WIDTH_M = 0.012, 0.025
"""Distance aside up to which a way leads straight down, and over which it rises to its height."""
PUSH_FROM_M, PUSH_TO_M = 0.03, 0.012
"""How far behind a contact point the grip may be that pushes there."""
REACH, HOLD, CARRY = 0.4, 0.1, 0.5
"""Shares of what is held in the fingers. To hold is worth little: who does not know it yet opens
and closes the fingers all the time, which would drown all else."""
REACH_BEHIND, MOVE = 0.4, 0.6
"""Shares of what is pushed."""
MOST = 0.999
"""Greatest progress of a predicate that does not hold."""


class Shaping(NamedTuple):
    """What the progress of compiled goals needs to know beside them.

    Attributes:
        is_pushed: [tasks, L] bool: the step's thing is pushed, not grasped.
        handle: [tasks, L] site id at which the step's joint is moved.
        anchor: [tasks, L] body that turns with the step's joint about its own origin.
        axis: [tasks, L, 3] of the joint (world), in the sense in which it is to move.
        is_hinge: [tasks, L] bool: it turns about its axis; else it slides along.
        start: [tasks, L] m or rad, of the joint: where nothing is done yet.
        fingers: [2] index into qpos.
    """

    is_pushed: np.ndarray
    handle: np.ndarray
    anchor: np.ndarray
    axis: np.ndarray
    is_hinge: np.ndarray
    start: np.ndarray
    fingers: np.ndarray


@njit(nogil=True)
def goal_progress(goals, shaping, task, poses):
    """Run the program of a task on parts: (predicates, how many hold first, progress of the next).

    Args:
        goals: `Goals`.
        shaping: `Shaping` of these goals.
        task: Index.
        poses: `Poses`.

    Returns:
        From 0 to 1.
    """
    stack, top = np.empty((goals.programs.shape[1], 3)), -1
    for k in range(goals.lengths[task]):
        op, a, b, c = goals.programs[task, k]
        if op == NOT:
            value = 0.0 if stack[top, 1] == stack[top, 0] else 1.0
            stack[top] = 1.0, value, 0.0
        elif op == AND:
            top -= 1
            if stack[top, 1] == stack[top, 0]:  # else what lacks of the first part comes first
                stack[top, 1:] = stack[top, 1] + stack[top + 1, 1], stack[top + 1, 2]
            stack[top, 0] += stack[top + 1, 0]
        elif op == OR:
            top -= 1
            value = max(_share(stack[top]), _share(stack[top + 1]))
            stack[top] = 1.0, np.floor(value), value
        else:
            top += 1
            holds = predicate_holds(goals, op, a, b, c, goals.numbers[task, k], poses)
            value = 0.0 if holds else _predicate(goals, shaping, task, k, poses)
            stack[top] = 1.0, 1.0 if holds else 0.0, value
    return _share(stack[0])


@njit(nogil=True)
def _share(part):
    if part[1] == part[0]:
        return 1.0
    return (part[1] + min(part[2], MOST)) / part[0]


@njit(nogil=True)
def _predicate(goals, shaping, task, k, poses):
    """Return the progress of a predicate that does not hold."""
    op, a, b, c = goals.programs[task, k]
    if op in (JOINT_ABOVE, JOINT_BELOW):
        return _joint(shaping, task, k, poses, a, goals.numbers[task, k, 0])
    thing = poses.body_pos[a]
    finger = 0.5 * (poses.qpos[shaping.fingers[0]] + poses.qpos[shaping.fingers[1]])
    apart = np.sqrt(np.sum((thing - poses.grip) ** 2))
    if op == RELEASED:
        opening = min(max(finger / FINGER_OPEN_M, 0.0), 1.0)
        return 0.5 * opening + 0.5 * min(apart / RELEASED_M, 1.0)
    place = _place(goals, op, a, b, c, goals.numbers[task, k], poses)
    if shaping.is_pushed[task, k]:
        direction, height = place - thing, thing[2]
        direction[2] = 0.0
        direction /= max(np.sqrt(np.sum(direction**2)), 1e-9)
        contact = thing - goals.half_width[a] * direction
        place[2] = height  # it stays on the table
        along = np.sqrt(np.sum((place - thing) ** 2))
        return REACH_BEHIND * _behind(poses.grip, contact, direction) + MOVE * _near(along)
    progress = REACH * _near(_way(poses.grip, thing)) + CARRY * _near(_way(thing, place))
    if apart < HELD_M and EMPTY_FINGER_M < finger < OPEN_FINGER_M:
        progress += HOLD
    return progress


@njit(nogil=True)
def _place(goals, op, a, b, c, numbers, poses):
    """Return where the origin of thing `a` is to be, [3] m."""
    if op == IN:
        return poses.site_pos[b].copy()
    position = poses.body_pos
    place, lowest = position[b].copy(), extent(goals, a, poses, -1.0)
    if op == ON:
        place[2] = position[a, 2] + extent(goals, b, poses, 1.0) - lowest
        return place
    if op == BESIDE:
        gap = 0.5 * (LEAST_GAP_M + GREATEST_GAP_M)
        place[0] += gap * numbers[0]
        place[1] += gap * numbers[1]
    elif op == BETWEEN:
        place[:] = 0.5 * (position[b] + position[c])
    place[2] = position[a, 2] + extent(goals, b, poses, -1.0) - lowest
    return place


@njit(nogil=True)
def _joint(shaping, task, k, poses, index, threshold):
    handle, start = poses.site_pos[shaping.handle[task, k]], shaping.start[task, k]
    direction = shaping.axis[task, k].copy()
    if shaping.is_hinge[task, k]:
        arm = handle - poses.body_pos[shaping.anchor[task, k]]
        direction = np.cross(direction, arm)
        direction /= max(np.sqrt(np.sum(direction**2)), 1e-9)
    part = (poses.qpos[index] - start) / (threshold - start)
    moved = min(max(part, 0.0), 1.0)
    return REACH_BEHIND * _behind(poses.grip, handle, direction) + MOVE * moved


@njit(nogil=True)
def _behind(grip, contact, direction):
    """Return how near the grip is to where a push at a contact point begins or goes on."""
    along = np.sum((grip - contact) * direction)
    along = min(max(along, -PUSH_FROM_M), -PUSH_TO_M)
    return _near(_way(grip, contact + along * direction))


@njit(nogil=True)
def _way(start, end):
    """Return the length (m) of a way that comes down on its end from above."""
    aside = np.hypot(start[0] - end[0], start[1] - end[1])
    rise = min(max((aside - TIP_M) / WIDTH_M, 0.0), 1.0)
    return aside + abs(start[2] - end[2] - CLEARANCE_M * rise)


@njit(nogil=True)
def _near(length):
    return SCALE_M / (SCALE_M + length)


def _make_entry_points(version):
    """Return the function that Python calls, the only one cached (see `source_version`)."""

    @njit(nogil=True, cache=True)
    def measure_progress(goals, shaping, published, grip_site, chosen, tasks, progress):
        """Write into progress [B] how far the goal tasks[b] has come in slot chosen[b].

        Args:
            goals: `Goals`.
            shaping: `Shaping`.
            published: `SlotPoses`.
            grip_site: Site id.
            chosen: [B] slot indices.
            tasks: [B] which goal.
            progress: Written.
        """
        _ = version
        for k in range(chosen.shape[0]):
            slot = chosen[k]
            poses = poses_of(published, slot, grip_site)
            progress[k] = goal_progress(goals, shaping, tasks[k], poses)

    return measure_progress


measure_progress = _make_entry_points(source_version("native/kernel/*.py", *SOURCES))
