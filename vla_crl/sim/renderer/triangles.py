"""Triangle meshes in the z-buffer, and what is seen of them: corners' weights and normals.

With a, b, c the corners of a triangle in the camera frame and d a ray from the eye, t d = p lies in
the triangle's plane where p = alpha a + beta b + gamma c. Divided by t, the weights are linear in
d: alpha / t = d.(b x c) / det, beta / t = d.(c x a) / det, gamma / t = d.(a x b) / det, and their
sum is 1 / t = d.n / n.a, with n = (b - a) x (c - a) and det = a.(b x c) = n.a. A pixel is covered
if no weight is negative. Nothing is divided by the depth of a corner, so triangles that reach
behind the eye need no clipping. Triangles seen from behind are left out.
"""

import math

import numpy as np

from vla_crl.sim.renderer.compilation import ONE, TINY, ZERO, compiled, inlined
from vla_crl.sim.renderer.frame import Frame, eye_in_geom, ray, row_ramp, row_start, window_of
from vla_crl.sim.renderer.meshes import level_for
from vla_crl.sim.renderer.outlines import PIXEL_SLACK
from vla_crl.sim.renderer.scene_arrays import Scene


@compiled
def draw_mesh(scene: Scene, index: int, camera: int, centre: tuple, axes: tuple, frame: Frame):
    """Draw a mesh into the frame's depth, geom and face.

    Args:
        scene: Constants of the model.
        index: Of the geom, among the drawn ones; its window is not empty.
        camera: Index into the drawn cameras.
        centre: Three numbers in the camera frame, which looks along -z.
        axes: Nine numbers, row-major; column k is the geom's axis k in the camera frame.
        frame: Working memory; written.
    """
    meshes, mesh = scene.meshes, scene.geoms.mesh[index]
    grid, depth_range = scene.cameras.grid[camera], scene.cameras.depth_range[camera]
    radius = scene.geoms.reach[index] / (max(-centre[2], depth_range[0]) * abs(grid[3]))
    level = meshes.levels[mesh, level_for(meshes, mesh, radius)]
    _project(meshes.vertices[level[0] : level[1]], centre, axes, grid, frame.vertices)
    near, first = np.float32(depth_range[0]), level[0]
    lens = (scene.cameras.columns[camera], scene.cameras.rows[camera], grid[1], grid[3], near)
    for face in range(level[2], level[3]):
        a, b, c = meshes.faces[face, 0], meshes.faces[face, 1], meshes.faces[face, 2]
        a, b, c = a - first, b - first, c - first
        left, right, top, bottom = _bounds(a, b, c, near, index, frame)
        if left < right and top < bottom:
            bounds = (left, right, top, bottom)
            _draw_triangle(index, face, (a, b, c), bounds, lens, frame)


@compiled
def _project(points, centre, axes, grid, vertices):
    """Write camera coordinates, and pixel coordinates of what lies in front of the eye."""
    cx, cy, cz = np.float32(centre[0]), np.float32(centre[1]), np.float32(centre[2])
    a0, a1, a2 = np.float32(axes[0]), np.float32(axes[1]), np.float32(axes[2])
    a3, a4, a5 = np.float32(axes[3]), np.float32(axes[4]), np.float32(axes[5])
    a6, a7, a8 = np.float32(axes[6]), np.float32(axes[7]), np.float32(axes[8])
    u0, v0 = np.float32(grid[0]), np.float32(grid[2])
    per_column, per_row = np.float32(1.0 / grid[1]), np.float32(1.0 / grid[3])
    for i in range(np.uint64(points.shape[0])):
        px, py, pz = points[i, 0], points[i, 1], points[i, 2]
        x = cx + a0 * px + a1 * py + a2 * pz
        y = cy + a3 * px + a4 * py + a5 * pz
        z = cz + a6 * px + a7 * py + a8 * pz
        closeness = ONE / max(-z, TINY)
        vertices[i, 0], vertices[i, 1], vertices[i, 2] = x, y, z
        vertices[i, 3] = (x * closeness - u0) * per_column
        vertices[i, 4] = (y * closeness - v0) * per_row


