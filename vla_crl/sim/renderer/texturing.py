"""Textures on surfaces: the colours that are already in an image, times those of a picture."""

import math

import numpy as np

from vla_crl.sim.renderer.compilation import HALF, ONE, TINY, ZERO, compiled, inlined
from vla_crl.sim.renderer.frame import Workspace, eye_in_geom, ray, row_ramp, row_start, window_of
from vla_crl.sim.renderer.scene_arrays import Scene
from vla_crl.sim.renderer.surfaces import Mapping
from vla_crl.sim.renderer.textures import cube_coordinates, look_up

NO_TEXTURE = int(Mapping.NONE)
CHECKER = int(Mapping.CHECKER)
FLAT = int(Mapping.FLAT)
CUBE = int(Mapping.CUBE)
TEXCOORDS = int(Mapping.TEXCOORDS)


@compiled
def apply_texture(
    scene: Scene, geom: int, surface: int, camera: int, workspace: Workspace, image: np.ndarray
):
    """Multiply the colours of a geom by a texture.

    Args:
        scene: Constants of the model.
        geom: Index into the drawn geoms.
        surface: Index into the surfaces; has a texture.
        camera: Index into the drawn cameras.
        workspace: What `find_surfaces` left; of a mesh, with weights.
        image: [H, W, 3] uint8; written.
    """
    columns, rows = scene.cameras.columns[camera], scene.cameras.rows[camera]
    pixel = np.float32(abs(scene.cameras.grid[camera, 3]))  # its size at depth 1
    if scene.surfaces.mapping[surface] == CHECKER:
        _apply_checker(scene.surfaces, surface, geom, pixel, columns, rows, workspace.frame, image)
    else:
        _apply_picture(scene, geom, surface, pixel, (columns, rows), workspace, image)


@compiled
def _apply_picture(scene, geom, surface, pixel, rays, workspace, image):
    frame = workspace.frame
    mapping, texture = scene.surfaces.mapping[surface], scene.surfaces.texture[surface]
    textures, texcoords, factors = scene.textures, scene.meshes.texcoords, scene.surfaces.factors
    factor = (factors[surface, 0], factors[surface, 1], factors[surface, 2])
    height = np.float32(textures.copies[texture, 0, 0, 1])
    width = np.float32(textures.copies[texture, 0, 0, 2])
    left, right, top, bottom = window_of(frame, geom)
    for y in range(np.int64(top), np.int64(bottom)):
        for x in range(np.int64(left), np.int64(right)):
            if frame.geom[y, x] != geom:
                continue
            if mapping == TEXCOORDS:
                face = 0
                s, t, area = _by_corners(texcoords, y, x, workspace)
                footprint = pixel * math.sqrt(area * height * width)
            elif mapping == FLAT:
                face = 0
                s, t, footprint = _by_position(geom, y, x, factor, (width, height), rays, frame)
            else:
                face, s, t, footprint = _by_direction(geom, y, x, factor, width, rays, frame)
            red, green, blue = look_up(textures, texture, face, s, t, footprint, mapping != CUBE)
            image[y, x, 0] = np.uint8(image[y, x, 0] * red + HALF)
            image[y, x, 1] = np.uint8(image[y, x, 1] * green + HALF)
            image[y, x, 2] = np.uint8(image[y, x, 2] * blue + HALF)


@inlined
def _by_corners(uv, y, x, workspace):
    """Interpolate between the corners; return s, t and the area, in s and t, of a unit pixel."""
    face, depth, weight = workspace.face[y, x], workspace.frame.depth[y, x], workspace.weight
    second, third, ratio = weight[0, y, x], weight[1, y, x], weight[2, y, x]
    es, et = uv[face, 1, 0] - uv[face, 0, 0], uv[face, 1, 1] - uv[face, 0, 1]
    fs, ft = uv[face, 2, 0] - uv[face, 0, 0], uv[face, 2, 1] - uv[face, 0, 1]
    s, t = uv[face, 0, 0] + second * es + third * fs, uv[face, 0, 1] + second * et + third * ft
    return s, t, abs(es * ft - et * fs) * ratio * depth * depth


