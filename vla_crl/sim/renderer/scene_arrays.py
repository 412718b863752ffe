"""Everything about a model that no pose changes, as plain arrays for the compiled loops."""

from collections.abc import Sequence
from typing import NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_crl.sim.renderer.drawable import PRIMITIVE_OF_GEOM_TYPE, Primitive, drawable_views
from vla_crl.sim.renderer.looks import LookName
from vla_crl.sim.renderer.meshes import MeshArrays, mesh_arrays
from vla_crl.sim.renderer.shelf import Shelf
from vla_crl.sim.renderer.surfaces import INFINITE_PLANE_SIZE, SurfaceArrays, surface_arrays
from vla_crl.sim.renderer.textures import TextureArrays, sky_table, texture_arrays
from vla_crl.sim.renderer.view import visual_geoms

OPAQUE = 0.995
"""Alpha from which MuJoCo takes a geom for opaque."""

SPOT_TABLE_SIZE = 1024


class GeomArrays(NamedTuple):
    """The G drawn geoms: the background, other opaque ones, transparent ones; in metres."""

    model_id: NDArray[np.int32]  # [G] index into mjModel's geoms
    primitive: NDArray[np.int32]  # [G]
    size: NDArray[np.float64]  # [G, 3] half sizes along the geom's axes, as mjvGeom has them
    reach: NDArray[np.float64]  # [G] greatest distance of a point from the centre
    mesh: NDArray[np.int32]  # [G] index into the meshes; -1: none
    num_background: int  # opaque and fixed to the world; 0 where keeping them drawn gains little
    num_opaque: int  # with the background
    opacity: NDArray[np.float32]  # [G] in (0, 1]
    emission: NDArray[np.float32]  # [G]


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
    is_fixed: NDArray[np.bool_]  # [C] to the world


class Scene(NamedTuple):
    """All constants of a model as seen by some of its cameras."""

    geoms: GeomArrays
    lights: LightArrays
    cameras: CameraArrays
    meshes: MeshArrays
    surfaces: SurfaceArrays
    textures: TextureArrays
    sky: NDArray[np.uint8]  # [S, 3] over sin(elevation) from -1 to 1


def build_scene(
    model: mujoco.MjModel,
    cameras: Sequence[str],
    resolution: tuple[int, int],
    groups: Sequence[int],
    *,
    level_of_detail: bool,
    look: LookName,
) -> tuple[Scene, list[Shelf]]:
    """Read what MuJoCo itself would draw of a model, without needing OpenGL.

    Args:
        model: Not kept.
        cameras: Names.
        resolution: Height and width in pixels.
        groups: Geom groups that are drawn.
        level_of_detail: Whether meshes get coarser copies.
        look: Whose pictures are drawn.

    Returns:
        The scene, and what must live as long as it.

    Raises:
        ConfigError: A camera name does not exist.
        SpecError: The model shows what cannot be drawn.
    """
    views = drawable_views("BatchRenderer", model, cameras, groups)
    drawn = _drawn_geoms(model, views[0])
    meshes = sorted({mesh for geom in drawn if (mesh := _mesh_id(model, geom)) >= 0})
    sizes = [_half_size(model, geom) for geom in drawn]
    surfaces, texture_ids = surface_arrays(model, drawn, sizes, look)
    textures, texture_shelf = texture_arrays(model, texture_ids, look, max(resolution))
    mesh_parts, mesh_shelf = mesh_arrays(model, meshes, level_of_detail=level_of_detail)
    scene = Scene(
        geoms=_geom_arrays(model, drawn, meshes),
        lights=_light_arrays(views[0]),
        cameras=_camera_arrays(model, cameras, views, resolution),
        meshes=mesh_parts,
        surfaces=surfaces,
        textures=textures,
        sky=sky_table(model, look),
    )
    return scene, [texture_shelf, mesh_shelf]


def _drawn_geoms(model: mujoco.MjModel, view: mujoco.MjvScene) -> list[mujoco.MjvGeom]:
    """Return the visual geoms: opaque ones that are fixed to the world, other opaque ones, others.

    Without meshes in the background there is nothing to be gained by sorting it out.
    """
    geoms = visual_geoms(view)
    mesh = mujoco.mjtGeom.mjGEOM_MESH
    has_background = any(geom.type == mesh and _is_background(model, geom) for geom in geoms)
    return sorted(
        geoms,
        key=lambda geom: (
            geom.rgba[3] < OPAQUE,
            has_background and not _is_background(model, geom),
        ),
    )


def _is_background(model: mujoco.MjModel, geom: mujoco.MjvGeom) -> bool:
    return geom.rgba[3] >= OPAQUE and _never_moves(model, model.geom_bodyid[geom.objid])


def _never_moves(model: mujoco.MjModel, body: int) -> bool:
    """Return whether a body is fixed to the world; a mocap body may be put elsewhere."""
    is_placed = model.body_mocapid[model.body_rootid[body]] >= 0
    return bool(model.body_weldid[body] == 0 and not is_placed)


def _mesh_id(model: mujoco.MjModel, geom: mujoco.MjvGeom) -> int:
    is_mesh = geom.type == mujoco.mjtGeom.mjGEOM_MESH
    return int(model.geom_dataid[geom.objid]) if is_mesh else -1


def _half_size(model: mujoco.MjModel, geom: mujoco.MjvGeom) -> NDArray[np.float64]:
    """Return the half sizes of a primitive, or of a box around the origin that holds the mesh."""
    mesh = _mesh_id(model, geom)
    if mesh >= 0:
        start, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
        return np.abs(model.mesh_vert[start : start + count]).max(axis=0).astype(np.float64)
    if geom.type == mujoco.mjtGeom.mjGEOM_PLANE:
        half = np.asarray(model.geom_size[geom.objid, :2])
        return np.array((*np.where(half > 0, half, INFINITE_PLANE_SIZE), 1.0))
    return np.array(geom.size, np.float64)


def _geom_arrays(
    model: mujoco.MjModel, drawn: Sequence[mujoco.MjvGeom], meshes: Sequence[int]
) -> GeomArrays:
    count = len(drawn)
    size = np.array([_half_size(model, geom) for geom in drawn]).reshape(count, 3)
    primitive = np.array([PRIMITIVE_OF_GEOM_TYPE[geom.type] for geom in drawn], np.int32)
    # No tighter than the enclosing box; of a capsule that adds the caps.
    reach = np.linalg.norm(size, axis=1) + (primitive == Primitive.CAPSULE) * size[:, 0]
    index_of_mesh = {mesh: index for index, mesh in enumerate(meshes)}
    mesh = [index_of_mesh.get(_mesh_id(model, geom), -1) for geom in drawn]
    background = [_is_background(model, geom) for geom in drawn]
    has_meshes = any(fixed and index >= 0 for fixed, index in zip(background, mesh, strict=True))
    return GeomArrays(
        model_id=np.array([geom.objid for geom in drawn], np.int32),
        primitive=primitive,
        size=size,
        reach=reach,
        mesh=np.array(mesh, np.int32),
        num_background=sum(background) if has_meshes else 0,
        num_opaque=sum(geom.rgba[3] >= OPAQUE for geom in drawn),
        # MuJoCo draws transparent geoms twice, from front to back and from back to front.
        opacity=np.array([1.0 - (1.0 - geom.rgba[3]) ** 2 for geom in drawn], np.float32),
        emission=np.array([geom.emission for geom in drawn], np.float32),
    )


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
        is_fixed=np.array([_never_moves(model, model.camera(n).bodyid[0]) for n in names], bool),
    )
