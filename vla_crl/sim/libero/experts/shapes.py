"""What takes up space in a scene: small cubes that fill what of things collides."""

from collections.abc import Iterable
from functools import lru_cache

import mujoco
import numpy as np

from vla_crl.sim.libero.baked import BakedTask

CUBE_M = 0.005
"""Edge of the cubes; thinner walls are as thick as this."""

_ROUND = (mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_CYLINDER)


class Shapes:
    """The things of a scene, bodies by number.

    Attributes:
        model: Physics.
        root: Of each body, the body of the thing that it is a part of, or 0.
        cubes: Of each body of a thing that has a collision shape, centres [n, 3] (m, body frame).
        corners: [8, 3] of each of their bounding boxes likewise.
    """

    def __init__(self, model: mujoco.MjModel, roots: Iterable[int]) -> None:
        """Fill the shapes of the things whose bodies are `roots`, with all their parts."""
        self.model, roots = model, set(roots)
        self.root = np.zeros(model.nbody, np.int64)
        for body in range(1, model.nbody):
            parent = self.root[model.body_parentid[body]]
            self.root[body] = body if body in roots else parent
        self.cubes: dict[int, np.ndarray] = {}
        self.corners: dict[int, np.ndarray] = {}
        for body in np.flatnonzero(self.root).tolist():
            boxes = [
                geom
                for geom in np.flatnonzero(model.geom_bodyid == body).tolist()
                if (model.geom_contype[geom] or model.geom_conaffinity[geom])
                and model.geom_type[geom] in (mujoco.mjtGeom.mjGEOM_BOX, *_ROUND)
            ]
            if boxes:
                cubes = _fill(model, boxes)
                self.cubes[body] = cubes
                ends = np.array([cubes.min(0) - CUBE_M / 2, cubes.max(0) + CUBE_M / 2])
                picks = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, 8)
                self.corners[body] = np.stack([ends[picks[i], i] for i in range(3)], axis=1)

    def parts(self, root: int) -> list[int]:
        """Return the bodies with a shape that belong to a thing."""
        return [body for body in self.cubes if self.root[body] == root]


def _fill(model: mujoco.MjModel, boxes: list[int]) -> np.ndarray:
    """Return the centres of the cubes of a grid that are in any of the boxes of a body."""
    matrices = np.empty((len(boxes), 9))
    for matrix, geom in zip(matrices, boxes, strict=True):
        mujoco.mju_quat2Mat(matrix, model.geom_quat[geom])
    matrices = matrices.reshape(-1, 3, 3)
    centre, half = model.geom_pos[boxes], model.geom_size[boxes].copy()
    for size, geom in zip(half, boxes, strict=True):
        if model.geom_type[geom] in _ROUND:
            is_capsule = model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE
            size[:] = size[0], size[0], size[1] + is_capsule * size[0]
    reach = np.einsum("bij,bj->bi", np.abs(matrices), half)
    found = set()
    for at, matrix, size, far in zip(centre, matrices, half, reach, strict=True):
        low, high = np.floor((at - far) / CUBE_M), np.ceil((at + far) / CUBE_M)
        axes = [np.arange(a, b + 1) for a, b in zip(low, high, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        inside = np.abs((grid * CUBE_M - at) @ matrix) <= np.maximum(size, CUBE_M / 2)
        found.update(map(tuple, grid[inside.all(axis=1)].astype(int).tolist()))
    return np.array(sorted(found), np.float64) * CUBE_M


@lru_cache(maxsize=256)
def shapes_of(task: BakedTask) -> Shapes:
    """Return the shapes of a task, filled once."""
    return Shapes(task.physics, task.bodies.values())
