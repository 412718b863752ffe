"""Where the geoms and cameras of a drawn model are, given the bodies of a simulated one."""

from collections.abc import Sequence

import mujoco
import numpy as np

from vla_crl.sim.metaworld.config import HAND_CAMERA, WORKSPACE_CAMERA
from vla_crl.sim.metaworld.episode import Look
from vla_crl.sim.metaworld.models import GOAL
from vla_crl.sim.simulation import CameraPoses

Poses = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Drawing:
    """Places all geoms and the two cameras of a drawn model; its other cameras stay at zero."""

    def __init__(self, model: mujoco.MjModel) -> None:
        """Read from the model what is fixed to its bodies."""
        self._body = model.geom_bodyid.copy()
        self._offset = model.geom_pos.copy()
        self._turn = np.empty((model.ngeom, 9))
        for turn, quat in zip(self._turn, model.geom_quat, strict=True):
            mujoco.mju_quat2Mat(turn, quat)
        self._turn = self._turn.reshape(-1, 3, 3)
        self._goal = model.geom(GOAL).id
        self._num_cameras = model.ncam
        self._workspace, self._hand = (
            model.camera(name).id for name in (WORKSPACE_CAMERA, HAND_CAMERA)
        )
        self._view = model.cam_pos[self._workspace].copy(), model.cam_mat0[self._workspace].copy()
        self._fovy_rad = np.deg2rad(model.cam_fovy[[self._workspace, self._hand]])

    def poses(self, looks: Sequence[Look]) -> Poses:
        """Return geom_xpos [B, geoms, 3], geom_xmat [B, geoms, 9] and the same of the cameras."""
        position = np.stack([look.body_pos for look in looks])[:, self._body]
        rotation = np.stack([look.body_mat for look in looks])[:, self._body]
        geom_pos = position + np.einsum("bgij,gj->bgi", rotation, self._offset)
        geom_mat = (rotation @ self._turn).reshape(len(looks), -1, 9)
        geom_pos[:, self._goal] = [look.goal_pos for look in looks]
        camera_pos = np.zeros((len(looks), self._num_cameras, 3))
        camera_mat = np.zeros((len(looks), self._num_cameras, 9))
        camera_pos[:, self._workspace], camera_mat[:, self._workspace] = self._view
        camera_pos[:, self._hand] = [look.hand_camera_pos for look in looks]
        camera_mat[:, self._hand] = [look.hand_camera_mat.ravel() for look in looks]
        return geom_pos, geom_mat, camera_pos, camera_mat

    def cameras(self, look: Look) -> CameraPoses:
        """Return where the two cameras are: [2, 3], [2, 3, 3] and [2], without slots."""
        position, rotation = self._view
        return CameraPoses(
            position=np.stack([position, look.hand_camera_pos]),
            rotation=np.stack([rotation.reshape(3, 3), look.hand_camera_mat]),
            fovy_rad=self._fovy_rad,
        )
