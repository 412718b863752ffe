"""Working memory of one frame, and the rays of its pixels in the frame of a geom."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_crl.sim.renderer.compilation import array_maker, inlined


class Frame(NamedTuple):
    """Working memory; G geoms, L lights, H rows, W columns."""

    origin: NDArray[np.float32]  # [G, 3] the eye in the geom's scaled frame
    axes: NDArray[np.float32]  # [G, 9] row-major; row k: the geom's axis k over its half size
    half_length: NDArray[np.float32]  # [G] of a capsule, in units of its radius
    window: NDArray[np.uint64]  # [G, 4] first and last + 1 column, first and last + 1 row
    is_seen: NDArray[np.bool_]  # [G + 1] whether any pixel shows the geom; the last: no geom
    depth: NDArray[np.float32]  # [H, W] metres along the view axis
    geom: NDArray[np.int32]  # [H, W] index into the drawn geoms; G where there is none
    facing: NDArray[np.float32]  # [L, H, W] max(0, n.l): the share of a light that a surface gets
    light: NDArray[np.float32]  # [3, H, W] red, green, blue


class Workspace(NamedTuple):
    """A frame and what only meshes need; V vertices of the largest patch, no pixels without any.

    The loops over primitives get the frame alone: the fewer arrays a call passes, the faster.
    """

    frame: Frame
    vertices: NDArray[np.float32]  # [V, 5] of one patch: camera frame in metres, pixel column, row
    outside: NDArray[np.uint8]  # [V] bits: left, right, above, below the window, behind the eye
    face: NDArray[np.int32]  # [H, W] where a mesh is seen: index into MeshArrays.faces
    weight: NDArray[np.float32]  # [3, H, W] there: of the face's second and third corner; then,
    # times the squared depth, a pixel's share of twice the face's area
    pixels: NDArray[np.uint32]  # [H W] numbers of pixels, row by row, those of each geom together
    first_pixel: NDArray[np.int64]  # [G + 2] where those of a geom begin; the last two: no geom
    lights: NDArray[np.float32]  # [L, 4] position and 1, or direction and 0, in the camera frame
    lights_in_geom: NDArray[np.float32]  # [L, 4] the same in the frame of one geom


@array_maker
def new_workspace(num_geoms, num_lights, height, width, num_vertices):
    """Allocate the working memory; zeroed, so that unused pixels hold numbers."""
    frame = Frame(
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
    mesh_height, mesh_width = (height, width) if num_vertices else (0, 0)
    return Workspace(
        frame,
        np.zeros((num_vertices, 5), np.float32),
        np.zeros(num_vertices, np.uint8),
        np.zeros((mesh_height, mesh_width), np.int32),
        np.zeros((3, mesh_height, mesh_width), np.float32),
        np.zeros(mesh_height * mesh_width, np.uint32),
        np.zeros(num_geoms + 2, np.int64),
        np.zeros((num_lights, 4), np.float32),
        np.zeros((num_lights, 4), np.float32),
    )


@inlined
def list_pixels(workspace: Workspace):
    """Write which pixels show each geom, by counting them."""
    geom, first, pixels = workspace.frame.geom, workspace.first_pixel, workspace.pixels
    flat = geom.reshape(-1)
    first[:] = 0
    for i in range(np.uint32(flat.size)):
        first[np.uint64(flat[i]) + np.uint64(1)] += 1
    for k in range(1, first.size):
        first[k] += first[k - 1]
    # Each pixel moves the beginning of its geom on; afterwards all are moved back.
    for i in range(np.uint32(flat.size)):
        k = np.uint64(flat[i])
        pixels[np.uint64(first[k])] = i
        first[k] += 1
    for k in range(first.size - 1, 0, -1):
        first[k] = first[k - 1]
    first[0] = 0


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


@inlined
def turn(view, camera, x, y, z):
    """Rotate a world vector into the frame of a camera of the model."""
    return (
        view[camera, 0] * x + view[camera, 3] * y + view[camera, 6] * z,
        view[camera, 1] * x + view[camera, 4] * y + view[camera, 7] * z,
        view[camera, 2] * x + view[camera, 5] * y + view[camera, 8] * z,
    )
