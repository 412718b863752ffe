"""Which geom is seen at each pixel: one frame's z-buffer, filled by casting rays.

Each geom is tried only inside the bounds of its outline, so the work is proportional to what the
camera sees of it.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_crl.sim.renderer.compilation import compiled, inlined
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
    PLANE,
    outline_bounds,
    pixel_range,
)
from vla_crl.sim.renderer.scene_arrays import CameraArrays, GeomArrays


class Frame(NamedTuple):
    """Working memory of one frame; G geoms, L lights, H rows, W columns."""

    origin: NDArray[np.float32]  # [G, 3] the eye in the geom's scaled frame
    axes: NDArray[np.float32]  # [G, 9] row-major; row k: the geom's axis k over its half size
    half_length: NDArray[np.float32]  # [G] of a capsule, in units of its radius
    window: NDArray[np.uint64]  # [G, 4] first and last + 1 column, first and last + 1 row
    is_seen: NDArray[np.bool_]  # [G + 1] whether any pixel shows the geom; the last: no geom
    depth: NDArray[np.float32]  # [H, W] metres along the view axis
    geom: NDArray[np.int32]  # [H, W] index into the drawn geoms; G where there is none
    facing: NDArray[np.float32]  # [L, H, W] max(0, n.l): the share of a light that a surface gets
    light: NDArray[np.float32]  # [3, H, W] red, green, blue


@compiled
def new_frame(num_geoms, num_lights, height, width):
    """Allocate the working memory; zeroed, so that unused pixels hold numbers."""
    return Frame(
        np.zeros((num_geoms, 3), np.float32),
        np.zeros((num_geoms, 9), np.float32),
        np.zeros(num_geoms, np.float32),
        np.zeros((num_geoms, 4), np.uint64),
        np.zeros(num_geoms + 1, np.bool_),
        np.zeros((height, width), np.float32),
        np.zeros((height, width), np.int32),
        np.zeros((num_lights, height, width), np.float32),
        np.zeros((3, height, width), np.float32),
    )


@compiled
def find_surfaces(geoms: GeomArrays, cameras: CameraArrays, camera: int, pose: tuple, frame: Frame):
    """Fill the frame's depth and geom from the poses of all geoms and cameras of one world.

    Args:
        geoms: The drawn geoms.
        cameras: The drawn cameras.
        camera: Index into `cameras`.
        pose: geom_xpos [G', 3], geom_xmat [G', 9], cam_xpos [C', 3], cam_xmat [C', 9] of mjData.
        frame: Working memory; written.
    """
    columns, rows = cameras.columns[camera], cameras.rows[camera]
    near, far = cameras.depth_range[camera, 0], cameras.depth_range[camera, 1]
    frame.depth[:] = np.float32(far)
    frame.geom[:] = geoms.model_id.size
    for index in range(geoms.model_id.size):
        centre, axes = _to_camera(geoms.model_id[index], cameras.model_id[camera], pose)
        _write_window(geoms, index, centre, axes, cameras, camera, frame)
        if frame.window[index, 0] < frame.window[index, 1]:
            _write_ray_map(geoms, index, centre, axes, frame)
            _draw(geoms.primitive[index], index, columns, rows, np.float32(near), frame)


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
def turn(view, camera, x, y, z):
    """Rotate a world vector into the frame of a camera of the model."""
    return (
        view[camera, 0] * x + view[camera, 3] * y + view[camera, 6] * z,
        view[camera, 1] * x + view[camera, 4] * y + view[camera, 7] * z,
        view[camera, 2] * x + view[camera, 5] * y + view[camera, 8] * z,
    )


@inlined
def _write_window(geoms, index, centre, axes, cameras, camera, frame):
    window, grid = frame.window, cameras.grid
    height, width = frame.depth.shape
    near, far = cameras.depth_range[camera, 0], cameras.depth_range[camera, 1]
    reach = geoms.reach[index]
    window[index, 0], window[index, 1] = 0, 0
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
    """Write the map from the camera to the scaled geom frame: p' = origin + axes p."""
    size = geoms.size
    frame.half_length[index] = size[index, 2] / size[index, 0]
    for k in range(3):
        is_capsule = geoms.primitive[index] == CAPSULE
        scale = 1.0 / (size[index, 0] if is_capsule else size[index, k])
        x, y, z = axes[k] * scale, axes[3 + k] * scale, axes[6 + k] * scale
        frame.axes[index, 3 * k] = x
        frame.axes[index, 3 * k + 1] = y
        frame.axes[index, 3 * k + 2] = z
        frame.origin[index, k] = -(x * centre[0] + y * centre[1] + z * centre[2])


@compiled
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

    @compiled
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


@inlined
def eye_in_geom(frame, index):
    """Return the eye in a geom's scaled frame."""
    return frame.origin[index, 0], frame.origin[index, 1], frame.origin[index, 2]


@inlined
def window_of(frame, index):
    """Return first and last + 1 column, first and last + 1 row of a geom."""
    window = frame.window
    return window[index, 0], window[index, 1], window[index, 2], window[index, 3]


@inlined
def row_ramp(frame, index):
    """Return how a ray's direction in a geom's frame, axes (column, row, -1), grows with column."""
    return frame.axes[index, 0], frame.axes[index, 3], frame.axes[index, 6]


@inlined
def row_start(frame, index, row):
    """Return the part of that direction which a whole row shares."""
    axes = frame.axes
    return (
        axes[index, 1] * row - axes[index, 2],
        axes[index, 4] * row - axes[index, 5],
        axes[index, 7] * row - axes[index, 8],
    )


@inlined
def ray(ramp, start, column):
    """Return the direction of the ray through a column."""
    return ramp[0] * column + start[0], ramp[1] * column + start[1], ramp[2] * column + start[2]
