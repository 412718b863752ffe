"""Triangle meshes in the z-buffer, and how they face the lights.

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
from vla_crl.sim.renderer.frame import (
    Workspace,
    eye_in_geom,
    ray,
    row_ramp,
    row_start,
    window_of,
)
from vla_crl.sim.renderer.meshes import MeshArrays, level_for
from vla_crl.sim.renderer.outlines import PIXEL_SLACK
from vla_crl.sim.renderer.scene_arrays import Scene

SLACK = np.float32(PIXEL_SLACK)


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
    meshes, mesh = scene.meshes, scene.geoms.mesh[index]
    grid, depth_range = scene.cameras.grid[camera], scene.cameras.depth_range[camera]
    depth = max(-centre[2], depth_range[0])
    level = meshes.levels[mesh, level_for(meshes, mesh, 1.0 / (depth * abs(grid[3])))]
    left, right, top, bottom = window_of(workspace.frame, index)
    near = np.float32(depth_range[0])
    bounds = (np.float32(left), np.float32(right) - ONE, np.float32(top), np.float32(bottom) - ONE)
    vertices = meshes.vertices[level[0] : level[1]]
    _project(vertices, centre, axes, grid, near, bounds, workspace)
    lens = (scene.cameras.columns[camera], scene.cameras.rows[camera], grid[1], grid[3])
    _draw_faces(index, meshes.faces, level, near, bounds, lens, workspace)


@inlined
def _draw_faces(index, faces, level, near, bounds, lens, workspace):
    v, outside, first = workspace.vertices, workspace.outside, level[0]
    low_x, high_x, low_y, high_y = bounds
    for face in range(np.uint64(level[2]), np.uint64(level[3])):
        a = np.uint64(faces[face, 0] - first)
        b = np.uint64(faces[face, 1] - first)
        c = np.uint64(faces[face, 2] - first)
        if outside[a] & outside[b] & outside[c]:
            continue
        x0, x1, y0, y1 = low_x, high_x, low_y, high_y
        nearest, farthest = min(-v[a, 2], -v[b, 2], -v[c, 2]), max(-v[a, 2], -v[b, 2], -v[c, 2])
        if nearest >= near:
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
def find_weights(scene: Scene, camera: int, workspace: Workspace):
    """Write the corners' weights wherever a mesh is seen.

    Args:
        scene: Constants of the model.
        camera: Index into the drawn cameras.
        workspace: What `find_surfaces` and `find_seen` left; `weight` is written.
    """
    for geom in range(scene.geoms.mesh.size):
        if workspace.frame.is_seen[geom] and scene.geoms.mesh[geom] >= 0:
            _find_weights_of(scene.meshes, geom, scene.cameras, camera, workspace)


@inlined
def _find_weights_of(meshes, geom, cameras, camera, workspace):
    frame, weight = workspace.frame, workspace.weight
    columns, rows, ramp = cameras.columns[camera], cameras.rows[camera], row_ramp(frame, geom)
    left, right, top, bottom = window_of(frame, geom)
    for y in range(top, bottom):
        start = row_start(frame, geom, rows[y])
        for x in range(left, right):
            if frame.geom[y, x] == geom:
                d = ray(ramp, start, columns[x])
                second, third, ratio = _meet(meshes, frame, geom, workspace.face[y, x], d)
                weight[0, y, x], weight[1, y, x], weight[2, y, x] = second, third, ratio


@inlined
def _meet(meshes, frame, geom, face, direction):
    """Return where a ray meets a triangle, see Workspace.weight."""
    v, faces, origin = meshes.vertices, meshes.faces, eye_in_geom(frame, geom)
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


@inlined
def find_mesh_facing(meshes: MeshArrays, geom: int, index: int, light: tuple, workspace: Workspace):
    """Write max(0, n.l) of the corners, interpolated, where a mesh is seen.

    Per corner and not per pixel, like OpenGL: the normals of a model's meshes are made for that.

    Args:
        meshes: Those of the scene.
        geom: Index into the drawn geoms.
        index: Of the light.
        light: Position and 1, or direction and 0, in the camera frame.
        workspace: With weights; `facing` is written.
    """
    frame, weight = workspace.frame, workspace.weight
    axes, w = frame.axes[geom], light[3]
    ox, oy, oz = eye_in_geom(frame, geom)
    # The light in the geom's frame.
    lx = w * ox + axes[0] * light[0] + axes[1] * light[1] + axes[2] * light[2]
    ly = w * oy + axes[3] * light[0] + axes[4] * light[1] + axes[5] * light[2]
    lz = w * oz + axes[6] * light[0] + axes[7] * light[1] + axes[8] * light[2]
    in_geom = (lx, ly, lz, w)
    left, right, top, bottom = window_of(frame, geom)
    for y in range(top, bottom):
        for x in range(left, right):
            if frame.geom[y, x] == geom:
                face, second, third = workspace.face[y, x], weight[0, y, x], weight[1, y, x]
                share = (ONE - second - third) * _corner_facing(meshes, face, 0, in_geom)
                share += second * _corner_facing(meshes, face, 1, in_geom)
                share += third * _corner_facing(meshes, face, 2, in_geom)
                frame.facing[index, y, x] = share


@inlined
def _corner_facing(meshes, face, corner, light):
    n, v, vertex = meshes.normals, meshes.vertices, meshes.faces[face, corner]
    x = light[0] - light[3] * v[vertex, 0]
    y = light[1] - light[3] * v[vertex, 1]
    z = light[2] - light[3] * v[vertex, 2]
    dot = n[face, corner, 0] * x + n[face, corner, 1] * y + n[face, corner, 2] * z
    return max(dot, ZERO) / max(math.sqrt(x * x + y * y + z * z), TINY)
