"""The triangle meshes of a model, each at several levels of detail, as plain arrays."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_crl.sim.renderer.compilation import inlined
from vla_crl.sim.renderer.decimation import NUM_LEVELS, Level, levels_of_detail, unit_normals
from vla_crl.sim.renderer.patches import Patches, in_patches
from vla_crl.sim.renderer.shelf import Column, Content, Shelf, Shelves, content_key

MAX_DEVIATION = 0.5
"""Pixels by which almost all of a coarser copy's surface may be off."""

SMOOTH_COSINE = 0.8
"""Between the normals of a triangle and its corner: least at which MuJoCo keeps the corner's."""


class MeshArrays(NamedTuple):
    """M meshes. Normals have the length one.

    The last four arrays belong to all scenes of the process; ranges and faces count from the first
    vertex and face of the mesh in them.
    """

    levels: NDArray[np.int64]  # [M, NUM_LEVELS, 2] first and last + 1 patch
    deviation: NDArray[np.float64]  # [M, NUM_LEVELS] metres from the mesh itself
    first: NDArray[np.int64]  # [M, 2] vertex and face
    ranges: NDArray[np.int64]  # [P, 4] of a patch: first and last + 1 vertex, then face
    balls: NDArray[np.float64]  # [P, 4] see Patches
    cones: NDArray[np.float64]  # [P, 4]
    max_vertices: int  # of one patch
    vertices: NDArray[np.float32]  # [V, 3] metres in the geom's frame
    faces: NDArray[np.int32]  # [F, 3] index into the mesh's vertices
    normals: NDArray[np.float32]  # [F, 3, 3] of each corner
    texcoords: NDArray[np.float32]  # [F, 3, 2] of each corner; zeros without a texture


class _Note(NamedTuple):
    """What a scene must know about a mesh on the shelf."""

    levels: NDArray[np.int64]  # [NUM_LEVELS, 2] first and last + 1 of the patches
    deviation: NDArray[np.float64]  # [NUM_LEVELS]
    patches: Patches


_SHELVES = Shelves(
    Column(np.float32, (3,), 4_000_000),
    Column(np.int32, (3,), 4_000_000),
    Column(np.float32, (3, 3), 4_000_000),
    Column(np.float32, (3, 2), 4_000_000),
)


def mesh_arrays(
    model: mujoco.MjModel, mesh_ids: Sequence[int], *, level_of_detail: bool
) -> tuple[MeshArrays, Shelf]:
    """Read meshes of a model.

    Args:
        model: Not kept.
        mesh_ids: Indices into mjModel's meshes.
        level_of_detail: Whether coarser copies are made; else all levels are the mesh itself.

    Returns:
        The meshes, and the shelf on which they lie as long as somebody holds it.
    """
    raw = [_read_mesh(model, mesh_id) for mesh_id in mesh_ids]
    keys = [content_key(level_of_detail, *mesh[:-1]) for mesh in raw]
    wanted: dict[Hashable, Callable[[], Content]] = {
        key: partial(_content, mesh, level_of_detail=level_of_detail)
        for key, mesh in zip(keys, raw, strict=True)
    }
    shelf = _SHELVES.shelve(wanted)
    places = [shelf.place(key) for key in keys]
    notes: list[_Note] = [place.note for place in places]
    starts = np.cumsum([0, *(len(note.patches.ranges) for note in notes)])
    levels = [note.levels + start for note, start in zip(notes, starts[:-1], strict=True)]
    ranges = _joined([note.patches.ranges for note in notes], np.int64, 4)
    return MeshArrays(
        levels=np.array(levels, np.int64).reshape(-1, NUM_LEVELS, 2),
        deviation=np.array([note.deviation for note in notes]).reshape(-1, NUM_LEVELS),
        first=np.array([place.first[:2] for place in places], np.int64).reshape(-1, 2),
        ranges=ranges,
        balls=_joined([note.patches.balls for note in notes], np.float64, 4),
        cones=_joined([note.patches.cones for note in notes], np.float64, 4),
        max_vertices=int((ranges[:, 1] - ranges[:, 0]).max(initial=0)),
        **dict(zip(("vertices", "faces", "normals", "texcoords"), shelf.arrays, strict=True)),
    ), shelf


def _content(mesh: Level, *, level_of_detail: bool) -> Content:
    """Prepare a mesh of a model and its coarser copies."""
    mesh = _welded(_as_lit(mesh))
    copies = levels_of_detail(mesh) if level_of_detail else [mesh] * NUM_LEVELS
    levels, parts, patches = np.zeros((NUM_LEVELS, 2), np.int64), [], []
    num_vertices = num_faces = num_patches = 0
    for number, copy in enumerate(copies):
        if number and copy is copies[number - 1]:
            levels[number] = levels[number - 1]
            continue
        part, own = in_patches(copy)
        parts.append(part._replace(faces=part.faces + num_vertices))
        offset = (num_vertices, num_vertices, num_faces, num_faces)
        patches.append(own._replace(ranges=own.ranges + offset))
        levels[number] = num_patches, num_patches + len(own.ranges)
        num_vertices, num_faces = num_vertices + len(part.vertices), num_faces + len(part.faces)
        num_patches += len(own.ranges)
    texcoords = [
        part.texcoords if len(part.texcoords) else np.zeros((len(part.faces), 3, 2))
        for part in parts
    ]
    rows = (
        _joined([part.vertices for part in parts], np.float32, 3),
        _joined([part.faces for part in parts], np.int32, 3),
        _joined([part.normals for part in parts], np.float32, 3, 3),
        _joined(texcoords, np.float32, 3, 2),
    )
    deviation = np.array([copy.deviation for copy in copies])
    joined = Patches(*(np.concatenate(field) for field in zip(*patches, strict=True)))
    return Content(rows, _Note(levels, deviation, joined))


def _joined(arrays: Sequence[NDArray], dtype: type, *shape: int) -> NDArray:
    return np.concatenate([np.zeros((0, *shape), dtype), *arrays]).astype(dtype, copy=False)


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
    return Level(vertices, triangles, normals, texcoords)


def _as_lit(mesh: Level) -> Level:
    """Draw edges sharp where a mesh's own normals would round them, like MuJoCo without texture."""
    if len(mesh.texcoords):
        return mesh
    flat = unit_normals(mesh.vertices[mesh.faces])[:, None]
    is_smooth = (mesh.normals * flat).sum(axis=-1, keepdims=True) >= SMOOTH_COSINE
    return mesh._replace(normals=np.where(is_smooth, mesh.normals, flat).astype(np.float32))


def _welded(mesh: Level) -> Level:
    """Keep each vertex once; some files have every triangle's corners anew."""
    if len(mesh.vertices) <= len(mesh.faces):
        return mesh
    vertices, index = np.unique(mesh.vertices, axis=0, return_inverse=True)
    return mesh._replace(vertices=vertices, faces=index.reshape(-1)[mesh.faces].astype(np.int32))


@inlined
def level_for(meshes, mesh, pixels_per_metre):
    """Return the coarsest level that looks like the mesh itself."""
    chosen = 0
    for level in range(1, NUM_LEVELS):
        if meshes.deviation[mesh, level] * pixels_per_metre <= MAX_DEVIATION:
            chosen = level
    return chosen
