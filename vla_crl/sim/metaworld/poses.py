"""Where the geoms and cameras of a drawn model are, given the bodies of a simulated one."""

import mujoco
import numpy as np

from vla_crl.sim.metaworld.config import HAND_CAMERA, WORKSPACE_CAMERA
from vla_crl.sim.metaworld.models import GOAL
from vla_crl.sim.renderer import Placement, Poses
from vla_crl.sim.simulation import CameraPoses


class Drawing:
    """Places all geoms and the two cameras of a drawn model; its other cameras see nothing."""

    def __init__(self, model: mujoco.MjModel) -> None:
        """Read from the model what is fixed to its bodies."""
        self.num_bodies = int(model.nbody)
        """How many poses of bodies it takes."""
        self._placement = Placement(model, ())
        self._goal = model.geom(GOAL).id
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
        """
        poses, views = self._placement.poses(body_pos, body_mat), self.cameras(body_pos)
        poses.geom_xpos[:, self._goal] = goal
        poses.cam_xpos[:, self._views] = views.position
        poses.cam_xmat[:, self._views] = views.rotation.reshape(len(body_pos), -1, 9)
        return poses

    def cameras(self, body_pos: np.ndarray) -> CameraPoses:
        """Return where the two cameras are, given body_pos [B, bodies, 3] (m, world)."""
        times = len(body_pos), 1
        return CameraPoses(
            position=body_pos[:, self._view_body] + self._view_offset,
            rotation=np.tile(self._view_turn, (*times, 1, 1)),
            fovy_rad=np.tile(self._fovy_rad, times),
        )
