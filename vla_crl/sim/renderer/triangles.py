"""Triangle meshes in the z-buffer.

With a, b, c the corners of a triangle in the camera frame and d a ray from the eye, t d = p lies in
the triangle's plane where p = alpha a + beta b + gamma c. Divided by t, the weights are linear in
d: alpha / t = d.(b x c) / det, beta / t = d.(c x a) / det, gamma / t = d.(a x b) / det, and their
sum is 1 / t = d.n / n.a, with n = (b - a) x (c - a) and det = a.(b x c) = n.a. A pixel is covered
if no weight is negative. Nothing is divided by the depth of a corner, so triangles that reach
behind the eye need no clipping. Triangles seen from behind are left out.
"""

import math

import numpy as np

from vla_crl.sim.renderer.compilation import ONE, TINY, ZERO, inlined
from vla_crl.sim.renderer.frame import Workspace, window_of
from vla_crl.sim.renderer.meshes import level_for
from vla_crl.sim.renderer.outlines import PIXEL_SLACK
from vla_crl.sim.renderer.scene_arrays import Scene

SLACK = np.float32(PIXEL_SLACK)

ROUNDING = np.float32(2e-6)
"""Of a pixel's coordinates, in parts of them; sixteen times what float32 allows for."""

MARGIN_M = 1e-6
"""By which patches are widened against rounding."""


@inlined
def draw_mesh(
    scene: Scene, index: int, camera: int, centre: tuple, axes: tuple, workspace: Workspace
):
    """Draw a mesh into depth, geom and face.

    Args:
        scene: Constants of the model.
        index: Of the geom, among the drawn ones; its window is not empty.
        camera: Index into the drawn cameras.
        centre: Three numbers in the camera frame, which looks along -z.
        axes: Nine numbers, row-major; column k is the geom's axis k in the camera frame.
        workspace: Written.
    """
    meshes, mesh, frame = scene.meshes, scene.geoms.mesh[index], workspace.frame
    grid, depth_range = scene.cameras.grid[camera], scene.cameras.depth_range[camera]
    depth = max(-centre[2], depth_range[0])
    level = meshes.levels[mesh, level_for(meshes, mesh, 1.0 / (depth * abs(grid[3])))]
    left, right, top, bottom = window_of(frame, index)
    near = np.float32(depth_range[0])
    bounds = (np.float32(left), np.float32(right) - ONE, np.float32(top), np.float32(bottom) - ONE)
    walls = _walls_of(bounds, grid)
    lens = (scene.cameras.columns[camera], scene.cameras.rows[camera], grid[1], grid[3])
    first_vertex, first_face = meshes.first[mesh, 0], meshes.first[mesh, 1]
    for patch in range(level[0], level[1]):
        ball, cone, part = meshes.balls[patch], meshes.cones[patch], meshes.ranges[patch]
        if _is_turned_away(ball, cone, frame.origin[index]):
            continue
        if _is_outside(ball, centre, axes, near, walls):
            continue
        vertices = meshes.vertices[first_vertex + part[0] : first_vertex + part[1]]
        _project(vertices, centre, axes, grid, near, bounds, workspace)
        span = (first_face + part[2], first_face + part[3], part[0])
        _draw_faces(index, meshes.faces, span, near, bounds, lens, workspace)


@inlined
def _walls_of(bounds, grid):
    """Return the four planes through the eye and the borders of a window.

    Of each the slope of x / depth or y / depth, and what makes distances metres.
    """
    left, right = grid[0] + (bounds[0] - 0.5) * grid[1], grid[0] + (bounds[1] + 0.5) * grid[1]
    top, bottom = grid[2] + (bounds[2] - 0.5) * grid[3], grid[2] + (bounds[3] + 0.5) * grid[3]
    return (
        (left, 1.0 / math.sqrt(1.0 + left * left)),
        (right, 1.0 / math.sqrt(1.0 + right * right)),
        (top, 1.0 / math.sqrt(1.0 + top * top)),
        (bottom, 1.0 / math.sqrt(1.0 + bottom * bottom)),
    )


