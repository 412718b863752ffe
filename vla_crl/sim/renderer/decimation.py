"""Coarser copies of a triangle mesh, with normals and texture coordinates, kept on the disk."""

import hashlib
import logging
import tempfile
from pathlib import Path
from typing import NamedTuple

import fast_simplification
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from vla_crl.files.reading import read_arrays
from vla_crl.files.writing import cache_folder

NUM_LEVELS = 6
REDUCTION = 3
"""Each level has this many times fewer triangles than the one before, if that can be reached."""

MIN_FACES = 64
"""No level has fewer triangles."""

SMALL_MESH = 500
"""Triangles below which a mesh is left as it is: such models have no detail to spare."""

LEAST_GAIN = 0.7
"""A level with more than this part of the triangles of the one before is not worth having."""

LEAST_COSINE = 0.5
"""Between normals of a level's triangle and of its corner; below, the corner gets the former."""

NUM_SAMPLES = 8000
"""Points per surface for measuring how far two of them are apart."""

QUANTILE = 0.98
"""Part of a surface that must be near the other one; the rest may be a screw or a spike."""

NORMAL_WEIGHT = 0.03
"""Of a difference between unit normals, in extents of the mesh.

So that one side of a thin wall does not stand for the other.
"""

FORMAT = 2
"""Part of the key of what lies on the disk; goes up with every change of what is computed here."""

logger = logging.getLogger(__name__)


class Level(NamedTuple):
    """One level of detail; V vertices, F triangles, counter-clockwise seen from outside."""

    vertices: NDArray[np.float32]  # [V, 3] metres
    faces: NDArray[np.int32]  # [F, 3] index into vertices
    normals: NDArray[np.float32]  # [F, 3, 3] unit vector of each corner
    texcoords: NDArray[np.float32]  # [F, 3, 2] of each corner; [0, 3, 2] without a texture
    deviation: float = 0.0  # metres from the mesh itself, for QUANTILE of both surfaces


def levels_of_detail(mesh: Level) -> list[Level]:
    """Return a mesh and its coarser copies, computed once per user and mesh.

    The copies lie in `cache_folder("meshes")` under a hash of the mesh; a file there that cannot
    be read is written anew. Where that folder cannot be written, they are computed again by every
    process.

    Returns:
        NUM_LEVELS levels, the finest first; a mesh that is too small for so many repeats the last.
    """
    coarse: list[Level] = []
    if len(mesh.faces) >= SMALL_MESH:
        file = cache_folder("meshes") / f"{_content_hash(mesh)}.npz"
        kept = _read(file)
        coarse = _decimate(mesh) if kept is None else kept
        if kept is None:
            _write(file, coarse)
    levels = [mesh, *coarse]
    return levels + levels[-1:] * (NUM_LEVELS - len(levels))


def _decimate(mesh: Level) -> list[Level]:
    """Collapse edges by quadric error; corners inherit from the vertices that were merged.

    A triangle that survives is one of the original's, grown. Its corners take texture coordinates
    only from merged corners on their side of a seam, so that no seam is smeared, and normals only
    from those on their side of a sharp edge, so that no edge is rounded.
    """
    # Vertices are doubled along seams; decimating them apart would tear the surface open.
    positions, welded = np.unique(mesh.vertices, axis=0, return_inverse=True)
    triangles = welded.reshape(-1)[mesh.faces].astype(np.int32)
    # Relative to the size: the library compares areas with fixed numbers.
    scale = max(float(np.ptp(positions, axis=0).max()), 1e-12)
    points = (positions / scale).astype(np.float32)
    levels = []
    for level in range(1, NUM_LEVELS):
        count = len(mesh.faces) // REDUCTION**level
        if count < MIN_FACES:
            break
        *_, collapses = fast_simplification.simplify(
            points, triangles, target_count=count, return_collapses=True
        )
        merged_points, _, merged = fast_simplification.replay_simplification(
            points, triangles, collapses
        )
        vertices = _nearest_members((merged_points * scale).astype(np.float32), positions, merged)
        copy = _survivors(mesh, positions, triangles, vertices, merged)
        if len(copy.faces) > LEAST_GAIN * len((levels or [mesh])[-1].faces):
            break
        levels.append(copy)
    return levels


