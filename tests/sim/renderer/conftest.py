"""Small scenes and their poses."""

from collections.abc import Callable

import mujoco
import numpy as np
import pytest

Poses = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture
def poses_of() -> Callable[..., Poses]:
    """Return geom and camera poses of one world per given qpos, or of qpos0."""

    def poses_of(model: mujoco.MjModel, qpos: np.ndarray | None = None) -> Poses:
        data = mujoco.MjData(model)
        worlds = []
        for row in model.qpos0[None] if qpos is None else qpos:
            data.qpos[:] = row
            mujoco.mj_forward(model, data)
            fields = (data.geom_xpos, data.geom_xmat, data.cam_xpos, data.cam_xmat)
            worlds.append([np.array(field) for field in fields])
        geom_xpos, geom_xmat, cam_xpos, cam_xmat = (np.stack(f) for f in zip(*worlds, strict=True))
        return geom_xpos, geom_xmat, cam_xpos, cam_xmat

    return poses_of
