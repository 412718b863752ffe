"""Triangles sorted into small patches, most of which a camera can pass over as a whole."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_crl.sim.renderer.decimation import Level, area_vectors

PATCH_FACES = 64
"""Triangles of a patch, at most."""

NEVER = 2.0
"""Cutoff of a cone that hides no patch."""


class Patches(NamedTuple):
    """P patches; in the mesh's own frame, in metres."""

    ranges: NDArray[np.int64]  # [P, 4] first and last + 1 vertex, then face
    balls: NDArray[np.float64]  # [P, 4] centre and radius of what holds the patch
    cones: NDArray[np.float64]  # [P, 4] unit vector near all its normals; sine of their spread


def in_patches(level: Level) -> tuple[Level, Patches]:
    """Sort the triangles of a mesh; each patch gets vertices of its own.

    Neighbours that face the same way come together, so that what is beside the picture, or turned
    away, is told by one test. Triangles without area are left out: they are never seen.
    """
    vectors = area_vectors(level.vertices[level.faces])
    area = np.linalg.norm(vectors, axis=1)
    kept = np.flatnonzero(area > 0)
    normals = vectors[kept] / area[kept, None]
    order, first = _sorted(level.vertices[level.faces[kept]].mean(axis=1), normals)
    kept, normals = kept[order], normals[order]
    stop = np.append(first, len(kept))[1:]
    patch = np.repeat(np.arange(len(first)), stop - first)
    names = patch[:, None] * np.int64(len(level.vertices)) + level.faces[kept]
    own, faces = np.unique(names, return_inverse=True)
    owner, old = np.divmod(own, max(len(level.vertices), 1))
    vertices = np.ascontiguousarray(level.vertices[old], np.float32)
    first_vertex = np.searchsorted(owner, np.arange(len(first) + 1))
    ranges = np.column_stack([first_vertex[:-1], first_vertex[1:], first, stop]).astype(np.int64)
    texcoords = level.texcoords[kept] if len(level.texcoords) else level.texcoords
    sorted_level = Level(
        vertices,
        faces.reshape(-1, 3).astype(np.int32),
        np.ascontiguousarray(level.normals[kept]),
        np.ascontiguousarray(texcoords),
        level.deviation,
    )
    balls = _balls(vertices.astype(np.float64), first_vertex[:-1], owner)
    return sorted_level, Patches(ranges, balls, _cones(normals, first, patch))


def _sorted(
    centres: NDArray[np.float32], normals: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order of the triangles, and where in it each patch begins."""
    count = len(centres)
    if count <= PATCH_FACES:
        return np.arange(count), np.arange(min(count, 1))
    axis = np.abs(normals).argmax(axis=1)
    side = 2 * axis + (np.take_along_axis(normals, axis[:, None], axis=1)[:, 0] > 0)
    order = np.lexsort((_along_curve(centres), side))
    first_of_side = np.searchsorted(side[order], side[order])
    return order, np.flatnonzero((np.arange(count) - first_of_side) % PATCH_FACES == 0)


def _along_curve(points: NDArray[np.float32]) -> NDArray[np.int64]:
    """Number points by Morton's curve, on which what is near in space is mostly near."""
    low, extent = points.min(axis=0), float(np.ptp(points, axis=0).max())
    cell = ((points - low) * (1023.0 / max(extent, 1e-12))).astype(np.int64)
    code = np.zeros(len(points), np.int64)
    for bit in range(10):
        for axis in range(3):
            code |= ((cell[:, axis] >> bit) & 1) << (3 * bit + axis)
    return code


def _balls(
    vertices: NDArray[np.float64], first: NDArray[np.int64], owner: NDArray[np.int64]
) -> NDArray[np.float64]:
    if not len(first):
        return np.zeros((0, 4))
    low, high = np.minimum.reduceat(vertices, first), np.maximum.reduceat(vertices, first)
    centre = (low + high) / 2
    distance = np.linalg.norm(vertices - centre[owner], axis=1)
    return np.column_stack([centre, np.maximum.reduceat(distance, first)])


def _cones(
    normals: NDArray[np.float64], first: NDArray[np.int64], patch: NDArray[np.int64]
) -> NDArray[np.float64]:
    if not len(first):
        return np.zeros((0, 4))
    axis = np.add.reduceat(normals, first)
    axis /= np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-12)
    least = np.minimum.reduceat((normals * axis[patch]).sum(axis=1), first)
    sine = np.sqrt(np.maximum(1.0 - least**2, 0.0))
    return np.column_stack([axis, np.where(least > 0.0, sine, NEVER)])