@inlined
def _is_outside(ball, centre, axes, near, walls):
    """Return whether a patch lies before the near plane or beside the window."""
    x = centre[0] + axes[0] * ball[0] + axes[1] * ball[1] + axes[2] * ball[2]
    y = centre[1] + axes[3] * ball[0] + axes[4] * ball[1] + axes[5] * ball[2]
    depth = -(centre[2] + axes[6] * ball[0] + axes[7] * ball[1] + axes[8] * ball[2])
    reach = ball[3] + MARGIN_M
    left, right, top, bottom = walls
    return (
        (depth + reach < near)
        | ((left[0] * depth - x) * left[1] > reach)
        | ((x - right[0] * depth) * right[1] > reach)
        | ((y - top[0] * depth) * top[1] > reach)
        | ((bottom[0] * depth - y) * bottom[1] > reach)
    )


@inlined
def _is_turned_away(ball, cone, eye):
    """Return whether all triangles of a patch are seen from behind.

    The way from the eye to any of their points goes along the axis of the cone of their normals by
    more than the sine of its opening.
    """
    x, y, z = ball[0] - eye[0], ball[1] - eye[1], ball[2] - eye[2]
    along = x * cone[0] + y * cone[1] + z * cone[2]
    distance = math.sqrt(x * x + y * y + z * z)
    return along >= cone[3] * distance + ball[3] + MARGIN_M


@inlined
def _draw_faces(index, faces, span, near, bounds, lens, workspace):
    v, outside, first = workspace.vertices, workspace.outside, span[2]
    low_x, high_x, low_y, high_y = bounds
    for face in range(np.uint64(span[0]), np.uint64(span[1])):
        a = np.uint64(faces[face, 0] - first)
        b = np.uint64(faces[face, 1] - first)
        c = np.uint64(faces[face, 2] - first)
        if outside[a] & outside[b] & outside[c]:
            continue
        x0, x1, y0, y1 = low_x, high_x, low_y, high_y
        nearest, farthest = min(-v[a, 2], -v[b, 2], -v[c, 2]), max(-v[a, 2], -v[b, 2], -v[c, 2])
        if nearest >= near:
            if _is_turned(v, a, b, c):
                continue
            x0 = max(x0, min(v[a, 3], v[b, 3], v[c, 3]) - SLACK)
            x1 = min(x1, max(v[a, 3], v[b, 3], v[c, 3]) + SLACK)
            y0 = max(y0, min(v[a, 4], v[b, 4], v[c, 4]) - SLACK)
            y1 = min(y1, max(v[a, 4], v[b, 4], v[c, 4]) + SLACK)
        # Both ends are at least zero, so truncation rounds down.
        left, right = np.int64(x0), np.int64(x1 + ONE)
        top, bottom = np.int64(y0), np.int64(y1 + ONE)
        left += np.float32(left) < x0
        top += np.float32(top) < y0
        if left < right and top < bottom:
            depths = (near, max(nearest, ZERO), farthest)
            _draw_triangle(
                index, face, (a, b, c), (left, right, top, bottom), depths, lens, workspace
            )


@inlined
def _is_turned(v, a, b, c):
    """Return whether a triangle before the eye is surely seen from behind, by its corners' pixels.

    Twice its area in pixels is then positive, by more than they may be rounded.
    """
    ex, ey = v[b, 3] - v[a, 3], v[b, 4] - v[a, 4]
    fx, fy = v[c, 3] - v[a, 3], v[c, 4] - v[a, 4]
    extent = abs(ex) + abs(ey) + abs(fx) + abs(fy)
    distance = ONE + abs(v[a, 3]) + abs(v[a, 4]) + extent
    return ex * fy - ey * fx > extent * distance * ROUNDING