@inlined
def _bounds(a, b, c, near, index, frame):
    """Return first and last + 1 column, first and last + 1 row that a triangle may cover."""
    v = frame.vertices
    left, right, top, bottom = window_of(frame, index)
    if min(-v[a, 2], -v[b, 2], -v[c, 2]) < near:
        return left, right, top, bottom
    slack = np.float32(PIXEL_SLACK)
    x0, x1 = min(v[a, 3], v[b, 3], v[c, 3]) - slack, max(v[a, 3], v[b, 3], v[c, 3]) + slack
    y0, y1 = min(v[a, 4], v[b, 4], v[c, 4]) - slack, max(v[a, 4], v[b, 4], v[c, 4]) + slack
    # As numbers that fit: columns and rows of the window, from its first to its last + 1.
    x0, x1 = max(x0, np.float32(left)), min(x1, np.float32(right) - ONE)
    y0, y1 = max(y0, np.float32(top)), min(y1, np.float32(bottom) - ONE)
    if x0 > x1 or y0 > y1:
        return left, left, top, top
    return (
        np.uint64(math.ceil(x0)),
        np.uint64(math.floor(x1) + ONE),
        np.uint64(math.ceil(y0)),
        np.uint64(math.floor(y1) + ONE),
    )


@compiled
def _draw_triangle(index, face, corners, bounds, lens, frame):
    columns, rows, column_step, row_step, near = lens
    a, b, c = _corner(frame, corners[0]), _corner(frame, corners[1]), _corner(frame, corners[2])
    normal = _cross(_minus(b, a), _minus(c, a))
    det = normal[0] * a[0] + normal[1] * a[1] + normal[2] * a[2]
    if det >= 0.0:
        return
    ax, ay, az = _weight(b, c, det, column_step, row_step)
    bx, by, bz = _weight(c, a, det, column_step, row_step)
    cx, cy, cz = _weight(a, b, det, column_step, row_step)
    wx, wy, wz = (
        np.float32(normal[0] / det),
        np.float32(normal[1] / det),
        np.float32(normal[2] / det),
    )
    # Rounding must not move an almost edge-on triangle out of its own range of depths.
    nearest = np.float32(max(min(-a[2], -b[2], -c[2]), 0.0))
    farthest = np.float32(max(-a[2], -b[2], -c[2]))
    drawn, drawn_face = np.int32(index), np.int32(face)
    depth, geom, faces = frame.depth, frame.geom, frame.face
    left, right, top, bottom = bounds
    for y in range(top, bottom):
        row = rows[y]
        a0, b0, c0, w0 = ay * row + az, by * row + bz, cy * row + cz, wy * row - wz
        for x in range(left, right):
            column = columns[x]
            least = min(ax * column + a0, bx * column + b0, cx * column + c0)
            t = min(max(ONE / (wx * column + w0), nearest), farthest)
            closer = (least >= ZERO) & (t >= near) & (t <= depth[y, x])
            depth[y, x] = t if closer else depth[y, x]
            geom[y, x] = drawn if closer else geom[y, x]
            faces[y, x] = drawn_face if closer else faces[y, x]


@inlined
def _corner(frame, i):
    v = frame.vertices
    return np.float64(v[i, 0]), np.float64(v[i, 1]), np.float64(v[i, 2])


@inlined
def _minus(p, q):
    return p[0] - q[0], p[1] - q[1], p[2] - q[2]


@inlined
def _cross(p, q):
    return p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]


@inlined
def _weight(p, q, det, column_step, row_step):
    """Return a corner's weight over t as factors of column, of row, and a constant.

    Widened by PIXEL_SLACK, so that no pixel falls between two triangles.
    """
    x, y, z = _cross(p, q)
    x, y, z = x / det, y / det, z / det
    slack = PIXEL_SLACK * (abs(x * column_step) + abs(y * row_step))
    return np.float32(x), np.float32(y), np.float32(slack - z)


