"""Surfaces: which texture lies on a geom, and how a point gets its texture coordinates."""

import enum
from collections.abc import Sequence
from typing import NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_crl.sim.renderer.looks import LookName
from vla_crl.sim.renderer.textures import pixels_of

INFINITE_PLANE_SIZE = 1e6
"""Half size in metres of a plane that MuJoCo calls infinite; the far plane cuts it anyway."""


class Mapping(enum.IntEnum):
    """How points of a geom get their texture coordinates; CHECKER is FLAT with 2 x 2 colours."""

    NONE = 0
    CHECKER = 1
    FLAT = 2
    CUBE = 3
    TEXCOORDS = 4


class SurfaceArrays(NamedTuple):
    """S ways in which a texture lies on a drawn geom, in any material; the first: none does."""

    of_geom: NDArray[np.int32]  # [G, M + 1] surface by mjModel's materials; the last: of none
    mapping: NDArray[np.int32]  # [S] a Mapping
    texture: NDArray[np.int32]  # [S] index into the textures; -1: none, or a checker
    factors: NDArray[np.float32]  # [S, 3] from the point in the geom's scaled frame to coordinates
    checker: NDArray[np.float32]  # [S, 5, 3] mean of each quadrant, then of the whole


class _Surface(NamedTuple):
    """A row of `SurfaceArrays`, with an index into mjModel's textures."""

    mapping: Mapping
    texture: int
    factors: NDArray[np.float64]
    checker: NDArray[np.float32]


BARE = _Surface(Mapping.NONE, -1, np.zeros(3), np.ones((5, 3), np.float32))
"""No texture at all."""


def surface_arrays(
    model: mujoco.MjModel,
    geoms: Sequence[mujoco.MjvGeom],
    sizes: Sequence[NDArray[np.float64]],
    look: LookName,
) -> tuple[SurfaceArrays, list[int]]:
    """Prepare all geoms in all materials.

    Args:
        model: Not kept.
        geoms: The drawn ones.
        sizes: [3] half sizes of each, of a mesh those of a box that holds it.
        look: Whose pictures are drawn.

    Returns:
        The surfaces, and the textures that they show, as indices into mjModel's.
    """
    textured = [material for material in range(model.nmat) if _texture_id(model, material) >= 0]
    surfaces, of_geom = [BARE], np.zeros((len(geoms), model.nmat + 1), np.int32)
    for index, (geom, size) in enumerate(zip(geoms, sizes, strict=True)):
        for material in textured:
            of_geom[index, material] = len(surfaces)
            surfaces.append(_surface(model, geom, size, material, look))
    textures = sorted({surface.texture for surface in surfaces if surface.texture >= 0})
    index_of = {texture: index for index, texture in enumerate(textures)} | {-1: -1}
    return SurfaceArrays(
        of_geom=of_geom,
        mapping=np.array([surface.mapping for surface in surfaces], np.int32),
        texture=np.array([index_of[surface.texture] for surface in surfaces], np.int32),
        factors=np.array([s.factors for s in surfaces], np.float32).reshape(-1, 3),
        checker=np.array([s.checker for s in surfaces], np.float32).reshape(-1, 5, 3),
    ), textures


def _surface(
    model: mujoco.MjModel,
    geom: mujoco.MjvGeom,
    size: NDArray[np.float64],
    material: int,
    look: LookName,
) -> _Surface:
    """Follow MuJoCo: repeats count per object, or per metre if uniform or a plane is infinite.

    Args:
        model: Not kept.
        geom: A visual geom of it.
        size: [3] half sizes of a primitive.
        material: Index into mjModel's materials; has a texture.
        look: Whose pictures are drawn.
    """
    texture = _texture_id(model, material)
    factors, checker = np.zeros(3), np.ones((5, 3), np.float32)
    if geom.texcoord:
        return _Surface(Mapping.TEXCOORDS, texture, factors, checker)
    is_mesh = geom.type == mujoco.mjtGeom.mjGEOM_MESH
    is_uniform = bool(model.mat_texuniform[material])
    if model.tex_type[texture] != mujoco.mjtTexture.mjTEXTURE_2D:
        factors[:] = geom.size if is_uniform else 1.0
        return _Surface(Mapping.CUBE, texture, factors, checker)
    # Points of a mesh are in metres already, those of a primitive in half sizes.
    if is_mesh:
        scale = 1.0 if is_uniform else 1.0 / np.asarray(geom.size[:2])
    else:
        scale = np.where(is_uniform | (size[:2] >= INFINITE_PLANE_SIZE), size[:2], 1.0)
    factors[:2] = 0.5 * np.asarray(model.mat_texrepeat[material]) * scale
    pixels = pixels_of(model, texture, look)
    is_plane = geom.type == mujoco.mjtGeom.mjGEOM_PLANE
    if is_plane and all((part == part[:1, :1]).all() for part in _quadrants(pixels)):
        return _Surface(Mapping.CHECKER, -1, factors, _quadrant_means(pixels))
    return _Surface(Mapping.FLAT, texture, factors, checker)


def _texture_id(model: mujoco.MjModel, material_id: int) -> int:
    return int(model.mat_texid[material_id, mujoco.mjtTextureRole.mjTEXROLE_RGB])


def _quadrants(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    rows, columns = (pixels.shape[0] + 1) // 2, (pixels.shape[1] + 1) // 2
    parts = [pixels[:rows, :columns], pixels[:rows, columns:]]
    parts += [pixels[rows:, :columns], pixels[rows:, columns:]]
    return [part if part.size else pixels for part in parts]


def _quadrant_means(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    scaled = [part.astype(np.float32) / np.float32(255) for part in [*_quadrants(pixels), pixels]]
    return np.stack([part.mean(axis=(0, 1)) for part in scaled])
