"""Coarser copies of a triangle mesh, with normals and texture coordinates, kept on the disk."""

import hashlib
import logging
import os
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import fast_simplification
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

NUM_LEVELS = 5
REDUCTION = 4
"""Each level has this many times fewer triangles than the one before: twice their edge length."""

MIN_FACES = 48
"""No level has fewer triangles, unless the mesh itself has."""

FORMAT = 1
"""Part of the key of what lies on the disk; goes up with every change of what is computed here."""

logger = logging.getLogger(__name__)


class Level(NamedTuple):
    """One level of detail; V vertices, F triangles, counter-clockwise seen from outside."""

    vertices: NDArray[np.float32]  # [V, 3] metres
    faces: NDArray[np.int32]  # [F, 3] index into vertices
    normals: NDArray[np.float32]  # [F, 3, 3] unit vector of each corner
    texcoords: NDArray[np.float32]  # [F, 3, 2] of each corner; [0, 3, 2] without a texture


def levels_of_detail(mesh: Level) -> list[Level]:
    """Return a mesh and its coarser copies, computed once per user and mesh.

    The copies lie in `cache_folder()` under a hash of the mesh; a file there that cannot be read is
    written anew. Where that folder cannot be written, they are computed again by every process.

    Returns:
        NUM_LEVELS levels, the finest first; a mesh that is too small for so many repeats the last.
    """
    coarse: list[Level] = []
    if len(mesh.faces) >= REDUCTION * MIN_FACES:
        file = cache_folder() / f"{_content_hash(mesh)}.npz"
        coarse = _read(file) or _decimate(mesh)
        if not file.exists():
            _write(file, coarse)
    levels = [mesh, *coarse]
    return levels + levels[-1:] * (NUM_LEVELS - len(levels))


def cache_folder() -> Path:
    """Return where coarser copies are kept: `$XDG_CACHE_HOME` or `~/.cache`, then `vla_crl/meshes`.

    It may be deleted at any time.
    """
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "vla_crl" / "meshes"


def _decimate(mesh: Level) -> list[Level]:
    """Collapse edges by quadric error; corners inherit from the vertices that were merged.

    A triangle that survives is one of the original's, grown. Its corners take their texture
    coordinates from the same chart (piece of the surface without a seam), so that no seam is
    smeared, and their normals from the same smooth piece, so that no edge is rounded.
    """
    # Vertices are doubled along seams; decimating them apart would tear the surface open.
    positions, welded = np.unique(mesh.vertices, axis=0, return_inverse=True)
    triangles = welded.reshape(-1)[mesh.faces].astype(np.int32)
    # Relative to the size: the library compares areas with fixed numbers.
    scale = max(float(np.ptp(positions, axis=0).max()), 1e-12)
    points = (positions / scale).astype(np.float64)
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
        vertices = (merged_points * scale).astype(np.float32)
        levels.append(_survivors(mesh, positions, triangles, vertices, merged))
    return levels


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
    a, b, c = corners.T
    survives = (a != b) & (b != c) & (a != c)
    keys = (triangles, corners, survives)
    offset = np.linalg.norm(positions - vertices[merged], axis=1)[triangles]
    texcoords = mesh.texcoords
    if len(texcoords):
        nearest = _best_corner(_pieces(triangles, texcoords), keys, offset)
        texcoords = texcoords.reshape(-1, 2)[nearest]
    area = np.linalg.norm(_area_vectors(positions[triangles]), axis=1)
    return Level(
        vertices=vertices,
        faces=corners[survives].astype(np.int32),
        normals=_mean_normals(_pieces(triangles, mesh.normals), keys, mesh.normals, area),
        texcoords=np.ascontiguousarray(texcoords, np.float32),
    )


def _pieces(triangles: NDArray[np.int32], attribute: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return [F] the connected piece of each triangle; corners connect if their attribute agrees.

    Args:
        triangles: [F, 3] index into positions.
        attribute: [F, 3, K] of the corners.
    """
    rows = attribute.reshape(-1, attribute.shape[-1]).astype(np.float64)
    keyed = np.column_stack([triangles.reshape(-1), rows])
    wedges, wedge = np.unique(keyed, axis=0, return_inverse=True)
    wedge = wedge.reshape(-1, 3)
    start, stop = wedge[:, [0, 1]].reshape(-1), wedge[:, [1, 2]].reshape(-1)
    graph = coo_array((np.ones(len(start), bool), (start, stop)), (len(wedges), len(wedges)))
    return connected_components(graph, directed=False)[1][wedge[:, 0]].astype(np.int64)


def _groups(piece: NDArray[np.int64], corners: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the pairs of a piece and a level's vertex; [F * 3] the number of each corner."""
    pair = piece[:, None] * (corners.max() + 1) + corners
    return np.unique(pair.reshape(-1), return_inverse=True)[1].reshape(-1)


def _best_corner(
    piece: NDArray[np.int64], keys: tuple[NDArray, ...], offset: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Return [S, 3] for each surviving corner the original corner of its piece that moved least."""
    _, corners, survives = keys
    group = _groups(piece, corners)
    order = np.lexsort((np.arange(group.size), offset.reshape(-1), group))
    _, first = np.unique(group[order], return_index=True)
    return order[first][group.reshape(-1, 3)[survives]]


def _mean_normals(
    piece: NDArray[np.int64],
    keys: tuple[NDArray, ...],
    normals: NDArray[np.float32],
    area: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Return [S, 3, 3] the mean over the merged corners of a piece, weighted by area."""
    _, corners, survives = keys
    group = _groups(piece, corners)
    weighted = (normals * area[:, None, None]).reshape(-1, 3)
    total = np.stack([np.bincount(group, weighted[:, axis]) for axis in range(3)], axis=1)
    total = total[group.reshape(-1, 3)[survives]]
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    # Opposite normals cancel, on a thin sheet for example: then the corner keeps its own.
    mean = np.where(
        length > 1e-9 * area.max(), total / np.maximum(length, 1e-30), normals[survives]
    )
    return np.ascontiguousarray(mean, np.float32)


def _area_vectors(corners: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return [F, 3] normals of the triangles [F, 3, 3], as long as twice their area."""
    a, b, c = corners.astype(np.float64).transpose(1, 0, 2)
    return np.cross(b - a, c - a)


def _content_hash(mesh: Level) -> str:
    digest = hashlib.blake2b(digest_size=16)
    settings = (FORMAT, NUM_LEVELS, REDUCTION, MIN_FACES, fast_simplification.__version__)
    digest.update(repr(settings).encode())
    for array in mesh:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _read(file: Path) -> list[Level] | None:
    """Return the levels in a file, None if it does not exist or is broken (then it is removed)."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            levels = [
                Level._make(arrays[f"{name}{level}"] for name in Level._fields)
                for level in range(int(arrays["num_levels"]))
            ]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s: broken cache file (%s); it is written anew.", file, error)
        file.unlink(missing_ok=True)
        return None
    return levels


def _write(file: Path, levels: list[Level]) -> None:
    """Write through a temporary file, so that no reader ever sees half of it."""
    arrays = {
        f"{name}{index}": array
        for index, level in enumerate(levels)
        for name, array in level._asdict().items()
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as temporary:
            np.savez(temporary, num_levels=np.array(len(levels)), **arrays)
        Path(temporary.name).replace(file)
    except OSError as error:
        logger.warning(
            "%s: meshes cannot be cached (%s); each process decimates them again. "
            "Make the folder writable or set XDG_CACHE_HOME.",
            file.parent,
            error,
        )
