"""Textures on surfaces: the colours that are already in an image, times those of a picture."""

import math

import numpy as np

from vla_crl.sim.renderer.compilation import HALF, ONE, TINY, ZERO, compiled, inlined
from vla_crl.sim.renderer.frame import Frame, eye_in_geom, ray, row_ramp, row_start, window_of
from vla_crl.sim.renderer.scene_arrays import Scene
from vla_crl.sim.renderer.textures import Mapping, cube_coordinates, look_up
from vla_crl.sim.renderer.triangles import corner_weights

NO_TEXTURE = int(Mapping.NONE)
CHECKER = int(Mapping.CHECKER)
FLAT = int(Mapping.FLAT)
TEXCOORDS = int(Mapping.TEXCOORDS)


@compiled
def apply_texture(scene: Scene, geom: int, camera: int, frame: Frame, image: np.ndarray):
    """Multiply the colours of a geom by its texture.

    Args:
        scene: Constants of the model.
        geom: Index into the drawn geoms; has a texture.
        camera: Index into the drawn cameras.
        frame: What `find_surfaces` left.
        image: [H, W, 3] uint8; written.
    """
    columns, rows = scene.cameras.columns[camera], scene.cameras.rows[camera]
    pixel = np.float32(abs(scene.cameras.grid[camera, 3]))  # its size at depth 1
    if scene.geoms.mapping[geom] == CHECKER:
        _apply_checker(scene.geoms, geom, pixel, columns, rows, frame, image)
    else:
        _apply_picture(scene, geom, pixel, columns, rows, frame, image)


@compiled
def _apply_picture(scene, geom, pixel, columns, rows, frame, image):
    left, right, top, bottom = window_of(frame, geom)
    for y in range(np.int64(top), np.int64(bottom)):
        for x in range(np.int64(left), np.int64(right)):
            if frame.geom[y, x] != geom:
                continue
            if scene.geoms.mapping[geom] == TEXCOORDS:
                red, green, blue = _by_corners(scene, geom, y, x, pixel, columns, rows, frame)
            else:
                red, green, blue = _by_position(scene, geom, y, x, columns, rows, frame)
            image[y, x, 0] = np.uint8(image[y, x, 0] * red + HALF)
            image[y, x, 1] = np.uint8(image[y, x, 1] * green + HALF)
            image[y, x, 2] = np.uint8(image[y, x, 2] * blue + HALF)


@compiled
def _by_corners(scene, geom, y, x, pixel, columns, rows, frame):
    """Interpolate the corners' coordinates; how fine: from a pixel's area on the triangle."""
    face, depth = frame.face[y, x], frame.depth[y, x]
    direction = ray(row_ramp(frame, geom), row_start(frame, geom, rows[y]), columns[x])
    second, third, ratio = corner_weights(scene, frame, geom, face, direction)
    uv, texture = scene.meshes.texcoords, scene.geoms.texture[geom]
    es, et = uv[face, 1, 0] - uv[face, 0, 0], uv[face, 1, 1] - uv[face, 0, 1]
    fs, ft = uv[face, 2, 0] - uv[face, 0, 0], uv[face, 2, 1] - uv[face, 0, 1]
    s, t = uv[face, 0, 0] + second * es + third * fs, uv[face, 0, 1] + second * et + third * ft
    _, height, width = scene.textures.copies[texture, 0, 0]
    texels = abs(es * ft - et * fs) * np.float32(height * width)
    footprint = depth * pixel * math.sqrt(texels * ratio)
    return look_up(scene.textures, texture, 0, s, t, footprint, True)


@compiled
def _by_position(scene, geom, y, x, columns, rows, frame):
    """Derive coordinates from the point, like MuJoCo; how fine: from the points at the next pixels.

    With p the point in the geom's scaled frame, times the geom's factors: flat s = p_x - 1/2 and
    t = -p_y - 1/2; in a cube where the ray from its middle through p ends.
    """
    factors, texture = scene.geoms.texture_map[geom], scene.geoms.texture[geom]
    _, height, width = scene.textures.copies[texture, 0, 0]
    px, py, pz = _point(factors, geom, y, x, columns, rows, frame)
    y1, x1 = _next(geom, y, x, 0, 1, frame)
    y2, x2 = _next(geom, y, x, 1, 0, frame)
    qx, qy, qz = _point(factors, geom, y1, x1, columns, rows, frame)
    rx, ry, rz = _point(factors, geom, y2, x2, columns, rows, frame)
    if scene.geoms.mapping[geom] == FLAT:
        w, h = np.float32(width), np.float32(height)
        right, down = (
            math.hypot(w * (qx - px), h * (qy - py)),
            math.hypot(w * (rx - px), h * (ry - py)),
        )
        s, t, footprint = px - HALF, -py - HALF, max(right, down)
        return look_up(scene.textures, texture, 0, s, t, footprint, True)
    face, s, t, axis = cube_coordinates(px, py, pz)
    right = (qx - px) ** 2 + (qy - py) ** 2 + (qz - pz) ** 2
    down = (rx - px) ** 2 + (ry - py) ** 2 + (rz - pz) ** 2
    footprint = HALF * np.float32(width) * math.sqrt(max(right, down)) / axis
    return look_up(scene.textures, texture, face, s, t, footprint, False)


@inlined
def _point(factors, geom, y, x, columns, rows, frame):
    """Return the point seen at a pixel, in the geom's scaled frame, times the factors."""
    o, t = eye_in_geom(frame, geom), frame.depth[y, x]
    d = ray(row_ramp(frame, geom), row_start(frame, geom, rows[y]), columns[x])
    return (
        factors[0] * (o[0] + t * d[0]),
        factors[1] * (o[1] + t * d[1]),
        factors[2] * (o[2] + t * d[2]),
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
def _apply_checker(geoms, geom, pixel, columns, rows, frame, image):
    """Modulate a plane by the quadrants of its texture, fading to their mean where it is fine.

    Texture coordinates follow MuJoCo: s = x' scale - 1/2 with x' in half sizes, t likewise
    with -y'. The fade stands for mipmaps: from a quarter period per pixel to three quarters.
    """
    scale_s, scale_t = geoms.texture_map[geom, 0], geoms.texture_map[geom, 1]
    texture, axes = geoms.texture_colour[geom], frame.axes[geom]
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
