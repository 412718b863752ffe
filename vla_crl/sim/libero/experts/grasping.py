"""Where to grasp a thing from above: between the fingers something, beside them nothing."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vla_crl.sim.libero.experts.shapes import CUBE_M
from vla_crl.sim.libero.experts.view import View

BASE, NEAR_M, FAR_M = "robot0_base", 0.68, 0.78
"""The robot, and how far it reaches with ease and at all: further out its torques are too
weak."""
NUM_YAWS, FIRST_YAW = 12, np.pi / 4
"""Directions in which fingers close, from the world's x on; of the two that are the same grasp that
which keeps the last joint away from its limits."""
STEP_M = 0.008
"""Distance of the places along the width of the fingers that are tried."""
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


def best_grasp(
    view: View, root: int, skip: tuple[Grasp, ...] = (), *, is_alone: bool = False
) -> Grasp | None:
    """Return how to grasp a thing as it is now.

    Args:
        view: Where all things are.
        root: The thing's body.
        skip: Grasps that failed; near ones are returned only if there is no other.
        is_alone: Whether to forget what else is there.

    Returns:
        The best of those tried, None if there is none.
    """
    points, centre = view.thing(root), view.pos[root]
    others = [b for b in view.shapes.cubes if b != root and view.shapes.root[b] != root]
    near = [body for body in others if not is_alone and _is_near(view.bounds(body), points)]
    around = view.cloud(near)
    base = view.pos[view.shapes.model.body(BASE).id]
    middle = points.mean(axis=0)
    best, best_cost = None, np.inf
    for yaw in FIRST_YAW + np.arange(NUM_YAWS) * np.pi / NUM_YAWS:
        frame = np.array([[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        mine, theirs = (points - middle) @ frame.T, (around - middle) @ frame.T
        turn = abs(yaw % np.pi - np.pi / 2)  # 0 where fingers move in y
        for place, width, depth, room in _grips(mine, theirs):
            at = middle + place @ frame
            reach = float(np.hypot(*(at - base)[:2]))
            cost = 4.0 * max(reach - NEAR_M, 0.0) + 20.0 * max(reach - FAR_M, 0.0)
            cost += 6.0 * np.hypot(*place[:2]) + 0.15 * turn - 4.0 * depth - 4.0 * room
            cost += 3.0 * width
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


def _grips(
    mine: np.ndarray, theirs: np.ndarray
) -> Iterator[tuple[np.ndarray, float, float, float]]:
    """Yield places [3] of the grip point, widths, depths, and how much room there is beside."""
    low, high = mine.min(0), mine.max(0)
    all_points = np.concatenate([mine, theirs])
    for v in np.arange(low[1] + 0.004, high[1] - 0.003, STEP_M):
        strip = mine[np.abs(mine[:, 1] - v) < PAD_WIDTH_M]
        if not len(strip):
            continue
        near = all_points[np.abs(all_points[:, 1] - v) < HAND_WIDTH_M]
        fingers = near[np.abs(near[:, 1] - v) < FINGER_WIDTH_M]
        beside = theirs[np.abs(theirs[:, 1] - v) < FINGER_WIDTH_M]
        for z in _levels(strip, low[2] + TIP_M + FLOOR_M):
            band = strip[(strip[:, 2] > z - PAD_LOW_M) & (strip[:, 2] < z + PAD_HIGH_M)]
            over_palm = near[near[:, 2] > z + PALM_M, 0]
            at_finger = fingers[fingers[:, 2] > z - TIP_M, 0]
            of_others = beside[beside[:, 2] > z - TIP_M, 0]
            for held in _parts(band):
                left, right = held[:, 0].min(), held[:, 0].max()
                width, u = right - left + 0.004, (left + right) / 2
                if width > WIDEST_M or min(_face(held, left), _face(held, right)) < MIN_FACE:
                    continue
                aside = np.abs(at_finger - u)
                is_blocked = ((aside > ROOM_M) & (aside < FINGER_M)).any()
                is_blocked |= (np.abs(of_others - u) < FINGER_M).any()  # nor between fingers
                if is_blocked or (np.abs(over_palm - u) < HAND_M).any():
                    continue
                top = strip[(strip[:, 0] >= left) & (strip[:, 0] <= right), 2].max()
                room = float(aside[aside >= FINGER_M].min(initial=0.1)) - FINGER_M
                yield np.array([u, v, z]), width, top - z, min(room, 0.02)


def _levels(strip: np.ndarray, lowest: float) -> np.ndarray:
    """Return heights of the grip point: some depths below what the strip looks like from above."""
    columns = np.round(strip[:, 0] / COLUMN_M).astype(int)
    columns -= columns.min()
    tops = np.full(columns.max() + 1, -np.inf)
    np.maximum.at(tops, columns, strip[:, 2])
    tops = np.unique(np.round(tops[np.isfinite(tops)] / COLUMN_M) * COLUMN_M)
    return np.unique(np.maximum(tops[:, None] - DEPTHS_M, lowest))


def _parts(band: np.ndarray) -> list[np.ndarray]:
    """Split points into parts that a finger fits between."""
    if not len(band):
        return []
    ordered = band[np.argsort(band[:, 0])]
    cuts = np.flatnonzero(np.diff(ordered[:, 0]) > SPLIT_M) + 1
    return np.split(ordered, cuts)


def _face(held: np.ndarray, end: float) -> float:
    """Return which part of the width of what is held lies against the finger at one end."""
    at_end = held[np.abs(held[:, 0] - end) < FACE_M, 1]
    return float((np.ptp(at_end) + CUBE_M) / (np.ptp(held[:, 1]) + CUBE_M))
