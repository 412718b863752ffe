"""One slot as an expert sees it."""

from dataclasses import dataclass
from functools import cached_property

import mujoco
import numpy as np

from vla_crl.sim.libero.experts.shapes import Shapes, shapes_of
from vla_crl.sim.libero.libero_sim import LiberoSim

HAND, FINGERS = "gripper0_eef", ("gripper0_finger_joint1", "gripper0_finger_joint2")
ROOM_M = 0.04
"""From the middle to an open finger."""


@dataclass(frozen=True, eq=False)
class View:
    """Poses of a slot.

    Attributes:
        shapes: What takes up space.
        pos: [bodies, 3] m, world.
        mat: [bodies, 3, 3].
        qpos: [positions].
        speed: Of the fingers (m/s), the sum of both; negative while they close.
        grip: [3] m, world, of the point between the fingertips.
        hand: [3, 3] columns are the direction in which fingers move, that of their width, and
            that in which they point.
    """

    shapes: Shapes
    pos: np.ndarray
    mat: np.ndarray
    qpos: np.ndarray
    speed: float
    grip: np.ndarray
    hand: np.ndarray

    @cached_property
    def opening(self) -> float:
        """Mean distance of the fingers from the middle, m."""
        return float(self.qpos[7] - self.qpos[8]) / 2

    def points(self, body: int) -> np.ndarray:
        """Return [n, 3] cubes of a body (m, world)."""
        return self.shapes.cubes[body] @ self.mat[body].T + self.pos[body]

    def thing(self, body: int) -> np.ndarray:
        """Return [n, 3] cubes of a thing, or of one of its parts alone (m, world)."""
        return self.cloud([body, *self.shapes.parts(body)])

    def cloud(self, bodies: list[int]) -> np.ndarray:
        """Return [n, 3] cubes of bodies (m, world)."""
        shaped = [body for body in dict.fromkeys(bodies) if body in self.shapes.cubes]
        return np.concatenate([self.points(body) for body in shaped] or [np.empty((0, 3))])

    def bounds(self, body: int) -> np.ndarray:
        """Return [2, 3] the least and the greatest coordinates of a body's bounding box."""
        corners = self.shapes.corners[body] @ self.mat[body].T + self.pos[body]
        return np.array([corners.min(0), corners.max(0)])

    def site(self, site: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the position [3] (m, world) and the rotation [3, 3] of a site."""
        model = self.shapes.model
        body, local = int(model.site_bodyid[site]), np.empty(9)
        mujoco.mju_quat2Mat(local, model.site_quat[site])
        turned = self.mat[body] @ model.site_pos[site]
        return self.pos[body] + turned, self.mat[body] @ local.reshape(3, 3)


def view_of(sim: LiberoSim, slot: int) -> View:
    """Look at a slot."""
    shapes, row = shapes_of(sim.baked_in(slot)), sim.row(slot)
    model = shapes.model
    body = model.body(HAND).id
    mat = row.body_mat[: model.nbody].reshape(-1, 3, 3)
    speed = row.physics[1 + model.nq :][7:9]
    return View(
        shapes,
        row.body_pos[: model.nbody],
        mat,
        row.qpos[: model.nq],
        float(speed[0] - speed[1]),
        row.grip_pos,
        mat[body],
    )
