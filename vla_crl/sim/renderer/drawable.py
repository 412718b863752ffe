"""What can be drawn of a model; whatever else MuJoCo would show of it is refused by name."""

import enum
from collections.abc import Sequence

import mujoco
import numpy as np

from vla_crl.errors import SpecError, unknown_name
from vla_crl.sim.renderer.view import visual_scene

GEOM_GROUPS = (0, 1, 2)
"""Groups of mjModel's geoms that are drawn unless a renderer is told otherwise."""
MAX_LIGHTS = 8
"""Lights that OpenGL promises, and MuJoCo's renderer draws: with the headlight."""
MAX_SPOT_EXPONENT = 128.0
"""Of OpenGL, which ignores greater ones."""


class Primitive(enum.IntEnum):
    """Kinds of surface the renderer knows; a sphere is an ellipsoid with equal radii."""

    PLANE = 0
    ELLIPSOID = 1
    CAPSULE = 2
    CYLINDER = 3
    BOX = 4
    MESH = 5


PRIMITIVE_OF_GEOM_TYPE = {
    mujoco.mjtGeom.mjGEOM_PLANE: Primitive.PLANE,
    mujoco.mjtGeom.mjGEOM_SPHERE: Primitive.ELLIPSOID,
    mujoco.mjtGeom.mjGEOM_ELLIPSOID: Primitive.ELLIPSOID,
    mujoco.mjtGeom.mjGEOM_CAPSULE: Primitive.CAPSULE,
    mujoco.mjtGeom.mjGEOM_CYLINDER: Primitive.CYLINDER,
    mujoco.mjtGeom.mjGEOM_BOX: Primitive.BOX,
    mujoco.mjtGeom.mjGEOM_MESH: Primitive.MESH,
}


def drawable_views(
    where: str, model: mujoco.MjModel, cameras: Sequence[str], groups: Sequence[int]
) -> list[mujoco.MjvScene]:
    """Return what MuJoCo would show from each camera, if all of it can be drawn.

    Args:
        where: File or function, for the error message.
        model: In its initial posture.
        cameras: Names.
        groups: Geom groups that are drawn.

    Raises:
        ConfigError: A camera name does not exist.
        SpecError: No camera was named, or the model shows what cannot be drawn.
    """
    known = [model.camera(i).name for i in range(model.ncam)]
    for name in cameras:
        if name not in known:
            raise unknown_name(where, "camera", name, known)
    if not cameras:
        raise SpecError(f"{where}: no camera was named; give at least one camera name.")
    _check_lights(where, model)
    for name in cameras:
        _check_camera(where, model, name)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    views = [visual_scene(model, data, groups, model.camera(name).id) for name in cameras]
    for name, view in zip(cameras, views, strict=True):
        near, far = view.camera[0].frustum_near, view.camera[0].frustum_far
        if not near < far:
            raise SpecError(
                f"{where}: camera '{name}' sees from {near:g} m to {far:g} m; the map's zfar must "
                "be greater than its znear (both in extents of the model)."
            )
    _check_shown(where, model, views[0])
    return views


def _check_shown(where: str, model: mujoco.MjModel, view: mujoco.MjvScene) -> None:
    for shown in view.geoms[: view.ngeom]:
        if shown.rgba[3] <= 0:
            continue
        element = mujoco.mjtObj(shown.objtype)
        kind = element.name.removeprefix("mjOBJ_").lower()
        name = mujoco.mj_id2name(model, element, shown.objid) or ""
        called = f"{where}: {kind} '{name}' (id {shown.objid})"
        if element != mujoco.mjtObj.mjOBJ_GEOM:
            raise SpecError(
                f"{called} would be seen in MuJoCo, but of {kind}s nothing is drawn here. Hide it: "
                "group='3'."
            )
        if shown.type not in PRIMITIVE_OF_GEOM_TYPE:
            form = mujoco.mjtGeom(shown.type).name.removeprefix("mjGEOM_").lower()
            raise SpecError(
                f"{called} is of type {form}; only plane, sphere, capsule, ellipsoid, cylinder, "
                "box and mesh are drawn. Give it another shape or another geom group."
            )


def _check_lights(where: str, model: mujoco.MjModel) -> None:
    drawn_types = (mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, mujoco.mjtLightType.mjLIGHT_SPOT)
    active = np.flatnonzero(model.light_active)
    most = MAX_LIGHTS - int(bool(model.vis.headlight.active))
    for number, index in enumerate(active):
        called = f"{where}: light '{model.light(index).name}' (id {index})"
        is_fixed = model.light_mode[index] == mujoco.mjtCamLight.mjCAMLIGHT_FIXED
        if model.light_bodyid[index] != 0 or not is_fixed:
            raise SpecError(
                f"{called} moves with a body; only lights fixed to the world are "
                "drawn. Put it into worldbody with mode 'fixed', or set active='false'."
            )
        if model.light_type[index] not in drawn_types:
            kind = mujoco.mjtLightType(model.light_type[index]).name.removeprefix("mjLIGHT_")
            raise SpecError(
                f"{called} is of type {kind.lower()}; only directional and spot "
                "lights are drawn. Change its type, or set active='false'."
            )
        if number >= most:
            raise SpecError(
                f"{called} is one too many: MuJoCo draws {MAX_LIGHTS} lights, the headlight among "
                "them. Set active='false' where a light matters least."
            )
        if model.light_type[index] == mujoco.mjtLightType.mjLIGHT_SPOT:
            _check_spot(called, model, index)


def _check_spot(called: str, model: mujoco.MjModel, index: int) -> None:
    """Refuse the numbers that OpenGL ignores, so that MuJoCo's picture shows another light."""
    cutoff, exponent = model.light_cutoff[index], model.light_exponent[index]
    attenuation = model.light_attenuation[index]
    if not (0 <= cutoff <= 90 or cutoff == 180):
        raise SpecError(f"{called} has cutoff {cutoff:g}; expected 0 to 90 degrees, or 180.")
    if not 0 <= exponent <= MAX_SPOT_EXPONENT:
        raise SpecError(f"{called} has exponent {exponent:g}; expected 0 to {MAX_SPOT_EXPONENT:g}.")
    if not ((attenuation >= 0).all() and attenuation.any()):
        raise SpecError(
            f"{called} has attenuation {' '.join(f'{part:g}' for part in attenuation)}; expected "
            "numbers from 0 on, not all of them 0."
        )


def _check_camera(where: str, model: mujoco.MjModel, name: str) -> None:
    camera = model.camera(name).id
    if model.cam_projection[camera] == mujoco.mjtProjection.mjPROJ_ORTHOGRAPHIC:
        raise SpecError(
            f"{where}: camera '{name}' is orthographic; only perspective cameras are drawn. "
            "Remove orthographic='true'."
        )
    if not 0 < (fovy := model.cam_fovy[camera]) < 180:
        raise SpecError(
            f"{where}: camera '{name}' has fovy {fovy:g}; expected more than 0 and less than 180 "
            "degrees."
        )
