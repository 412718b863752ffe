"""Everything about a model that no pose changes, as plain arrays for the compiled loops."""

import enum
from collections.abc import Sequence
from typing import NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_crl.errors import SpecError, unknown_name

INFINITE_PLANE_SIZE = 1e6
"""Half size in metres of a plane that MuJoCo calls infinite; the far plane cuts it anyway."""

SPOT_TABLE_SIZE = 1024
SKY_TABLE_SIZE = 512


class Primitive(enum.IntEnum):
    """Kinds of surface the renderer knows; a sphere is an ellipsoid with equal radii."""

    PLANE = 0
    ELLIPSOID = 1
    CAPSULE = 2
    CYLINDER = 3
    BOX = 4


_PRIMITIVE_OF_GEOM_TYPE = {
    mujoco.mjtGeom.mjGEOM_PLANE: Primitive.PLANE,
    mujoco.mjtGeom.mjGEOM_SPHERE: Primitive.ELLIPSOID,
    mujoco.mjtGeom.mjGEOM_ELLIPSOID: Primitive.ELLIPSOID,
    mujoco.mjtGeom.mjGEOM_CAPSULE: Primitive.CAPSULE,
    mujoco.mjtGeom.mjGEOM_CYLINDER: Primitive.CYLINDER,
    mujoco.mjtGeom.mjGEOM_BOX: Primitive.BOX,
}


class GeomArrays(NamedTuple):
    """The G drawn geoms; lengths in metres, colours in [0, 1]."""

    model_id: NDArray[np.int32]  # [G] index into mjModel's geoms
    primitive: NDArray[np.int32]  # [G]
    size: NDArray[np.float64]  # [G, 3] half sizes along the geom's axes, as mjvGeom has them
    reach: NDArray[np.float64]  # [G] greatest distance of a point from the centre
    texture_mean: NDArray[np.float32]  # [G, 3] factors on the colour; 1 where there is a pattern
    emission: NDArray[np.float32]  # [G]
    texture_scale: NDArray[np.float32]  # [G, 2] periods per half size; 0 without a texture
    texture_colour: NDArray[np.float32]  # [G, 5, 3] mean of each quadrant, then of the whole


class LightArrays(NamedTuple):
    """L lights: the camera's headlight, suns (directional) and spots; those fixed to the world.

    Positions and colours belong to the appearance; the last three fields are about spots only.
    """

    model_id: NDArray[np.int32]  # [L] index into mjModel's lights; -1: the headlight
    is_spot: NDArray[np.bool_]  # [L]
    spot_attenuation: NDArray[np.float32]  # [L, 3] 1 / (a0 + a1 r + a2 r^2)
    spot_cos_cutoff: NDArray[np.float32]  # [L]
    spot_table: NDArray[np.float32]  # [L, SPOT_TABLE_SIZE] cos^exponent from cutoff to axis


class CameraArrays(NamedTuple):
    """The C drawn cameras; a ray is (column, row, -1), so its parameter is the depth in metres."""

    model_id: NDArray[np.int32]  # [C]
    columns: NDArray[np.float32]  # [C, W] from left to right
    rows: NDArray[np.float32]  # [C, H] from top to bottom
    grid: NDArray[np.float64]  # [C, 4] first column, column step, first row, row step
    depth_range: NDArray[np.float64]  # [C, 2] near and far plane


class Scene(NamedTuple):
    """All constants of a model as seen by some of its cameras."""

    geoms: GeomArrays
    lights: LightArrays
    cameras: CameraArrays
    sky: NDArray[np.uint8]  # [SKY_TABLE_SIZE, 3] over sin(elevation) from -1 to 1


def build_scene(
    model: mujoco.MjModel, cameras: Sequence[str], height: int, width: int, groups: Sequence[int]
) -> Scene:
    """Read what MuJoCo itself would draw of a model, without needing OpenGL.

    Raises:
        ConfigError: A camera name does not exist.
        SpecError: A geom, light or camera is of a kind that cannot be drawn.
    """
    known = [model.camera(i).name for i in range(model.ncam)]
    for name in cameras:
        if name not in known:
            raise unknown_name("BatchRenderer", "camera", name, known)
    if not cameras:
        raise SpecError("BatchRenderer: no camera was named; give at least one camera name.")
    _check_lights(model)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    views = [visual_scene(model, data, groups, model.camera(name).id) for name in cameras]
    return Scene(
        geoms=_geom_arrays(model, views[0]),
        lights=_light_arrays(views[0]),
        cameras=_camera_arrays(model, cameras, views, (height, width)),
        sky=_sky_table(model),
    )


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
    option = mujoco.MjvOption()
    option.geomgroup[:] = 0
    option.geomgroup[list(groups)] = 1
    option.sitegroup[:] = 0
    camera = mujoco.MjvCamera()
    if camera_id is not None:
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = camera_id
    scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 1000)
    categories = mujoco.mjtCatBit.mjCAT_STATIC | mujoco.mjtCatBit.mjCAT_DYNAMIC
    mujoco.mjv_updateScene(model, data, option, None, camera, categories, scene)
    return scene


