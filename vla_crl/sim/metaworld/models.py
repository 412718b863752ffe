"""MuJoCo models of Meta-World's tasks: one to be simulated, one to be drawn.

What is only looked at needs no copy in every slot: without it a model takes 3 MB instead of 20.
"""

import importlib.util
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np

from vla_crl.errors import ConfigError, install_extra, unknown_name
from vla_crl.sim.metaworld.config import WORKSPACE_CAMERA, CameraConfig, MetaWorldConfig

GOAL = "vla_crl goal"
"""Geom of the drawn model that marks the goal."""
GOAL_RGBA = (1.0, 0.0, 1.0, 1.0)
"""Nothing else in Meta-World is magenta."""
_NOT_SEEN_M = 1e-3


def require_metaworld() -> None:
    """Raise a ConfigError with the install line if the package is missing."""
    for package in ("metaworld", "imageio"):  # what `pip install --no-deps metaworld` lacks
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"the suites of Meta-World need the package {package}: {install_extra('metaworld')}"
            )


def env_class(task: str) -> Any:
    """Return Meta-World's class of a task.

    Raises:
        ConfigError: The package is missing, or has no such task.
    """
    require_metaworld()
    from metaworld.env_dict import ENV_CLS_MAP

    if task not in ENV_CLS_MAP:
        raise unknown_name("metaworld", "task", task, ENV_CLS_MAP)
    return ENV_CLS_MAP[task]


def _spec(task: str) -> mujoco.MjSpec:
    return mujoco.MjSpec.from_file(env_class(task).model_name.fget(None))


@lru_cache
def simulated_model(task: str) -> mujoco.MjModel:
    """Return the model of a task without what only renderers need; to be copied, not changed.

    The weld of the hand is as Meta-World's environments set it.

    Meshes that touch nothing become dots in the same place, so that bodies, geoms and their numbers
    stay the same. All masses are explicit in Meta-World's files and stay the same as well.
    """
    complete, spec, touching = _spec(task), _spec(task), set[str]()
    placed = complete.compile()
    for geom, same in zip(spec.geoms, complete.geoms, strict=True):
        geom.material = ""
        if geom.type != mujoco.mjtGeom.mjGEOM_MESH:
            continue
        if geom.contype or geom.conaffinity:
            touching.add(geom.meshname)
        else:
            geom.type, geom.meshname = mujoco.mjtGeom.mjGEOM_SPHERE, ""
            geom.size = (_NOT_SEEN_M, 0.0, 0.0)
            geom.pos, geom.quat = placed.geom_pos[same.id], placed.geom_quat[same.id]
            geom.alt.type = mujoco.mjtOrientation.mjORIENTATION_QUAT  # not Euler angles
    unused = [mesh for mesh in spec.meshes if mesh.name not in touching]
    for part in [*unused, *spec.materials, *spec.textures]:
        spec.delete(part)
    model = spec.compile()
    # Physics that blew up must be found out, not silently begin anew.
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    env_class(task).reset_mocap_welds(SimpleNamespace(model=model))
    return model


@lru_cache
def drawn_model(task: str, config: MetaWorldConfig) -> mujoco.MjModel:
    """Return the model of a task with our camera and a mark at the goal; not to be changed.

    Bodies have the same numbers as those of `simulated_model`; geoms of the world do not.
    """
    spec = _spec(task)
    spec.worldbody.add_geom(
        name=GOAL,
        type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=(config.goal_radius_m, 0.0, 0.0),
        rgba=GOAL_RGBA,
        contype=0,
        conaffinity=0,
        mass=0.0,
    )
    camera = config.camera
    spec.worldbody.add_camera(
        name=WORKSPACE_CAMERA,
        pos=camera.position_m,
        quat=_look_at(camera),
        fovy=camera.fovy_deg,
    )
    return spec.compile()


def _look_at(camera: CameraConfig) -> np.ndarray:
    """Return the quaternion (w, x, y, z) of a camera: x right, y up, looking along -z."""
    back = np.subtract(camera.position_m, camera.target_m)
    right = np.cross((0.0, 0.0, 1.0), back)
    axes = np.array([right, np.cross(back, right), back])
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, axes.T.ravel())
    return quat
