"""Where the geoms and cameras of a drawn model are, given its bodies: no physics is run for it.

A model that is simulated can so leave out all that is only looked at: a second model with the same
bodies has it, and is drawn where the bodies of the first one are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_crl.errors import SpecError, unknown_name
from vla_crl.sim.renderer.poses import Array, Poses


class Placement:
    """Place what is fixed to the bodies of a model, in B worlds at once.

    Args:
        model: Not kept.
        cameras: Names of those that are placed; the others have the pose NaN and see nothing.

    Raises:
        ConfigError: A camera name does not exist.
        SpecError: A camera is not fixed to its body.
    """

    def __init__(self, model: mujoco.MjModel, cameras: Sequence[str]) -> None:
        known = [model.camera(index).name for index in range(model.ncam)]
        for name in cameras:
            if name not in known:
                raise unknown_name("Placement", "camera", name, known)
            if model.camera(name).mode[0] != mujoco.mjtCamLight.mjCAMLIGHT_FIXED:
                raise SpecError(
                    f"Placement: camera '{name}' follows or looks at a body; only cameras that are "
                    "fixed to one can be placed. Give it mode 'fixed'."
                )
        self._num_bodies = model.nbody
        self._num_cameras = model.ncam
        self._cameras = np.array([model.camera(name).id for name in cameras], np.int64)
        self._geoms = _Parts.of(model.geom_bodyid, model.geom_pos, model.geom_quat)
        self._views = _Parts.of(
            model.cam_bodyid[self._cameras],
            model.cam_pos[self._cameras],
            model.cam_quat[self._cameras],
        )

    def poses(self, xpos: Array, xmat: Array) -> Poses:
        """Return the poses of all geoms and cameras.

        Args:
            xpos: [B, nbody, 3] of mjData; a body that is not finite takes its parts with it.
            xmat: [B, nbody, 9].

        Raises:
            SpecError: An array has the wrong shape.
        """
        for name, array, width in (("xpos", xpos, 3), ("xmat", xmat, 9)):
            if array.shape != (len(xpos), self._num_bodies, width):
                raise SpecError(
                    f"Placement: {name} is {list(array.shape)}; expected "
                    f"{[len(xpos), self._num_bodies, width]}."
                )
        rotation = xmat.reshape(len(xpos), self._num_bodies, 3, 3)
        cam_xpos = np.full((len(xpos), self._num_cameras, 3), np.nan)
        cam_xmat = np.full((len(xpos), self._num_cameras, 9), np.nan)
        cam_xpos[:, self._cameras], cam_xmat[:, self._cameras] = self._views.in_world(
            xpos, rotation
        )
        return Poses(*self._geoms.in_world(xpos, rotation), cam_xpos, cam_xmat)


class _Parts(NamedTuple):
    """K things in the frames of their bodies."""

    body: NDArray[np.int32]  # [K]
    offset: Array  # [K, 3, 1] metres
    turn: Array  # [K, 3, 3]

    @classmethod
    def of(cls, body: NDArray[np.int32], position: Array, quat_wxyz: Array) -> "_Parts":
        turn = np.empty((len(body), 9))
        for row, quat in zip(turn, quat_wxyz, strict=True):
            mujoco.mju_quat2Mat(row, quat)
        return cls(np.array(body), np.array(position)[..., None], turn.reshape(-1, 3, 3))

    def in_world(self, xpos: Array, rotation: Array) -> tuple[Array, Array]:
        """Return [B, K, 3] and [B, K, 9] for bodies at [B, nbody, 3] and [B, nbody, 3, 3]."""
        of_body = rotation[:, self.body]
        position = xpos[:, self.body] + (of_body @ self.offset)[..., 0]
        return position, (of_body @ self.turn).reshape(*of_body.shape[:2], 9)
