"""The triangle meshes of a model, each at several levels of detail, as plain arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_crl.sim.renderer.compilation import inlined
from vla_crl.sim.renderer.decimation import NUM_LEVELS, Level, levels_of_detail, unit_normals

MAX_DEVIATION = 0.5
"""Pixels by which almost all of a coarser copy's surface may be off."""

SMOOTH_COSINE = 0.8
"""Between the normals of a triangle and its corner: least at which MuJoCo keeps the corner's."""


class MeshArrays(NamedTuple):
    """M meshes; all their levels lie one after another. Normals have the length one."""

    levels: NDArray[np.int64]  # [M, NUM_LEVELS, 4] first and last + 1 vertex, then face
    deviation: NDArray[np.float64]  # [M, NUM_LEVELS] metres from the mesh itself
    vertices: NDArray[np.float32]  # [V, 3] metres in the geom's frame
    faces: NDArray[np.int32]  # [F, 3] index into vertices
    normals: NDArray[np.float32]  # [F, 3, 3] of each corner
    texcoords: NDArray[np.float32]  # [F, 3, 2] of each corner; zeros without a texture
    max_vertices: int  # of one level


def mesh_arrays(
    model: mujoco.MjModel, mesh_ids: Sequence[int], *, level_of_detail: bool
) -> MeshArrays:
    """Read meshes of a model.

    Args:
        model: Not kept.
        mesh_ids: Indices into mjModel's meshes.
        level_of_detail: Whether coarser copies are made; else all levels are the mesh itself.
    """
    levels = np.zeros((len(mesh_ids), NUM_LEVELS, 4), np.int64)
    deviation = np.zeros((len(mesh_ids), NUM_LEVELS))
    parts: list[Level] = []
    num_vertices = num_faces = 0
    for index, mesh_id in enumerate(mesh_ids):
        mesh = _read_mesh(model, mesh_id)
        copies = levels_of_detail(mesh) if level_of_detail else [mesh] * NUM_LEVELS
        for number, copy in enumerate(copies):
            deviation[index, number] = copy.deviation
            if number and copy is copies[number - 1]:
                levels[index, number] = levels[index, number - 1]
                continue
            parts.append(copy._replace(faces=copy.faces + num_vertices))
            stop, last = num_vertices + len(copy.vertices), num_faces + len(copy.faces)
            levels[index, number] = num_vertices, stop, num_faces, last
            num_vertices, num_faces = stop, last
    texcoords = [
        part.texcoords if len(part.texcoords) else np.zeros((len(part.faces), 3, 2))
        for part in parts
    ]
    return MeshArrays(
        levels=levels,
        deviation=deviation,
        vertices=_joined([part.vertices for part in parts], np.float32, 3),
        faces=_joined([part.faces for part in parts], np.int32, 3),
        normals=_joined([part.normals for part in parts], np.float32, 3, 3),
        texcoords=_joined(texcoords, np.float32, 3, 2),
        max_vertices=max((len(part.vertices) for part in parts), default=0),
    )


def _joined(arrays: Sequence[NDArray], dtype: type, *shape: int) -> NDArray:
    return np.concatenate([np.zeros((0, *shape)), *arrays]).astype(dtype)


def _read_mesh(model: mujoco.MjModel, mesh_id: int) -> Level:
    def rows(array: NDArray, address: NDArray, count: NDArray) -> NDArray:
        start = int(address[mesh_id])
        return np.array(array[start : start + int(count[mesh_id])])

    def faces(array: NDArray) -> NDArray:
        return rows(array, model.mesh_faceadr, model.mesh_facenum)

    vertices, triangles = (
        rows(model.mesh_vert, model.mesh_vertadr, model.mesh_vertnum),
        faces(model.mesh_face),
    )
    pool = rows(model.mesh_normal, model.mesh_normaladr, model.mesh_normalnum)
    normals = pool[faces(model.mesh_facenormal)]
    texcoords = np.zeros((0, 3, 2), np.float32)
    if model.mesh_texcoordadr[mesh_id] >= 0:
        pool = rows(model.mesh_texcoord, model.mesh_texcoordadr, model.mesh_texcoordnum)
        texcoords = pool[faces(model.mesh_facetexcoord)]
    else:
        # Like MuJoCo, which draws edges sharp where a mesh's own normals would round them.
        flat = unit_normals(vertices[triangles])[:, None]
        is_smooth = (normals * flat).sum(axis=-1, keepdims=True) >= SMOOTH_COSINE
        normals = np.where(is_smooth, normals, flat).astype(np.float32)
    return Level(vertices, triangles, normals, texcoords)


@inlined
def level_for(meshes, mesh, pixels_per_metre):
    """Return the coarsest level that looks like the mesh itself."""
    chosen = 0
    for level in range(1, NUM_LEVELS):
        if meshes.deviation[mesh, level] * pixels_per_metre <= MAX_DEVIATION:
            chosen = level
    return chosen
