"""LIBERO's success conditions, as compiled code: a conjunction of terms on poses, joints, contacts.

Terms are read when a physics step is over, as LIBERO does: positions of joints are those after the
step, poses and contacts those before it.
"""

from typing import NamedTuple

import numpy as np
from numba import njit  # pyright: ignore[reportPrivateImportUsage]

ON_THING, ON_SITE, IN_SITE, ANY_JOINT, ALL_JOINTS = range(5)
"""Kinds of terms."""
BELOW, ABOVE, FROM_ON = range(3)
"""How a joint's position is compared: less, greater, greater or equal."""
NO_CONTACT = -1
NEAR_M = 0.03
"""Horizontal distance of things that are on each other."""
SINK_M, LOWER_M, HEIGHT_M = 0.005, 0.01, 0.10
"""How far below its upper face a thing may be on a site, how far below a site it may be in it, and
how high above a site it still is on it."""


class Goals(NamedTuple):
    """The T terms of a task, all of which must hold.

    Attributes:
        kind: [T].
        body: [T] of the thing that is on or in something.
        target: [T] body (ON_THING) or site (ON_SITE, IN_SITE) that it is on or in.
        size: [T, 3] half sizes of the site (m).
        touching: [T] pair of rows of `geoms` that must touch, or NO_CONTACT.
        geoms: [2 P, geoms] bool: pairs of sets of geoms.
        first_joint: [T + 1] where a term's joints begin in `address`.
        address: [J] places in qpos.
        comparison: [J].
        threshold: [J] m or rad.
    """

    kind: np.ndarray
    body: np.ndarray
    target: np.ndarray
    size: np.ndarray
    touching: np.ndarray
    geoms: np.ndarray
    first_joint: np.ndarray
    address: np.ndarray
    comparison: np.ndarray
    threshold: np.ndarray


class World(NamedTuple):
    """What terms are read from.

    Attributes:
        body_pos: [bodies, 3] m, world.
        site_pos: [sites, 3] m, world.
        site_mat: [sites, 9].
        qpos: [nq].
        contacts: [contacts, 2] ids of the geoms that touch.
    """

    body_pos: np.ndarray
    site_pos: np.ndarray
    site_mat: np.ndarray
    qpos: np.ndarray
    contacts: np.ndarray


@njit(nogil=True)
def goal_reached(goals, world):
    """Tell whether all terms hold."""
    for term in range(goals.kind.size):  # noqa: SIM110 - numba compiles no generator expressions
        if not holds(goals, term, world):
            return False
    return True


@njit(nogil=True)
def holds(goals, term, world):
    """Tell whether one term holds."""
    kind = goals.kind[term]
    if kind in (ANY_JOINT, ALL_JOINTS):
        for joint in range(goals.first_joint[term], goals.first_joint[term + 1]):
            if _compare(goals, joint, world.qpos) == (kind == ANY_JOINT):
                return kind == ANY_JOINT
        return kind == ALL_JOINTS
    thing, target = world.body_pos[goals.body[term]], goals.target[term]
    if kind == ON_THING:
        other = world.body_pos[target]
        gap = np.hypot(other[0] - thing[0], other[1] - thing[1])
        if not (other[2] <= thing[2] and gap < NEAR_M):
            return False
    elif kind == ON_SITE:
        if not _is_on_site(world.site_pos[target], world.site_mat[target], goals.size[term], thing):
            return False
    elif not _is_in_site(world.site_pos[target], world.site_mat[target], goals.size[term], thing):
        return False
    return goals.touching[term] == NO_CONTACT or _touch(goals, goals.touching[term], world.contacts)


@njit(nogil=True)
def _compare(goals, joint, qpos):
    value, threshold = qpos[goals.address[joint]], goals.threshold[joint]
    if goals.comparison[joint] == BELOW:
        return value < threshold
    if goals.comparison[joint] == ABOVE:
        return value > threshold
    return value >= threshold


@njit(nogil=True)
def _turned(mat, vector, row):
    """Return a component of R v: LIBERO turns by the site's rotation, not back by it."""
    return mat[3 * row] * vector[0] + mat[3 * row + 1] * vector[1] + mat[3 * row + 2] * vector[2]


@njit(nogil=True)
def _is_on_site(pos, mat, size, thing):
    offset = thing - pos
    height = _turned(mat, offset, 2)
    if not size[2] - SINK_M < height < size[2] + HEIGHT_M:
        return False
    return abs(_turned(mat, offset, 0)) < size[0] and abs(_turned(mat, offset, 1)) < size[1]


@njit(nogil=True)
def _is_in_site(pos, mat, size, thing):
    for i in range(3):
        half = abs(_turned(mat, size, i))
        lower = pos[i] - half - (LOWER_M if i == 2 else 0.0)
        if not lower < thing[i] < pos[i] + half:
            return False
    return True


@njit(nogil=True)
def _touch(goals, pair, contacts):
    ones, others = goals.geoms[2 * pair], goals.geoms[2 * pair + 1]
    for i in range(contacts.shape[0]):
        one, other = contacts[i, 0], contacts[i, 1]
        if one < 0 or other < 0:
            continue
        if (ones[one] and others[other]) or (ones[other] and others[one]):
            return True
    return False
