"""Where to grasp a thing from above: between the fingers something, beside them nothing."""

from typing import NamedTuple

import numpy as np

from vla_crl.sim.libero.experts.grips import HAND_M, grips
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
        tried = np.arange(mine[:, 1].min() + 0.004, mine[:, 1].max() - 0.003, STEP_M)
        for *place, width, depth, room in grips(mine, theirs, tried, CUBE_M):
            at = middle + np.array(place) @ frame
            reach = float(np.hypot(*(at - base)[:2]))
            cost = 4.0 * max(reach - NEAR_M, 0.0) + 20.0 * max(reach - FAR_M, 0.0)
            cost += 6.0 * np.hypot(*place[:2]) + 0.15 * turn - 4.0 * depth - 4.0 * room
            cost += 3.0 * width
            grasp = Grasp((at - centre) @ view.mat[root], frame[0] @ view.mat[root], width)
            cost += sum(0.5 for failed in skip if _is_alike(grasp, failed))
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
