"""What MuJoCo itself would show of a model."""

from collections.abc import Sequence

import mujoco


def visual_scene(
    model: mujoco.MjModel, data: mujoco.MjData, groups: Sequence[int], camera_id: int | None = None
) -> mujoco.MjvScene:
    """Return what MuJoCo itself would draw.

    Args:
        model: Its poses are those in `data`.
        data: After mj_forward.
        groups: Geom groups that are drawn.
        camera_id: Index into mjModel's cameras; None: a free camera.
    """
    option = view_option(groups)
    camera = mujoco.MjvCamera() if camera_id is None else fixed_camera(camera_id)
    scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 1000)
    categories = mujoco.mjtCatBit.mjCAT_STATIC | mujoco.mjtCatBit.mjCAT_DYNAMIC
    mujoco.mjv_updateScene(model, data, option, None, camera, categories, scene)
    return scene


def view_option(groups: Sequence[int]) -> mujoco.MjvOption:
    """Return what shows some geom groups and no sites."""
    option = mujoco.MjvOption()
    option.geomgroup[:] = 0
    option.geomgroup[list(groups)] = 1
    option.sitegroup[:] = 0
    return option


def fixed_camera(camera_id: int) -> mujoco.MjvCamera:
    """Return the view of one of mjModel's cameras."""
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
    camera.fixedcamid = camera_id
    return camera


def visual_geoms(scene: mujoco.MjvScene) -> list[mujoco.MjvGeom]:
    """Return the visible ones that stand for geoms of the model."""
    return [
        geom
        for geom in scene.geoms[: scene.ngeom]
        if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.rgba[3] > 0
    ]
