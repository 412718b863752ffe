"""Where the geoms and cameras of a drawn model are, given the bodies of a simulated one."""

import mujoco
import numpy as np

from vla_crl.sim.metaworld.config import HAND_CAMERA, WORKSPACE_CAMERA
from vla_crl.sim.metaworld.models import GOAL
from vla_crl.sim.simulation import CameraPoses

Poses = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Drawing:
    """Places all geoms and the two cameras of a drawn model; its other cameras stay at zero."""

    def __init__(self, model: mujoco.MjModel) -> None:
        """Read from the model what is fixed to its bodies."""
        self.num_bodies = int(model.nbody)
        """How many poses of bodies it takes."""
        self._geom_body, self._geom_pos = model.geom_bodyid.copy(), model.geom_pos.copy()
        self._geom_turn = _matrices(model.geom_quat)
        self._goal = model.geom(GOAL).id
        self._num_cameras = model.ncam
        self._views = [model.camera(name).id for name in (WORKSPACE_CAMERA, HAND_CAMERA)]
        # Neither turns: ours is fixed to the world, Meta-World's tracks the hand.
        self._view_body = model.cam_bodyid[self._views]
        self._view_offset = model.cam_pos0[self._views].copy()
        self._view_turn = model.cam_mat0[self._views].reshape(-1, 3, 3)
        self._fovy_rad = np.deg2rad(model.cam_fovy[self._views])

    def poses(self, body_pos: np.ndarray, body_mat: np.ndarray, goal: np.ndarray) -> Poses:
        """Place all that is drawn.

        Args:
            body_pos: [B, bodies, 3] m, world.
            body_mat: [B, bodies, 9] rotations from the bodies' frames.
            goal: [B, 3] m, world.

        Returns:
            geom_xpos [B, geoms, 3], geom_xmat [B, geoms, 9] and the same of the cameras.
        """
        rotation = body_mat.reshape(*body_mat.shape[:2], 3, 3)
        turned = rotation[:, self._geom_body]
        geom_pos = body_pos[:, self._geom_body]
        geom_pos = geom_pos + np.einsum("bgij,gj->bgi", turned, self._geom_pos)
        geom_mat = (turned @ self._geom_turn).reshape(len(body_pos), -1, 9)
        geom_pos[:, self._goal] = goal
        camera_pos = np.zeros((len(body_pos), self._num_cameras, 3))
        camera_mat = np.zeros((len(body_pos), self._num_cameras, 9))
        views = self.cameras(body_pos)
        camera_pos[:, self._views] = views.position
        camera_mat[:, self._views] = views.rotation.reshape(len(body_pos), -1, 9)
        return geom_pos, geom_mat, camera_pos, camera_mat

    def cameras(self, body_pos: np.ndarray) -> CameraPoses:
        """Return where the two cameras are, given body_pos [B, bodies, 3] (m, world)."""
        times = len(body_pos), 1
        return CameraPoses(
            position=body_pos[:, self._view_body] + self._view_offset,
            rotation=np.tile(self._view_turn, (*times, 1, 1)),
            fovy_rad=np.tile(self._fovy_rad, times),
        )


def _matrices(quats: np.ndarray) -> np.ndarray:
    """Return the rotations [K, 3, 3] of quaternions [K, 4], w first."""
    turns = np.empty((len(quats), 9))
    for turn, quat in zip(turns, quats, strict=True):
        mujoco.mju_quat2Mat(turn, quat)
    return turns.reshape(-1, 3, 3)