@inlined
def _project(points, centre, axes, grid, near, bounds, workspace):
    """Write camera coordinates, pixel coordinates of what lies in front of the eye, and sides."""
    cx, cy, cz = np.float32(centre[0]), np.float32(centre[1]), np.float32(centre[2])
    a0, a1, a2 = np.float32(axes[0]), np.float32(axes[1]), np.float32(axes[2])
    a3, a4, a5 = np.float32(axes[3]), np.float32(axes[4]), np.float32(axes[5])
    a6, a7, a8 = np.float32(axes[6]), np.float32(axes[7]), np.float32(axes[8])
    u0, v0 = np.float32(grid[0]), np.float32(grid[2])
    per_column, per_row = np.float32(1.0 / grid[1]), np.float32(1.0 / grid[3])
    left, right, top, bottom = bounds
    left, right, top, bottom = left - SLACK, right + SLACK, top - SLACK, bottom + SLACK
    vertices, outside = workspace.vertices, workspace.outside
    for i in range(np.uint64(points.shape[0])):
        px, py, pz = points[i, 0], points[i, 1], points[i, 2]
        x = cx + a0 * px + a1 * py + a2 * pz
        y = cy + a3 * px + a4 * py + a5 * pz
        z = cz + a6 * px + a7 * py + a8 * pz
        closeness = ONE / max(-z, TINY)
        column, row = (x * closeness - u0) * per_column, (y * closeness - v0) * per_row
        vertices[i, 0], vertices[i, 1], vertices[i, 2] = x, y, z
        vertices[i, 3], vertices[i, 4] = column, row
        beside = (column < left) + 2 * (column > right) + 4 * (row < top) + 8 * (row > bottom)
        outside[i] = np.uint8(16 if -z < near else beside)


@inlined
def _draw_triangle(index, face, corners, bounds, depths, lens, workspace):
    """Fill the covered pixels.

    Rounding must not move an almost edge-on triangle out of its own range of depths, the last two
    of `depths`; the first is the near plane.
    """
    columns, rows, column_step, row_step = lens
    near, nearest, farthest = depths
    v, frame = workspace.vertices, workspace.frame
    a, b, c = _corner(v, corners[0]), _corner(v, corners[1]), _corner(v, corners[2])
    normal = cross(_minus(b, a), _minus(c, a))
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
    drawn, drawn_face = np.int32(index), np.int32(face)
    depth, geom, faces = frame.depth, frame.geom, workspace.face
    left, right, top, bottom = bounds
    for y in range(np.uint64(top), np.uint64(bottom)):
        row = rows[y]
        a0, b0, c0, w0 = ay * row + az, by * row + bz, cy * row + cz, wy * row - wz
        for x in range(np.uint64(left), np.uint64(right)):
            column = columns[x]
            least = min(ax * column + a0, bx * column + b0, cx * column + c0)
            t = min(max(ONE / (wx * column + w0), nearest), farthest)
            closer = (least >= ZERO) & (t >= near) & (t <= depth[y, x])
            depth[y, x] = t if closer else depth[y, x]
            geom[y, x] = drawn if closer else geom[y, x]
            faces[y, x] = drawn_face if closer else faces[y, x]


@inlined
def _corner(v, i):
    return np.float64(v[i, 0]), np.float64(v[i, 1]), np.float64(v[i, 2])


@inlined
def _minus(p, q):
    return p[0] - q[0], p[1] - q[1], p[2] - q[2]


@inlined
def cross(p, q):
    """Return the cross product."""
    return p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]


@inlined
def _weight(p, q, det, column_step, row_step):
    """Return a corner's weight over t as factors of column, of row, and a constant.

    Widened by PIXEL_SLACK, so that no pixel falls between two triangles.
    """
    x, y, z = cross(p, q)
    x, y, z = x / det, y / det, z / det
    slack = PIXEL_SLACK * (abs(x * column_step) + abs(y * row_step))
    return np.float32(x), np.float32(y), np.float32(slack - z)
