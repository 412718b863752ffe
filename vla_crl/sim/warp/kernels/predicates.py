"""`vla_crl.sim.native.kernel.predicates` as Warp functions, on poses as MuJoCo Warp keeps them."""

import numpy as np
import warp as wp

from vla_crl.sim.native.kernel import predicates
from vla_crl.sim.native.kernel.predicates import Op

wp.set_module_options({"enable_backward": False})

AND, OR, NOT, IN, ON = (wp.constant(int(op)) for op in (Op.AND, Op.OR, Op.NOT, Op.IN, Op.ON))
RELEASED, BESIDE, BETWEEN = (wp.constant(int(op)) for op in (Op.RELEASED, Op.BESIDE, Op.BETWEEN))
JOINT_ABOVE = wp.constant(int(Op.JOINT_ABOVE))
SPHERE, CAPSULE = wp.constant(predicates.SPHERE), wp.constant(predicates.CAPSULE)
CYLINDER, ELLIPSOID = wp.constant(predicates.CYLINDER), wp.constant(predicates.ELLIPSOID)

SINK_M = wp.constant(wp.float64(predicates.SINK_M))
HOVER_M = wp.constant(wp.float64(predicates.HOVER_M))
LEAST_GAP_M = wp.constant(wp.float64(predicates.LEAST_GAP_M))
GREATEST_GAP_M = wp.constant(wp.float64(predicates.GREATEST_GAP_M))
OFF_LINE_M = wp.constant(wp.float64(predicates.OFF_LINE_M))
SAME_HEIGHT_M = wp.constant(wp.float64(predicates.SAME_HEIGHT_M))
RELEASED_M = wp.constant(wp.float64(predicates.RELEASED_M))

ZERO, ONE = wp.constant(wp.float64(0.0)), wp.constant(wp.float64(1.0))
UP, DOWN = wp.constant(wp.float64(1.0)), wp.constant(wp.float64(-1.0))
TWO, FOUR = wp.constant(wp.float64(2.0)), wp.constant(wp.float64(4.0))
INFINITY = wp.constant(wp.float64(np.inf))


@wp.struct
class Goals:
    """`predicates.Goals`."""

    programs: wp.array3d(dtype=int)
    lengths: wp.array(dtype=int)
    numbers: wp.array3d(dtype=wp.float64)
    site_size: wp.array(dtype=wp.vec3d)
    half_width: wp.array(dtype=wp.float64)
    geoms: wp.array2d(dtype=int)
    geom_type: wp.array(dtype=int)
    geom_size: wp.array(dtype=wp.vec3d)


@wp.struct
class Poses:
    """`predicates.Poses` of all worlds: [N, ...], world frame, m."""

    body_pos: wp.array2d(dtype=wp.vec3)
    site_pos: wp.array2d(dtype=wp.vec3)
    site_mat: wp.array2d(dtype=wp.mat33)
    geom_pos: wp.array2d(dtype=wp.vec3)
    geom_mat: wp.array2d(dtype=wp.mat33)
    qpos: wp.array2d(dtype=float)
    grip_site: int


def put_goals(goals: predicates.Goals, device: str) -> Goals:
    """Copy compiled goals to a device."""
    result = Goals()
    types = {"numbers": wp.float64, "half_width": wp.float64}
    types |= dict.fromkeys(("site_size", "geom_size"), wp.vec3d)
    for name, value in goals._asdict().items():
        setattr(result, name, wp.array(value, dtype=types.get(name, int), device=device))
    return result


@wp.func
def goal_reached(goals: Goals, task: int, poses: Poses, world: int) -> bool:
    """See `predicates.goal_reached`."""
    stack = int(0)
    for k in range(goals.lengths[task]):
        op = goals.programs[task, k, 0]
        if op == NOT:
            stack = stack ^ 1
        elif op == AND:
            stack = (stack >> 1) & (stack | ~1)
        elif op == OR:
            stack = (stack >> 1) | (stack & 1)
        else:
            stack = stack << 1
            if _predicate(goals, task, k, poses, world):
                stack = stack | 1
    return stack & 1 == 1


