"""The inner loop of grasping, compiled: what fits between the fingers along one direction."""

import numpy as np
from numba import njit  # pyright: ignore[reportPrivateImportUsage]

COLUMN_M = 0.01
DEPTHS_M = np.array([0.001, 0.006, 0.014, 0.022])
"""Of the grip point below the top of what is between the fingers."""
TIP_M, PALM_M = 0.0095, 0.031
"""The fingertips are this far below the grip point, the palm is above it."""
FLOOR_M = 0.0015
"""Fingertips stay this far above what the thing stands on."""
WIDEST_M = 0.068
"""Of what fits between the fingers, with room for errors."""
ROOM_M, SPLIT_M = 0.037, 0.018
"""Half the opening, less an error; what is further apart than a finger is thick is two parts."""
FACE_M, MIN_FACE = 0.004, 0.6
"""What fingers press on is flat within this, over so much of its width: a wedge slips out."""
FINGER_M, FINGER_WIDTH_M, HAND_M, HAND_WIDTH_M = 0.058, 0.013, 0.105, 0.036
"""Reach of an open finger and half of its width, half of the hand and of its depth."""
PAD_LOW_M, PAD_HIGH_M, PAD_WIDTH_M = 0.007, 0.013, 0.008
"""What the pads of the fingers touch, from the grip point."""


@njit(nogil=True, cache=True)  # all that it calls is in this file, which numba checks
def grips(mine, theirs, places, grain):
    """Find grips of a thing by fingers that close in x.

    Args:
        mine: [P, 3] points of the thing, m.
        theirs: [Q, 3] points of what else is near.
        places: [V] y of the places that are tried.
        grain: Thickness of what a point stands for.

    Returns:
        [K, 6] grip point, width of what is between the fingers, depth of the grip point below its
        top, and how much room there is beside the fingers.
    """
    found = [(0.0, 0.0, 0.0, 0.0, 0.0, 0.0) for _ in range(0)]
    lowest = mine[:, 2].min() + TIP_M + FLOOR_M
    everything = np.concatenate((mine, theirs))
    for v in places:
        strip = _near(mine, v, PAD_WIDTH_M)
        if not len(strip):
            continue
        near, fingers = _near(everything, v, HAND_WIDTH_M), _near(everything, v, FINGER_WIDTH_M)
        beside = _near(theirs, v, FINGER_WIDTH_M)
        for z in _levels(strip, lowest):
            band = strip[(strip[:, 2] > z - PAD_LOW_M) & (strip[:, 2] < z + PAD_HIGH_M)]
            band = band[np.argsort(band[:, 0])]
            first = 0
            for last in range(len(band)):
                if last + 1 < len(band) and band[last + 1, 0] - band[last, 0] <= SPLIT_M:
                    continue
                held, first = band[first : last + 1], last + 1
                left, right = held[0, 0], held[-1, 0]
                width, u = right - left + 0.004, (left + right) / 2
                if width > WIDEST_M or not _is_flat(held, left, right, grain):
                    continue
                room = _room(fingers, beside, near, u, z)
                if room >= 0.0:
                    between = (strip[:, 0] >= left) & (strip[:, 0] <= right)
                    depth = strip[between, 2].max() - z
                    found.append((u, v, z, width, depth, min(room, 0.02)))
    rows = np.empty((len(found), 6))
    for row, grip in enumerate(found):
        for column in range(6):
            rows[row, column] = grip[column]
    return rows


@njit(nogil=True)
def _near(points, v, distance):
    return points[np.abs(points[:, 1] - v) < distance]


@njit(nogil=True)
def _levels(strip, lowest):
    """Return heights of the grip point: some depths below what the strip looks like from above."""
    columns = np.rint(strip[:, 0] / COLUMN_M).astype(np.int64)
    columns -= columns.min()
    tops = np.full(columns.max() + 1, -np.inf)
    for column, z in zip(columns, strip[:, 2]):  # noqa: B905, numba zips without strict
        tops[column] = max(tops[column], z)
    tops = np.unique(np.rint(tops[np.isfinite(tops)] / COLUMN_M) * COLUMN_M)
    return np.unique(np.maximum(tops.reshape(-1, 1) - DEPTHS_M, lowest))


@njit(nogil=True)
def _is_flat(held, left, right, grain):
    """Tell whether enough of the width of what is held lies against the fingers."""
    y = held[:, 1]
    whole = y.max() - y.min() + grain
    for end in (left, right):
        at_end = y[np.abs(held[:, 0] - end) < FACE_M]
        if (at_end.max() - at_end.min() + grain) / whole < MIN_FACE:
            return False
    return True


@njit(nogil=True)
def _room(fingers, beside, near, u, z):
    """Return the room beside open fingers, at most 42 mm; -1 where something is in the way."""
    room = 0.1
    for x, height in zip(fingers[:, 0], fingers[:, 2]):  # noqa: B905
        aside = abs(x - u)
        if height > z - TIP_M and aside > ROOM_M:
            if aside < FINGER_M:
                return -1.0
            room = min(room, aside)
    for x, height in zip(beside[:, 0], beside[:, 2]):  # noqa: B905
        if height > z - TIP_M and abs(x - u) < FINGER_M:  # nor between fingers
            return -1.0
    for x, height in zip(near[:, 0], near[:, 2]):  # noqa: B905
        if height > z + PALM_M and abs(x - u) < HAND_M:
            return -1.0
    return room - FINGER_M