@inlined
def _by_position(geom, y, x, factor, size, rays, frame):
    """Project along the geom's z axis, like MuJoCo: s = x - 1/2 and t = -y - 1/2, scaled."""
    p = _point(geom, y, x, factor, rays, frame)
    y1, x1 = _next(geom, y, x, 0, 1, frame)
    y2, x2 = _next(geom, y, x, 1, 0, frame)
    q = _point(geom, y1, x1, factor, rays, frame)
    r = _point(geom, y2, x2, factor, rays, frame)
    right = (size[0] * (q[0] - p[0])) ** 2 + (size[1] * (q[1] - p[1])) ** 2
    down = (size[0] * (r[0] - p[0])) ** 2 + (size[1] * (r[1] - p[1])) ** 2
    return p[0] - HALF, -p[1] - HALF, math.sqrt(max(right, down))


@inlined
def _by_direction(geom, y, x, factor, size, rays, frame):
    """Look from the middle of a cube through the point, scaled, at its faces, like MuJoCo."""
    p = _point(geom, y, x, factor, rays, frame)
    y1, x1 = _next(geom, y, x, 0, 1, frame)
    y2, x2 = _next(geom, y, x, 1, 0, frame)
    q = _point(geom, y1, x1, factor, rays, frame)
    r = _point(geom, y2, x2, factor, rays, frame)
    right = (q[0] - p[0]) ** 2 + (q[1] - p[1]) ** 2 + (q[2] - p[2]) ** 2
    down = (r[0] - p[0]) ** 2 + (r[1] - p[1]) ** 2 + (r[2] - p[2]) ** 2
    face, s, t, axis = cube_coordinates(p[0], p[1], p[2])
    return face, s, t, HALF * size * math.sqrt(max(right, down)) / axis


@inlined
def _point(geom, y, x, factor, rays, frame):
    """Return the point seen at a pixel, in the geom's scaled frame, times the factors."""
    o, t = eye_in_geom(frame, geom), frame.depth[y, x]
    d = ray(row_ramp(frame, geom), row_start(frame, geom, rays[1][y]), rays[0][x])
    return (
        factor[0] * (o[0] + t * d[0]),
        factor[1] * (o[1] + t * d[1]),
        factor[2] * (o[2] + t * d[2]),
    )


@inlined
def _next(geom, y, x, down, right, frame):
    """Return the next pixel if it shows the geom, or else the one before, or else this one."""
    height, width = frame.geom.shape
    for step in (1, -1):
        j, i = y + step * down, x + step * right
        if 0 <= j < height and 0 <= i < width and frame.geom[j, i] == geom:
            return j, i
    return y, x


@compiled
def _apply_checker(surfaces, surface, geom, pixel, columns, rows, frame, image):
    """Modulate a plane by the quadrants of its texture, fading to their mean where it is fine.

    Texture coordinates follow MuJoCo: s = x' scale - 1/2 with x' in half sizes, t likewise
    with -y'. The fade stands for mipmaps: from a quarter period per pixel to three quarters.
    """
    scale_s, scale_t = surfaces.factors[surface, 0], surfaces.factors[surface, 1]
    texture, axes = surfaces.checker[surface], frame.axes[geom]
    origin, ramp = eye_in_geom(frame, geom), row_ramp(frame, geom)
    finest = max(scale_s * _length(axes[0:3]), scale_t * _length(axes[3:6]))
    fineness = pixel * finest
    left, right, top, bottom = window_of(frame, geom)
    for y in range(top, bottom):
        start = row_start(frame, geom, rows[y])
        for x in range(left, right):
            if frame.geom[y, x] != geom:
                continue
            d, depth = ray(ramp, start, columns[x]), frame.depth[y, x]
            s = (origin[0] + depth * d[0]) * scale_s - HALF
            t = -(origin[1] + depth * d[1]) * scale_t - HALF
            quadrant = 2 * (t - math.floor(t) >= HALF) + (s - math.floor(s) >= HALF)
            periods = fineness * depth / max(abs(d[2]), TINY)
            fade = max(min(periods + periods - HALF, ONE), ZERO)
            for channel in range(3):
                fine, mean = texture[quadrant, channel], texture[4, channel]
                shaded = image[y, x, channel] * (fine + fade * (mean - fine))
                image[y, x, channel] = np.uint8(shaded + HALF)


@inlined
def _length(v):
    return math.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
