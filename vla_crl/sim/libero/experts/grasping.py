"""Where to grasp a thing from above: between the fingers something, beside them nothing."""

from typing import NamedTuple

import numpy as np

from vla_crl.sim.libero.experts.view import View

NUM_YAWS = 12
STEP_M = 0.008
"""Distance of the places along the width of the fingers that are tried."""
DEPTHS_M = (0.006, 0.016, 0.026)
"""Of the grip point below the top of what is between the fingers."""
TIP_M, PALM_M = 0.0095, 0.031
"""The fingertips are this far below the grip point, the palm is above it."""
FLOOR_M = 0.0015
"""Fingertips stay this far above what the thing stands on."""
WIDEST_M = 0.068
"""Of what fits between the fingers, with room for errors."""
ROOM_M, SPLIT_M = 0.037, 0.018
"""Half the opening, less an error; what is further apart than a finger is thick is two parts."""
FINGER_M, FINGER_WIDTH_M, HAND_M, HAND_WIDTH_M = 0.058, 0.013, 0.105, 0.036
"""Reach of an open finger and half of its width, half of the hand and of its depth."""
PAD_LOW_M, PAD_HIGH_M, PAD_WIDTH_M = 0.007, 0.013, 0.008
"""What the pads of the fingers touch, from the grip point."""


class Grasp(NamedTuple):
    """How to hold a thing.

    Attributes:
        point: [3] grip point in the frame of the thing's body, m.
        axis: [3] direction in which the fingers close, likewise.
        width: Of what is between the fingers, m.
    """

    point: np.ndarray
    axis: np.ndarray
    width: float


def best_grasp(view: View, root: int, skip: tuple[Grasp, ...] = ()) -> Grasp | None:
    """Return how to grasp a thing as it is now.

    Args:
        view: Where all things are.
        root: The thing's body.
        skip: Grasps that failed; near ones are not returned again.

    Returns:
        The best of those tried, None if there is none.
    """
    points, centre = view.points(root), view.pos[root]
    others = [body for body in view.shapes.cubes if view.shapes.root[body] != root]
    near = [body for body in others if _is_near(view.bounds(body), points)]
    around = view.cloud(near)
    middle = points.mean(axis=0)
    best, best_cost = None, np.inf
    for yaw in np.arange(NUM_YAWS) * np.pi / NUM_YAWS:
        frame = np.array([[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        mine, theirs = (points - middle) @ frame.T, (around - middle) @ frame.T
        turn = abs((yaw - np.pi / 2 + np.pi / 2) % np.pi - np.pi / 2)  # 0 where fingers move in y
        for place, width, depth, room in _grips(mine, theirs):
            at = middle + place @ frame
            cost = 6.0 * np.hypot(*place[:2]) + 0.15 * turn - 8.0 * depth - 4.0 * room
            grasp = Grasp((at - centre) @ view.mat[root], frame[0] @ view.mat[root], width)
            cost += sum(0.5 for tried in skip if _is_alike(grasp, tried))
            if cost < best_cost:
                best, best_cost = grasp, cost
    return best


def _is_near(bounds: np.ndarray, points: np.ndarray) -> bool:
    gap = np.maximum(bounds[0] - points.max(0), points.min(0) - bounds[1])[:2]
    return bool(gap.max() < HAND_M)


def _is_alike(one: Grasp, other: Grasp) -> bool:
    return bool(
        np.linalg.norm(one.point - other.point) < 0.015 and abs(one.axis @ other.axis) > 0.9
    )


def _grips(mine: np.ndarray, theirs: np.ndarray):
    """Yield places [3] of the grip point, widths, depths, and how much room there is beside."""
    low, high = mine.min(0), mine.max(0)
    for v in np.arange(low[1] + 0.004, high[1] - 0.003, STEP_M):
        strip = mine[np.abs(mine[:, 1] - v) < PAD_WIDTH_M]
        if not len(strip):
            continue
        fingers = np.concatenate([mine, theirs])
        fingers = fingers[np.abs(fingers[:, 1] - v) < HAND_WIDTH_M]
        is_at_finger = np.abs(fingers[:, 1] - v) < FINGER_WIDTH_M
        for part in _parts(strip):
            yield from _heights(part, v, low[2], fingers, is_at_finger)


def _parts(strip: np.ndarray) -> list[np.ndarray]:
    """Split a strip of points into parts that a finger fits between."""
    ordered = strip[np.argsort(strip[:, 0])]
    cuts = np.flatnonzero(np.diff(ordered[:, 0]) > SPLIT_M) + 1
    return np.split(ordered, cuts)


def _heights(part: np.ndarray, v: float, floor: float, fingers: np.ndarray, is_at_finger):
    top = part[:, 2].max()
    for depth in DEPTHS_M:
        z = max(top - depth, floor + TIP_M + FLOOR_M)
        held = part[(part[:, 2] > z - PAD_LOW_M) & (part[:, 2] < z + PAD_HIGH_M)]
        if not len(held):
            continue
        left, right = held[:, 0].min(), held[:, 0].max()
        width, u = right - left + 0.004, (left + right) / 2
        if width > WIDEST_M:
            continue
        aside = np.abs(fingers[:, 0] - u)
        is_low = fingers[:, 2] > z - TIP_M
        blocked = is_at_finger & is_low & (aside > ROOM_M) & (aside < FINGER_M)
        if blocked.any() or ((aside < HAND_M) & (fingers[:, 2] > z + PALM_M)).any():
            continue
        beside = aside[is_at_finger & is_low & (aside >= FINGER_M)]
        room = min(float(beside.min(initial=0.1)) - FINGER_M, 0.02)
        yield np.array([u, v, z]), width, top - z, room