def _nearest_members(
    vertices: NDArray[np.float32], positions: NDArray[np.float32], merged: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Move each vertex to the nearest of the positions that it replaces.

    The quadric error has its least value far away where the merged faces are almost parallel.
    """
    order = np.lexsort((np.linalg.norm(positions - vertices[merged], axis=1), merged))
    replaced, first = np.unique(merged[order], return_index=True)
    moved = vertices.copy()
    moved[replaced] = positions[order[first]]
    return moved


def _survivors(
    mesh: Level,
    positions: NDArray[np.float32],
    triangles: NDArray[np.int32],
    vertices: NDArray[np.float32],
    merged: NDArray[np.int64],
) -> Level:
    """Build the level of the triangles whose corners were not merged with one another.

    Args:
        mesh: The original.
        positions: [P, 3] its vertices, each once.
        triangles: [F, 3] index into positions.
        vertices: [V, 3] of the level.
        merged: [P] which of them each position went to.
    """
    corners = merged[triangles]
    area = np.linalg.norm(area_vectors(vertices[corners]), axis=1)
    survives = area > 0
    texcoords = mesh.texcoords
    if len(texcoords):
        moved = np.linalg.norm(positions - vertices[merged], axis=1)[triangles]
        nearest = _least_moved(_clusters(triangles, corners, texcoords), moved)
        texcoords = texcoords.reshape(-1, 2)[nearest][survives]
    faces = corners[survives].astype(np.int32)
    weight = np.linalg.norm(area_vectors(positions[triangles]), axis=1)
    normals = _mean_normals(_clusters(triangles, corners, mesh.normals), mesh.normals, weight)
    normals = normals[survives]
    # Both sides of a thin wall may be one smooth piece; their mean is of no use.
    flat = unit_normals(vertices[faces])[:, None]
    is_right = (normals * flat).sum(axis=-1, keepdims=True) >= LEAST_COSINE
    return Level(
        vertices=vertices,
        faces=faces,
        normals=np.where(is_right, normals, flat).astype(np.float32),
        texcoords=np.ascontiguousarray(texcoords, np.float32),
        deviation=_deviation(positions[triangles], vertices[faces]),
    )


def _clusters(
    triangles: NDArray[np.int32], corners: NDArray[np.int64], attribute: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Sort the corners by the vertex that they went to and by their side of a seam or edge.

    Args:
        triangles: [F, 3] index into positions.
        corners: [F, 3] the vertex that each corner went to.
        attribute: [F, 3, K] of the corners; a seam is where it differs at the same position.

    Returns:
        [F, 3] number of a cluster: corners with one vertex, linked by triangles that vanished.
    """
    rows = attribute.reshape(-1, attribute.shape[-1]).astype(np.float64)
    keyed = np.column_stack([triangles.reshape(-1), rows])
    wedges, wedge = np.unique(keyed, axis=0, return_inverse=True)
    wedge = wedge.reshape(-1, 3)
    # Each edge of each triangle whose two ends went to the same vertex.
    together = corners == np.roll(corners, -1, axis=1)
    start, stop = wedge[together], np.roll(wedge, -1, axis=1)[together]
    graph = coo_array((np.ones(len(start), bool), (start, stop)), (len(wedges), len(wedges)))
    return connected_components(graph, directed=False)[1][wedge]


def _least_moved(cluster: NDArray[np.int64], moved: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return [F, 3] for each corner that corner of its cluster that moved least."""
    order = np.lexsort((moved.reshape(-1), cluster.reshape(-1)))
    _, first = np.unique(cluster.reshape(-1)[order], return_index=True)
    return order[first][cluster]


def _mean_normals(
    cluster: NDArray[np.int64], normals: NDArray[np.float32], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return [F, 3, 3] the unit mean over the corners of a cluster, weighted by area."""
    weighted = (normals * weight[:, None, None]).reshape(-1, 3)
    total = [np.bincount(cluster.reshape(-1), weighted[:, axis]) for axis in range(3)]
    mean = np.stack(total, axis=1)[cluster]
    return mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-30)


def _deviation(original: NDArray[np.float32], copy: NDArray[np.float32]) -> float:
    """Return the distance in metres below which QUANTILE of either surface is from the other.

    Args:
        original: [F, 3, 3] corners of triangles.
        copy: [F', 3, 3] corners of triangles.
    """
    per_normal = NORMAL_WEIGHT * float(np.ptp(original.reshape(-1, 3), axis=0).max())
    first, second = _samples(original), _samples(copy)
    return max(_distance(first, second, per_normal), _distance(second, first, per_normal))


def _samples(corners: NDArray[np.float32]) -> tuple[NDArray[np.float64], ...]:
    """Return evenly spread points [N, 3] of a surface, unit normals there, and their spacing."""
    edges = np.cumsum(np.linalg.norm(area_vectors(corners), axis=1))
    number = np.arange(NUM_SAMPLES)
    triangle = np.searchsorted(edges, (number + 0.5) / NUM_SAMPLES * edges[-1])
    # The R2 sequence, folded into a triangle: a plane is covered more evenly than by chance.
    second, third = (
        (0.5 + number * step) % 1.0 for step in (0.7548776662466927, 0.5698402909980532)
    )
    folded = second + third > 1.0
    second, third = np.where(folded, 1.0 - second, second), np.where(folded, 1.0 - third, third)
    a, b, c = corners[triangle].astype(np.float64).transpose(1, 0, 2)
    points = a + second[:, None] * (b - a) + third[:, None] * (c - a)
    return points, unit_normals(corners)[triangle], np.sqrt(0.5 * edges[-1:] / NUM_SAMPLES)


def _distance(
    first: tuple[NDArray[np.float64], ...],
    second: tuple[NDArray[np.float64], ...],
    per_normal: float,
) -> float:
    """Return how far QUANTILE of the first surface's samples are at most from the second.

    Args:
        first: Samples.
        second: Samples.
        per_normal: Metres that one unit of difference between normals counts.
    """
    (points, normals, _), (others, their_normals, spacing) = first, second
    tree = KDTree(np.hstack([others, per_normal * their_normals]))
    _, nearest = tree.query(np.hstack([points, per_normal * normals]))
    offset = points - others[nearest]
    distance = np.linalg.norm(offset, axis=1)
    # Samples of one surface are apart, too: nearby, only the distance from the plane counts.
    from_plane = np.abs((offset * their_normals[nearest]).sum(axis=1))
    distance = np.where(distance > 3 * spacing, distance, from_plane)
    turned = per_normal * np.linalg.norm(normals - their_normals[nearest], axis=1)
    return float(np.quantile(np.hypot(distance, turned), QUANTILE))


def area_vectors(corners: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return [F, 3] normals of the triangles [F, 3, 3], as long as twice their area."""
    a, b, c = corners.astype(np.float64).transpose(1, 0, 2)
    return np.cross(b - a, c - a)


def unit_normals(corners: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return [F, 3] unit normals of the triangles [F, 3, 3]; of one without area: zeros."""
    vectors = area_vectors(corners)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)


def _content_hash(mesh: Level) -> str:
    digest = hashlib.blake2b(digest_size=16)
    settings = (FORMAT, NUM_LEVELS, REDUCTION, MIN_FACES, SMALL_MESH, LEAST_GAIN)
    settings += (LEAST_COSINE, NUM_SAMPLES, QUANTILE, NORMAL_WEIGHT)
    digest.update(repr((settings, fast_simplification.__version__)).encode())
    for array in mesh[:-1]:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _read(file: Path) -> list[Level] | None:
    """Return the levels in a file, None if it does not exist or is broken."""
    if not file.exists():
        return None
    try:
        arrays = read_arrays(file)
        return [
            Level(
                *(arrays[f"{name}{level}"] for name in Level._fields[:-1]),
                deviation=float(arrays[f"deviation{level}"]),
            )
            for level in range(int(arrays["num_levels"]))
        ]
    except (TypeError, ValueError, KeyError) as error:
        logger.warning("%s: broken cache file (%s); it is written anew.", file, error)
        return None


def _write(file: Path, levels: list[Level]) -> None:
    """Write through a temporary file, so that no reader ever sees half of it."""
    arrays = {"num_levels": np.array(len(levels))} | {
        f"{name}{index}": np.asarray(array)
        for index, level in enumerate(levels)
        for name, array in level._asdict().items()
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as temporary:
            np.savez(temporary, allow_pickle=False, **arrays)
        Path(temporary.name).replace(file)
    except OSError as error:
        logger.warning(
            "%s: meshes cannot be cached (%s); each process decimates them again. "
            "Make the folder writable or set XDG_CACHE_HOME.",
            file.parent,
            error,
        )