@inlined
def corner_weights(scene, frame, geom, face, direction):
    """Return where a ray meets a triangle: weights of its second and third corner, area ratio.

    The ratio, times t^2 and a pixel's area at depth 1, is the pixel's area on the triangle in units
    of twice the triangle's.

    Args:
        scene: Constants of the model.
        frame: With the geom's ray map.
        geom: Index into the drawn geoms.
        face: Index into MeshArrays.faces.
        direction: Of the ray, in the geom's frame.
    """
    v, faces, origin = scene.meshes.vertices, scene.meshes.faces, eye_in_geom(frame, geom)
    a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
    e = v[b, 0] - v[a, 0], v[b, 1] - v[a, 1], v[b, 2] - v[a, 2]
    f = v[c, 0] - v[a, 0], v[c, 1] - v[a, 1], v[c, 2] - v[a, 2]
    s = origin[0] - v[a, 0], origin[1] - v[a, 1], origin[2] - v[a, 2]
    p, q = _cross(direction, f), _cross(s, e)
    det = e[0] * p[0] + e[1] * p[1] + e[2] * p[2]
    ratio = ONE / (math.copysign(max(abs(det), TINY * TINY), det))
    second = (s[0] * p[0] + s[1] * p[1] + s[2] * p[2]) * ratio
    third = (direction[0] * q[0] + direction[1] * q[1] + direction[2] * q[2]) * ratio
    second = min(max(second, ZERO), ONE)
    third = min(max(third, ZERO), ONE - second)
    return second, third, abs(ratio)


@compiled
def find_normals(scene: Scene, geom: int, columns: np.ndarray, rows: np.ndarray, frame: Frame):
    """Write the normals of a mesh where it is seen, interpolated between the corners'.

    Args:
        scene: Constants of the model.
        geom: Index into the drawn geoms.
        columns: [W] of the camera.
        rows: [H] of the camera.
        frame: What `find_surfaces` left; `normal` is written.
    """
    n, axes, normal = scene.meshes.normals, frame.axes[geom], frame.normal
    ramp = row_ramp(frame, geom)
    left, right, top, bottom = window_of(frame, geom)
    for y in range(top, bottom):
        start = row_start(frame, geom, rows[y])
        for x in range(left, right):
            if frame.geom[y, x] != geom:
                continue
            face = frame.face[y, x]
            d = ray(ramp, start, columns[x])
            second, third, _ = corner_weights(scene, frame, geom, face, d)
            first = ONE - second - third
            gx = first * n[face, 0, 0] + second * n[face, 1, 0] + third * n[face, 2, 0]
            gy = first * n[face, 0, 1] + second * n[face, 1, 1] + third * n[face, 2, 1]
            gz = first * n[face, 0, 2] + second * n[face, 1, 2] + third * n[face, 2, 2]
            scale = ONE / max(math.sqrt(gx * gx + gy * gy + gz * gz), TINY)
            normal[0, y, x] = scale * (axes[0] * gx + axes[3] * gy + axes[6] * gz)
            normal[1, y, x] = scale * (axes[1] * gx + axes[4] * gy + axes[7] * gz)
            normal[2, y, x] = scale * (axes[2] * gx + axes[5] * gy + axes[8] * gz)


@compiled
def find_mesh_facing(
    geom: int, index: int, light: tuple, columns: np.ndarray, rows: np.ndarray, frame: Frame
):
    """Write max(0, n.l) where a mesh is seen; arguments as for primitives in `shading`."""
    light_x, light_y, light_z, w = light
    normal, facing, depth = frame.normal, frame.facing, frame.depth
    left, right, top, bottom = window_of(frame, geom)
    for y in range(top, bottom):
        for x in range(left, right):
            t = depth[y, x]
            lx = light_x - w * t * columns[x]
            ly = light_y - w * t * rows[y]
            lz = light_z + w * t
            dot = normal[0, y, x] * lx + normal[1, y, x] * ly + normal[2, y, x] * lz
            share = max(dot / math.sqrt(lx * lx + ly * ly + lz * lz), ZERO)
            is_seen = frame.geom[y, x] == geom
            facing[index, y, x] = share if is_seen else facing[index, y, x]