@wp.func
def _predicate(goals: Goals, task: int, k: int, poses: Poses, world: int) -> bool:
    op, a = goals.programs[task, k, 0], goals.programs[task, k, 1]
    b, c = goals.programs[task, k, 2], goals.programs[task, k, 3]
    first, second = goals.numbers[task, k, 0], goals.numbers[task, k, 1]
    if op == IN:
        return _is_in(
            wp.vec3d(poses.body_pos[world, a]), wp.vec3d(poses.site_pos[world, b]),
            wp.mat33d(poses.site_mat[world, b]), goals.site_size[b],
        )  # fmt: skip
    if op == ON:
        gap = _extent(goals, a, poses, world, DOWN) - _extent(goals, b, poses, world, UP)
        apart = wp.vec3d(poses.body_pos[world, a]) - wp.vec3d(poses.body_pos[world, b])
        is_over = wp.sqrt(apart[0] * apart[0] + apart[1] * apart[1]) <= goals.half_width[b]
        return -SINK_M <= gap and gap <= HOVER_M and is_over
    if op == RELEASED:
        apart = wp.vec3d(poses.body_pos[world, a])
        apart = apart - wp.vec3d(poses.site_pos[world, poses.grip_site])
        return wp.dot(apart, apart) >= RELEASED_M * RELEASED_M
    if op == BESIDE:
        apart = wp.vec3d(poses.body_pos[world, a]) - wp.vec3d(poses.body_pos[world, b])
        along = apart[0] * first + apart[1] * second
        across = apart[0] * second - apart[1] * first
        is_near = LEAST_GAP_M <= along and along <= GREATEST_GAP_M
        is_near = is_near and wp.abs(across) <= OFF_LINE_M
        return is_near and _stand_level(goals, a, b, poses, world)
    if op == BETWEEN:
        line = wp.vec3d(poses.body_pos[world, c]) - wp.vec3d(poses.body_pos[world, b])
        apart = wp.vec3d(poses.body_pos[world, a]) - wp.vec3d(poses.body_pos[world, b])
        length = wp.sqrt(line[0] * line[0] + line[1] * line[1])
        along = (apart[0] * line[0] + apart[1] * line[1]) / length
        across = (apart[0] * line[1] - apart[1] * line[0]) / length
        in_middle = wp.abs(along - length / TWO) <= length / FOUR
        in_middle = in_middle and wp.abs(across) <= OFF_LINE_M
        return in_middle and _stand_level(goals, a, b, poses, world)
    if op == JOINT_ABOVE:
        return wp.float64(poses.qpos[world, a]) >= first
    return wp.float64(poses.qpos[world, a]) <= first


@wp.func
def _is_in(point: wp.vec3d, centre: wp.vec3d, axes: wp.mat33d, half_size: wp.vec3d) -> bool:
    local = wp.transpose(axes) @ (point - centre)  # |R' (p - c)| <= size, per axis
    for axis in range(3):
        if wp.abs(local[axis]) > half_size[axis]:
            return False
    return True


@wp.func
def _stand_level(goals: Goals, a: int, b: int, poses: Poses, world: int) -> bool:
    difference = _extent(goals, a, poses, world, DOWN) - _extent(goals, b, poses, world, DOWN)
    return wp.abs(difference) <= SAME_HEIGHT_M


@wp.func
def _extent(goals: Goals, body: int, poses: Poses, world: int, sign: wp.float64) -> wp.float64:
    """Return the height (m) of a body's highest (sign 1) or lowest (sign -1) point."""
    best = -INFINITY
    for geom in range(goals.geoms[body, 0], goals.geoms[body, 1]):
        axes = wp.mat33d(poses.geom_mat[world, geom])
        up = wp.vec3d(wp.abs(axes[2, 0]), wp.abs(axes[2, 1]), wp.abs(axes[2, 2]))
        reach = _support(goals.geom_type[geom], goals.geom_size[geom], up)
        best = wp.max(best, sign * wp.float64(poses.geom_pos[world, geom][2]) + reach)
    return sign * best


@wp.func
def _support(kind: int, size: wp.vec3d, up: wp.vec3d) -> wp.float64:
    """Return how far a geom reaches up (and down) from its centre."""
    if kind == SPHERE:
        return size[0]
    if kind == CAPSULE:
        return size[0] + size[1] * up[2]
    if kind == CYLINDER:
        return size[0] * wp.sqrt(wp.max(ONE - up[2] * up[2], ZERO)) + size[1] * up[2]
    if kind == ELLIPSOID:
        return wp.length(wp.cw_mul(size, up))
    return wp.dot(size, up)


@wp.kernel
def evaluate_goals(
    goals: Goals, indices: wp.array(dtype=int), poses: Poses, holds: wp.array(dtype=bool)
):
    """Write into holds [N] whether goal indices[world] holds; see `stepping.evaluate_goals`."""
    world = wp.tid()
    holds[world] = goal_reached(goals, indices[world], poses, world)
