"""Textures on surfaces: the colours that are already in an image, times those of a picture."""

import math

import numpy as np

from vla_crl.sim.renderer.compilation import HALF, ONE, TINY, ZERO, inlined
from vla_crl.sim.renderer.frame import Workspace, eye_in_geom, ray, row_ramp, row_start, window_of
from vla_crl.sim.renderer.scene_arrays import Scene
from vla_crl.sim.renderer.surfaces import Mapping
from vla_crl.sim.renderer.textures import cube_coordinates, look_up

NO_TEXTURE = int(Mapping.NONE)
CHECKER = int(Mapping.CHECKER)
FLAT = int(Mapping.FLAT)
CUBE = int(Mapping.CUBE)
TEXCOORDS = int(Mapping.TEXCOORDS)
ONE_PIXEL = np.uint64(1)


@inlined
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
    elif scene.surfaces.mapping[surface] == TEXCOORDS:
        _apply_to_mesh(scene, geom, surface, pixel, workspace, image)
    else:
        _apply_picture(scene, geom, surface, (columns, rows), workspace, image)


@inlined
def _apply_to_mesh(scene, geom, surface, pixel, workspace, image):
    """Multiply by a picture where the corners of a mesh have texture coordinates."""
    texture, textures, frame = scene.surfaces.texture[surface], scene.textures, workspace.frame
    scale = pixel * pixel * np.float32(textures.copies[texture, 0, 0, 1])
    scale *= np.float32(textures.copies[texture, 0, 0, 2])
    width = np.uint32(frame.geom.shape[1])
    for i in range(workspace.first_pixel[geom], workspace.first_pixel[geom + 1]):
        number = workspace.pixels[np.uint64(i)]
        y, x = np.uint64(number // width), np.uint64(number % width)
        s, t, footprint = _by_corners(scene.meshes.texcoords, y, x, scale, workspace)
        _multiply(image, y, x, look_up(textures, texture, np.int32(0), s, t, footprint, True))


@inlined
def _multiply(image, y, x, colour):
    image[y, x, 0] = np.uint8(image[y, x, 0] * colour[0] + HALF)
    image[y, x, 1] = np.uint8(image[y, x, 1] * colour[1] + HALF)
    image[y, x, 2] = np.uint8(image[y, x, 2] * colour[2] + HALF)


@inlined
def _apply_picture(scene, geom, surface, rays, workspace, image):
    frame, columns, rows = workspace.frame, rays[0], rays[1]
    mapping, texture = scene.surfaces.mapping[surface], scene.surfaces.texture[surface]
    textures = scene.textures
    to_coordinates = _coordinate_map(frame, geom, scene.surfaces.factors[surface])
    height = np.float32(textures.copies[texture, 0, 0, 1])
    width = np.float32(textures.copies[texture, 0, 0, 2])
    drawn, depth = np.int32(geom), frame.depth
    left, right, top, bottom = window_of(frame, geom)
    for y in range(top, bottom):
        for x in range(left, right):
            if frame.geom[y, x] != drawn:
                continue
            face = np.int32(0)
            below, beside = _next_row(frame.geom, y, x), _next_column(frame.geom, y, x)
            p = _point(to_coordinates, depth[y, x], columns[x], rows[y])
            q = _point(to_coordinates, depth[y, beside], columns[beside], rows[y])
            r = _point(to_coordinates, depth[below, x], columns[x], rows[below])
            if mapping == FLAT:
                s, t, footprint = _by_position(p, q, r, height, width)
            else:
                face, s, t, footprint = _by_direction(p, q, r, width)
            colour = look_up(textures, texture, face, s, t, footprint, mapping != CUBE)
            _multiply(image, y, x, colour)


@inlined
def _by_corners(uv, y, x, scale, workspace):
    """Interpolate between the corners; return s, t and the squared footprint.

    The scale is how many texels there are, times the squared size of a pixel.
    """
    face, depth, weight = (
        np.uint64(workspace.face[y, x]),
        workspace.frame.depth[y, x],
        workspace.weight,
    )
    second, third, ratio = weight[0, y, x], weight[1, y, x], weight[2, y, x]
    es, et = uv[face, 1, 0] - uv[face, 0, 0], uv[face, 1, 1] - uv[face, 0, 1]
    fs, ft = uv[face, 2, 0] - uv[face, 0, 0], uv[face, 2, 1] - uv[face, 0, 1]
    s, t = uv[face, 0, 0] + second * es + third * fs, uv[face, 0, 1] + second * et + third * ft
    return s, t, scale * abs(es * ft - et * fs) * ratio * depth * depth


@inlined
def _by_position(p, q, r, height, width):
    """Project along the geom's z axis, like MuJoCo: s = x - 1/2 and t = -y - 1/2, scaled."""
    right = _squared(width * (q[0] - p[0])) + _squared(height * (q[1] - p[1]))
    down = _squared(width * (r[0] - p[0])) + _squared(height * (r[1] - p[1]))
    return p[0] - HALF, -p[1] - HALF, max(right, down)


@inlined
def _by_direction(p, q, r, width):
    """Look from the middle of a cube through the point, scaled, at its faces, like MuJoCo."""
    right = _squared(q[0] - p[0]) + _squared(q[1] - p[1]) + _squared(q[2] - p[2])
    down = _squared(r[0] - p[0]) + _squared(r[1] - p[1]) + _squared(r[2] - p[2])
    face, s, t, axis = cube_coordinates(p[0], p[1], p[2])
    return face, s, t, _squared(HALF * width / axis) * max(right, down)


@inlined
def _squared(x):
    return x * x


@inlined
def _coordinate_map(frame, geom, factor):
    """Return the map from depth, column and row to the seen point, in texture coordinates.

    By value, because every byte that is written could be a part of an array.
    """
    o, a = frame.origin[geom], frame.axes[geom]
    return (
        (factor[0] * o[0], factor[0] * a[0], factor[0] * a[1], factor[0] * a[2]),
        (factor[1] * o[1], factor[1] * a[3], factor[1] * a[4], factor[1] * a[5]),
        (factor[2] * o[2], factor[2] * a[6], factor[2] * a[7], factor[2] * a[8]),
    )


@inlined
def _point(to_coordinates, depth, column, row):
    u, v, w = to_coordinates
    return (
        u[0] + depth * (u[1] * column + u[2] * row - u[3]),
        v[0] + depth * (v[1] * column + v[2] * row - v[3]),
        w[0] + depth * (w[1] * column + w[2] * row - w[3]),
    )


@inlined
def _next_column(seen, y, x):
    """Return the next column if it shows the same geom, or else the one before, or else this."""
    geom = seen[y, x]
    if x + ONE_PIXEL < np.uint64(seen.shape[1]) and seen[y, x + ONE_PIXEL] == geom:
        return x + ONE_PIXEL
    return x - ONE_PIXEL if x > 0 and seen[y, x - ONE_PIXEL] == geom else x


@inlined
def _next_row(seen, y, x):
    """Return the same among the rows."""
    geom = seen[y, x]
    if y + ONE_PIXEL < np.uint64(seen.shape[0]) and seen[y + ONE_PIXEL, x] == geom:
        return y + ONE_PIXEL
    return y - ONE_PIXEL if y > 0 and seen[y - ONE_PIXEL, x] == geom else y


@inlined
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