def visual_geoms(scene: mujoco.MjvScene) -> list[mujoco.MjvGeom]:
    """Return the visible ones that stand for geoms of the model."""
    return [
        geom
        for geom in scene.geoms[: scene.ngeom]
        if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.rgba[3] > 0
    ]


def _geom_arrays(model: mujoco.MjModel, view: mujoco.MjvScene) -> GeomArrays:
    drawn = visual_geoms(view)
    for geom in drawn:
        where = f"geom '{model.geom(geom.objid).name}' (id {geom.objid})"
        if geom.type not in _PRIMITIVE_OF_GEOM_TYPE:
            kind = mujoco.mjtGeom(geom.type).name.removeprefix("mjGEOM_").lower()
            raise SpecError(
                f"BatchRenderer: {where} is a {kind}; only plane, sphere, capsule, ellipsoid, "
                "cylinder and box are drawn. Give it a primitive shape or another geom group."
            )
        if geom.rgba[3] < 0.995:  # MuJoCo's own limit
            raise SpecError(
                f"BatchRenderer: {where} has alpha {geom.rgba[3]:.3g}; transparency is not drawn. "
                "Make it opaque (1), invisible (0) or put it into another geom group."
            )
    count = len(drawn)
    size = np.zeros((count, 3))
    reach = np.zeros(count)
    texture_mean = np.ones((count, 3), np.float32)
    texture_scale = np.zeros((count, 2), np.float32)
    texture_colour = np.ones((count, 5, 3), np.float32)
    for index, geom in enumerate(drawn):
        size[index] = geom.size
        if geom.type == mujoco.mjtGeom.mjGEOM_PLANE:
            half = np.asarray(model.geom_size[geom.objid, :2])
            size[index] = (*np.where(half > 0, half, INFINITE_PLANE_SIZE), 1.0)
        # No tighter than the enclosing box; of a capsule that adds the caps.
        is_capsule = geom.type == mujoco.mjtGeom.mjGEOM_CAPSULE
        reach[index] = np.linalg.norm(size[index]) + is_capsule * size[index, 0]
        texture = _texture(model, geom.matid)
        if texture is None:
            continue
        is_flat = model.tex_type[_texture_id(model, geom.matid)] == mujoco.mjtTexture.mjTEXTURE_2D
        if geom.type == mujoco.mjtGeom.mjGEOM_PLANE and is_flat:
            texture_scale[index] = _periods_per_half_size(model, geom, size[index, :2])
            texture_colour[index] = _quadrant_means(texture)
        else:
            texture_mean[index] = texture.mean(axis=(0, 1))
    return GeomArrays(
        model_id=np.array([geom.objid for geom in drawn], np.int32),
        primitive=np.array([_PRIMITIVE_OF_GEOM_TYPE[geom.type] for geom in drawn], np.int32),
        size=size,
        reach=reach,
        texture_mean=texture_mean,
        emission=np.array([geom.emission for geom in drawn], np.float32),
        texture_scale=texture_scale,
        texture_colour=texture_colour,
    )


def _texture_id(model: mujoco.MjModel, material_id: int) -> int:
    if material_id < 0:
        return -1
    return int(model.mat_texid[material_id, mujoco.mjtTextureRole.mjTEXROLE_RGB])


def _texture(model: mujoco.MjModel, material_id: int) -> NDArray[np.float32] | None:
    texture_id = _texture_id(model, material_id)
    return None if texture_id < 0 else _pixels(model, texture_id)


def _pixels(model: mujoco.MjModel, texture_id: int) -> NDArray[np.float32]:
    shape = tuple(
        int(field[texture_id]) for field in (model.tex_height, model.tex_width, model.tex_nchannel)
    )
    start = int(model.tex_adr[texture_id])
    pixels = np.asarray(model.tex_data[start : start + int(np.prod(shape))]).reshape(shape)
    rgb = pixels[..., :3] if shape[2] >= 3 else pixels[..., :1].repeat(3, axis=-1)
    return rgb.astype(np.float32) / np.float32(255)


