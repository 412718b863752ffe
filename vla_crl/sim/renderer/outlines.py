"""The window of pixels that can see a primitive: exact bounds of its outline on the screen."""

import math

import numpy as np

from vla_crl.sim.renderer.compilation import inlined
from vla_crl.sim.renderer.drawable import Primitive

PLANE = int(Primitive.PLANE)
ELLIPSOID = int(Primitive.ELLIPSOID)
CAPSULE = int(Primitive.CAPSULE)
CYLINDER = int(Primitive.CYLINDER)
BOX = int(Primitive.BOX)
MESH = int(Primitive.MESH)

PIXEL_SLACK = 1e-3
"""Pixels by which outlines are widened against rounding."""

NOWHERE = (np.inf, -np.inf, np.inf, -np.inf)
"""Empty bounds: least and greatest x / depth, least and greatest y / depth."""


@inlined
def outline_bounds(kind, size, centre, axes, near):
    """Bound a primitive's screen coordinates x / depth and y / depth.

    The outline of a convex hull lies within the outlines of its parts: a capsule is the hull of two
    spheres, a cylinder of two discs, boxes and planes of their corners; a mesh is
    bounded by a box. A part that the near plane
    cuts has no such outline; then the enclosing box is taken, clipped by that plane.

    Args:
        kind: A Primitive.
        size: Three half sizes, as in mjvGeom.
        centre: Three numbers in the camera frame, which looks along -z.
        axes: Nine numbers, row-major; column k is the primitive's axis k in the camera frame.
        near: Depth in metres.

    Returns:
        Four numbers like NOWHERE.
    """
    if kind in (PLANE, BOX, MESH):
        return _corner_bounds(kind, size, centre, axes, near)
    # A part is the ellipsoid {c + p : p^T S^-1 p <= 1}; a disc has a singular S.
    if kind == ELLIPSOID:
        a, b, c, offset = size[0] ** 2, size[1] ** 2, size[2] ** 2, 0.0
    elif kind == CAPSULE:
        a, b, c, offset = size[0] ** 2, size[0] ** 2, size[0] ** 2, size[2]
    else:
        a, b, c, offset = size[0] ** 2, size[0] ** 2, 0.0, size[2]
    sxx = a * axes[0] * axes[0] + b * axes[1] * axes[1] + c * axes[2] * axes[2]
    syy = a * axes[3] * axes[3] + b * axes[4] * axes[4] + c * axes[5] * axes[5]
    szz = a * axes[6] * axes[6] + b * axes[7] * axes[7] + c * axes[8] * axes[8]
    sxz = a * axes[0] * axes[6] + b * axes[1] * axes[7] + c * axes[2] * axes[8]
    syz = a * axes[3] * axes[6] + b * axes[4] * axes[7] + c * axes[5] * axes[8]
    reach = math.sqrt(szz)
    shift = offset * axes[8]
    if -centre[2] + abs(shift) + reach < near:
        return NOWHERE
    if -centre[2] - abs(shift) - reach <= near:
        return _corner_bounds(kind, size, centre, axes, near)
    x, y, z = centre[0] + offset * axes[2], centre[1] + offset * axes[5], centre[2] + shift
    low_x, high_x = _ellipsoid_bounds(x, z, sxx, sxz, szz)
    low_y, high_y = _ellipsoid_bounds(y, z, syy, syz, szz)
    if kind == ELLIPSOID:
        return low_x, high_x, low_y, high_y
    x, y, z = centre[0] - offset * axes[2], centre[1] - offset * axes[5], centre[2] - shift
    other_low_x, other_high_x = _ellipsoid_bounds(x, z, sxx, sxz, szz)
    other_low_y, other_high_y = _ellipsoid_bounds(y, z, syy, syz, szz)
    return (
        min(low_x, other_low_x),
        max(high_x, other_high_x),
        min(low_y, other_low_y),
        max(high_y, other_high_y),
    )


@inlined
def _ellipsoid_bounds(cx, cz, sxx, sxz, szz):
    """Bound u = x / depth of an ellipsoid in front of the eye.

    The plane x + u z = 0 through the eye touches the ellipsoid if (n.c)^2 = n.S n, n = (1, 0, u):
    u^2 (cz^2 - Szz) + 2 u (cx cz - Sxz) + (cx^2 - Sxx) = 0.
    """
    a, b, c = cz * cz - szz, cx * cz - sxz, cx * cx - sxx
    root = math.sqrt(max(b * b - a * c, 0.0))
    return (-b - root) / a, (-b + root) / a


@inlined
def _corner_bounds(kind, size, centre, axes, near):
    """Bound the part of the enclosing box that lies in front of the near plane."""
    sx = size[0]
    sy = size[0] if kind in (CAPSULE, CYLINDER) else size[1]
    sz = size[2] + size[0] if kind == CAPSULE else size[2]
    if kind == PLANE:
        sz = 0.0
    bounds = NOWHERE
    for corner in range(4 if kind == PLANE else 8):
        x, y, z = _corner(corner, sx, sy, sz, centre, axes)
        if -z >= near:
            bounds = _include(bounds, x, y, z)
        for axis in range(2 if kind == PLANE else 3):
            # Each edge once, from its lower corner; where it crosses the near plane is a corner of
            # what remains.
            if corner & (1 << axis):
                continue
            ex, ey, ez = _corner(corner | (1 << axis), sx, sy, sz, centre, axes)
            if (-z >= near) != (-ez >= near):
                part = (-near - z) / (ez - z)
                bounds = _include(bounds, x + part * (ex - x), y + part * (ey - y), -near)
    return bounds


@inlined
def _corner(corner, sx, sy, sz, centre, axes):
    px = sx if corner & 1 else -sx
    py = sy if corner & 2 else -sy
    pz = sz if corner & 4 else -sz
    return (
        centre[0] + axes[0] * px + axes[1] * py + axes[2] * pz,
        centre[1] + axes[3] * px + axes[4] * py + axes[5] * pz,
        centre[2] + axes[6] * px + axes[7] * py + axes[8] * pz,
    )


@inlined
def _include(bounds, x, y, z):
    u, v = x / -z, y / -z
    return min(bounds[0], u), max(bounds[1], u), min(bounds[2], v), max(bounds[3], v)


@inlined
def pixel_range(start, stop, first, step, count):
    """Return the range of i with first + i * step in [start, stop] (in step's direction)."""
    low = math.ceil(max((start - first) / step - PIXEL_SLACK, 0.0))
    high = math.floor(min((stop - first) / step + PIXEL_SLACK, count - 1.0)) + 1.0
    return (np.uint64(low), np.uint64(high)) if low < high else (np.uint64(0), np.uint64(0))
