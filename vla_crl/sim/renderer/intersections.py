"""Where a ray enters each primitive, and the surface gradient at that point.

Every function works in the primitive's own frame, scaled so that its sizes are one; only the
capsule, scaled by its radius, keeps a half length h, which the others ignore. A ray is
p(t) = o + t d. The entry is the smaller root only: like MuJoCo, which culls back faces, a camera
inside a primitive does not see it. MISS (infinity) or NaN stands for "no hit"; there are no
branches, so that loops over pixels vectorise.
"""

import math

from vla_crl.sim.renderer.compilation import MISS, ONE, TINY, ZERO, inlined


@inlined
def plane_entry(o, d, h):
    """Solve z(t) = 0 from above, within |x| <= 1 and |y| <= 1."""
    t = -o[2] / d[2]
    inside = (abs(o[0] + t * d[0]) <= ONE) & (abs(o[1] + t * d[1]) <= ONE)
    return t if inside & (d[2] < ZERO) & (o[2] > ZERO) else MISS


@inlined
def ellipsoid_entry(o, d, h):
    """Solve |p(t)| = 1 for the unit sphere.

    With s the ray's closest approach and q = p(s): t = s - sqrt((1 - q.q) / d.d). This form loses
    no digits for small primitives far away, unlike the discriminant b^2 - a c in float32.
    """
    inverse = ONE / (d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
    s = -(o[0] * d[0] + o[1] * d[1] + o[2] * d[2]) * inverse
    x, y, z = o[0] + s * d[0], o[1] + s * d[1], o[2] + s * d[2]
    room = ONE - (x * x + y * y + z * z)
    return s - math.sqrt(room * inverse) if room >= ZERO else MISS


@inlined
def tube_entry(o, d):
    """Solve x(t)^2 + y(t)^2 = 1 for the endless tube around the z axis."""
    # A ray along the axis enters the tube "at minus infinity", that is before the near end.
    inverse = ONE / max(d[0] * d[0] + d[1] * d[1], TINY)
    s = -(o[0] * d[0] + o[1] * d[1]) * inverse
    x, y = o[0] + s * d[0], o[1] + s * d[1]
    room = ONE - (x * x + y * y)
    return s - math.sqrt(room * inverse) if room >= ZERO else MISS


@inlined
def capsule_entry(o, d, h):
    """Enter the tube where |z| <= h, else the unit sphere around the end that was passed."""
    side = tube_entry(o, d)
    z = o[2] + side * d[2]
    end = max(-h, min(h, z))
    cap = ellipsoid_entry((o[0], o[1], o[2] - end), d, h)
    return side if abs(z) <= h else cap


@inlined
def cylinder_entry(o, d, h):
    """Enter the tube where |z| <= 1, else the disc z = +-1 that was passed."""
    side = tube_entry(o, d)
    z = o[2] + side * d[2]
    cap = (math.copysign(ONE, z) - o[2]) / d[2]
    x, y = o[0] + cap * d[0], o[1] + cap * d[1]
    flat = cap if (x * x + y * y <= ONE) & (side < MISS) else MISS
    return side if abs(z) <= ONE else flat


@inlined
def box_entry(o, d, h):
    """Intersect the three slabs |x|, |y|, |z| <= 1: last entry, if before the first exit."""
    ix = ONE / (d[0] if abs(d[0]) > TINY else TINY)
    iy = ONE / (d[1] if abs(d[1]) > TINY else TINY)
    iz = ONE / (d[2] if abs(d[2]) > TINY else TINY)
    mx, my, mz = -o[0] * ix, -o[1] * iy, -o[2] * iz
    hx, hy, hz = abs(ix), abs(iy), abs(iz)
    entry = max(mx - hx, my - hy, mz - hz)
    leave = min(mx + hx, my + hy, mz + hz)
    return entry if entry <= leave else MISS


@inlined
def plane_gradient(x, y, z, h):
    """Return the z axis."""
    return ZERO, ZERO, ONE


@inlined
def ellipsoid_gradient(x, y, z, h):
    """Return half the gradient of x^2 + y^2 + z^2."""
    return x, y, z


@inlined
def capsule_gradient(x, y, z, h):
    """Return the direction away from the nearest point of the axis segment."""
    return x, y, z - max(-h, min(h, z))


@inlined
def cylinder_gradient(x, y, z, h):
    """Return radial on the side, axial on the discs; the larger coordinate tells which."""
    on_disc = z * z > x * x + y * y
    return ZERO if on_disc else x, ZERO if on_disc else y, z if on_disc else ZERO


@inlined
def box_gradient(x, y, z, h):
    """Return the axis whose coordinate is +-1, i.e. the largest."""
    ax, ay, az = abs(x), abs(y), abs(z)
    on_x = (ax >= ay) & (ax >= az)
    on_z = (az > ax) & (az > ay)
    return x if on_x else ZERO, ZERO if on_x | on_z else y, z if on_z else ZERO