def _periods_per_half_size(
    model: mujoco.MjModel, geom: mujoco.MjvGeom, half_size: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Follow MuJoCo: repeats count per object, or per metre if uniform or the plane is infinite."""
    repeat = np.asarray(model.mat_texrepeat[geom.matid])
    per_metre = bool(model.mat_texuniform[geom.matid]) | (half_size >= INFINITE_PLANE_SIZE)
    return 0.5 * repeat * np.where(per_metre, half_size, 1.0)


def _quadrant_means(texture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reduce a texture to 2 x 2 mean colours (exact for a checker) and their mean."""
    rows, columns = (texture.shape[0] + 1) // 2, (texture.shape[1] + 1) // 2
    parts = [texture[:rows, :columns], texture[:rows, columns:]]
    parts += [texture[rows:, :columns], texture[rows:, columns:]]
    means = [(part if part.size else texture).mean(axis=(0, 1)) for part in parts]
    return np.stack([*means, texture.mean(axis=(0, 1))])


def _light_arrays(view: mujoco.MjvScene) -> LightArrays:
    lights = view.lights[: view.nlight]
    # At 180 degrees OpenGL has no cone at all, whatever the exponent.
    cutoff_deg = np.array([light.cutoff for light in lights])
    exponent = np.where(cutoff_deg < 180, [light.exponent for light in lights], 0.0)
    cosine = np.cos(np.radians(cutoff_deg))
    share = np.linspace(0.0, 1.0, SPOT_TABLE_SIZE)
    steps = cosine[:, None] + share * (1.0 - cosine[:, None])
    attenuation = np.array([light.attenuation for light in lights], np.float32)
    return LightArrays(
        model_id=np.array([-1 if light.headlight else light.id for light in lights], np.int32),
        is_spot=np.array(
            [light.type == mujoco.mjtLightType.mjLIGHT_SPOT for light in lights], bool
        ),
        spot_attenuation=attenuation.reshape(-1, 3),
        spot_cos_cutoff=cosine.astype(np.float32),
        spot_table=(np.maximum(steps, 0.0) ** exponent[:, None]).astype(np.float32),
    )


def _check_lights(model: mujoco.MjModel) -> None:
    drawn_types = (mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, mujoco.mjtLightType.mjLIGHT_SPOT)
    for index in np.flatnonzero(model.light_active):
        where = f"light '{model.light(index).name}' (id {index})"
        is_fixed = model.light_mode[index] == mujoco.mjtCamLight.mjCAMLIGHT_FIXED
        if model.light_bodyid[index] != 0 or not is_fixed:
            raise SpecError(
                f"BatchRenderer: {where} moves with a body; only lights fixed to the world are "
                "drawn. Put it into worldbody with mode 'fixed', or set active='false'."
            )
        if model.light_type[index] not in drawn_types:
            kind = mujoco.mjtLightType(model.light_type[index]).name.removeprefix("mjLIGHT_")
            raise SpecError(
                f"BatchRenderer: {where} is of type {kind.lower()}; only directional and spot "
                "lights are drawn. Change its type, or set active='false'."
            )


def _camera_arrays(
    model: mujoco.MjModel,
    names: Sequence[str],
    views: list[mujoco.MjvScene],
    resolution: tuple[int, int],
) -> CameraArrays:
    height, width = resolution
    grid = np.zeros((len(names), 4))
    depth_range = np.zeros((len(names), 2))
    for index, view in enumerate(views):
        frustum = view.camera[0]
        if frustum.orthographic:
            raise SpecError(
                f"BatchRenderer: camera '{names[index]}' is orthographic; only perspective "
                "cameras are drawn. Remove orthographic='true'."
            )
        near = frustum.frustum_near
        bottom, top = frustum.frustum_bottom / near, frustum.frustum_top / near
        centre = frustum.frustum_center / near
        half_width = frustum.frustum_width / near or 0.5 * (top - bottom) * width / height
        column_step, row_step = 2 * half_width / width, (bottom - top) / height
        left = centre - half_width
        grid[index] = left + column_step / 2, column_step, top + row_step / 2, row_step
        depth_range[index] = near, frustum.frustum_far
    return CameraArrays(
        model_id=np.array([model.camera(name).id for name in names], np.int32),
        columns=(grid[:, :1] + np.arange(width) * grid[:, 1:2]).astype(np.float32),
        rows=(grid[:, 2:3] + np.arange(height) * grid[:, 3:4]).astype(np.float32),
        grid=grid,
        depth_range=depth_range,
    )


def _sky_table(model: mujoco.MjModel) -> NDArray[np.uint8]:
    """Sample the first skybox over the elevation; it is drawn as the same all around."""
    table = np.zeros((SKY_TABLE_SIZE, 3), np.uint8)
    skyboxes = np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX)
    if not skyboxes.size:
        return table
    texture = _pixels(model, int(skyboxes[0]))
    size = texture.shape[1]
    faces = texture.reshape(-1, size, size, 3)  # right, left, up, down, front, back; or one for all
    right, up, down = faces[0], faces[2 % len(faces)], faces[3 % len(faces)]
    for index, sine in enumerate(np.linspace(-1.0, 1.0, SKY_TABLE_SIZE)):
        cosine = np.sqrt(max(0.0, 1.0 - sine * sine))
        if abs(sine) <= cosine:  # the side of the cube: row from the top
            face, along = right[:, size // 2], 0.5 - 0.5 * sine / max(cosine, 1e-9)
        else:  # its top or bottom: from the middle of the face outwards
            face, along = (up if sine > 0 else down)[size // 2], 0.5 + 0.5 * cosine / abs(sine)
        table[index] = np.rint(255 * face[min(size - 1, int(along * size))])
    return table
