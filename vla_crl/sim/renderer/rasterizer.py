"""Which geom is seen at each pixel: one frame's z-buffer, filled by casting rays.

Each geom is tried only inside the bounds of its outline, so the work is proportional to what the
camera sees of it.
"""

import numpy as np

from vla_crl.sim.renderer.compilation import inlined
from vla_crl.sim.renderer.frame import (
    Frame,
    Workspace,
    eye_in_geom,
    ray,
    row_ramp,
    row_start,
    turn,
    window_of,
)
from vla_crl.sim.renderer.intersections import (
    box_entry,
    capsule_entry,
    cylinder_entry,
    ellipsoid_entry,
    plane_entry,
)
from vla_crl.sim.renderer.outlines import (
    CAPSULE,
    CYLINDER,
    ELLIPSOID,
    MESH,
    PLANE,
    outline_bounds,
    pixel_range,
)
from vla_crl.sim.renderer.scene_arrays import CameraArrays, Scene
from vla_crl.sim.renderer.triangles import draw_mesh


@inlined
def clear(cameras: CameraArrays, camera: int, frame: Frame):
    """Empty a frame: no geom anywhere, depth at the camera's far plane."""
    frame.depth[:] = np.float32(cameras.depth_range[camera, 1])
    frame.geom[:] = frame.half_length.size


@inlined
def find_surfaces(
    scene: Scene, camera: int, pose: tuple, workspace: Workspace, first: int, last: int
):
    """Draw some geoms into the frame's depth and geom, from the poses of one world.

    Args:
        scene: Constants of the model.
        camera: Index into the drawn cameras.
        pose: geom_xpos [G', 3], geom_xmat [G', 9], cam_xpos [C', 3], cam_xmat [C', 9] of mjData.
        workspace: Written.
        first: Index into the drawn geoms.
        last: Index after the last one.
    """
    geoms, cameras, frame = scene.geoms, scene.cameras, workspace.frame
    columns, rows = cameras.columns[camera], cameras.rows[camera]
    near = cameras.depth_range[camera, 0]
    for index in range(first, last):
        centre, axes = _to_camera(geoms.model_id[index], cameras.model_id[camera], pose)
        _write_window(geoms, index, centre, axes, cameras, camera, frame)
        if frame.window[index, 0] < frame.window[index, 1]:
            _write_ray_map(geoms, index, centre, axes, frame)
            if geoms.primitive[index] == MESH:
                draw_mesh(scene, index, camera, centre, axes, workspace)
            else:
                _draw(geoms.primitive[index], index, columns, rows, np.float32(near), frame)


@inlined
def has_finite_pose(cameras: CameraArrays, camera: int, pose: tuple):
    """Return whether a camera is anywhere; one that is not sees nothing."""
    model_id, total = cameras.model_id[camera], 0.0
    for k in range(3):
        total += pose[2][model_id, k]
    for k in range(9):
        total += pose[3][model_id, k]
    return abs(total) < np.inf


@inlined
def _to_camera(geom, camera, pose):
    """Express a geom's position and axes in the camera frame."""
    xpos, xmat, eye, view = pose
    x = xpos[geom, 0] - eye[camera, 0]
    y = xpos[geom, 1] - eye[camera, 1]
    z = xpos[geom, 2] - eye[camera, 2]
    centre = turn(view, camera, x, y, z)
    c0 = turn(view, camera, xmat[geom, 0], xmat[geom, 3], xmat[geom, 6])
    c1 = turn(view, camera, xmat[geom, 1], xmat[geom, 4], xmat[geom, 7])
    c2 = turn(view, camera, xmat[geom, 2], xmat[geom, 5], xmat[geom, 8])
    return centre, (c0[0], c1[0], c2[0], c0[1], c1[1], c2[1], c0[2], c1[2], c2[2])


@inlined
def _write_window(geoms, index, centre, axes, cameras, camera, frame):
    window, grid = frame.window, cameras.grid
    height, width = frame.depth.shape
    near, far = cameras.depth_range[camera, 0], cameras.depth_range[camera, 1]
    reach = geoms.reach[index]
    window[index, 0], window[index, 1] = 0, 0
    # What is not finite is nowhere: as the number of a pixel it could be any. The first row tells
    # of all nine, for the camera's rotation has mixed them.
    extent = centre[0] + centre[1] + centre[2] + axes[0] + axes[1] + axes[2]
    if not abs(extent) < np.inf:
        return
    if -centre[2] + reach < near or -centre[2] - reach > far:
        return
    size = (geoms.size[index, 0], geoms.size[index, 1], geoms.size[index, 2])
    left, right, bottom, top = outline_bounds(geoms.primitive[index], size, centre, axes, near)
    y0, y1 = pixel_range(top, bottom, grid[camera, 2], grid[camera, 3], height)
    x0, x1 = pixel_range(left, right, grid[camera, 0], grid[camera, 1], width)
    window[index, 0], window[index, 1] = x0, (x1 if y0 < y1 else x0)
    window[index, 2], window[index, 3] = y0, y1


@inlined
def _write_ray_map(geoms, index, centre, axes, frame):
    """Write the map from the camera to the scaled geom frame: p' = origin + axes p.

    The frame of a mesh is not scaled.
    """
    size = geoms.size
    frame.half_length[index] = size[index, 2] / size[index, 0]
    for k in range(3):
        is_capsule, is_mesh = geoms.primitive[index] == CAPSULE, geoms.primitive[index] == MESH
        scale = 1.0 / (1.0 if is_mesh else size[index, 0] if is_capsule else size[index, k])
        x, y, z = axes[k] * scale, axes[3 + k] * scale, axes[6 + k] * scale
        frame.axes[index, 3 * k] = x
        frame.axes[index, 3 * k + 1] = y
        frame.axes[index, 3 * k + 2] = z
        frame.origin[index, k] = -(x * centre[0] + y * centre[1] + z * centre[2])


@inlined
def _draw(kind, index, columns, rows, near, frame):
    if kind == PLANE:
        _draw_plane(index, columns, rows, near, frame)
    elif kind == ELLIPSOID:
        _draw_ellipsoid(index, columns, rows, near, frame)
    elif kind == CAPSULE:
        _draw_capsule(index, columns, rows, near, frame)
    elif kind == CYLINDER:
        _draw_cylinder(index, columns, rows, near, frame)
    else:
        _draw_box(index, columns, rows, near, frame)


def _drawing(entry):
    """Compile the loop over a window for one primitive."""

    @inlined
    def draw(index, columns, rows, near, frame):
        origin, ramp = eye_in_geom(frame, index), row_ramp(frame, index)
        half_length, drawn = frame.half_length[index], np.int32(index)
        depth, geom = frame.depth, frame.geom
        left, right, top, bottom = window_of(frame, index)
        # Unsigned indices, because numba tests signed ones for wrap-around; selections instead of
        # branches. Both let the inner loop vectorise.
        for y in range(top, bottom):
            start = row_start(frame, index, rows[y])
            for x in range(left, right):
                t = entry(origin, ray(ramp, start, columns[x]), half_length)
                closer = (t >= near) & (t <= depth[y, x])
                depth[y, x] = t if closer else depth[y, x]
                geom[y, x] = drawn if closer else geom[y, x]

    return draw


_draw_plane = _drawing(plane_entry)
_draw_ellipsoid = _drawing(ellipsoid_entry)
_draw_capsule = _drawing(capsule_entry)
_draw_cylinder = _drawing(cylinder_entry)
_draw_box = _drawing(box_entry)
