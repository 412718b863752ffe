"""`vla_crl.sim.native.kernel.kinematics` as Warp functions, in the same order and precision."""

import numpy as np
import warp as wp

from vla_crl.errors import ConfigError
from vla_crl.sim.native.kernel import kinematics

wp.set_module_options({"enable_backward": False})

MAX_JOINTS = 8
"""Joints of an arm at most; columns beyond an arm's number stay zero."""
HALF = wp.constant(wp.float64(0.5))
ONE = wp.constant(wp.float64(1.0))
POSTURE_GAIN = wp.constant(wp.float64(kinematics.POSTURE_GAIN))
DAMPING_SQUARED = wp.constant(wp.float64(kinematics.DAMPING**2))
NO_ANGLE = wp.constant(wp.float64(1e-12))

Joints = wp.types.vector(length=MAX_JOINTS, dtype=wp.float64)
Jacobian = wp.types.matrix(shape=(6, MAX_JOINTS), dtype=wp.float64)
Gram = wp.types.matrix(shape=(6, 6), dtype=wp.float64)
Twist = wp.types.vector(length=6, dtype=wp.float64)


@wp.struct
class Chain:
    """`kinematics.Chain`, joints padded to `MAX_JOINTS`."""

    num_joints: int
    offsets: wp.array(dtype=wp.vec3d)
    rotations: wp.array(dtype=wp.mat33d)
    axes: wp.array(dtype=wp.vec3d)
    rest: Joints
    low: Joints
    high: Joints


def put_chain(chain: kinematics.Chain, device: str) -> Chain:
    """Copy a chain to a device.

    Raises:
        ConfigError: The arm has more joints than `MAX_JOINTS`.
    """
    num_joints = len(chain.rest_rad)
    if num_joints > MAX_JOINTS:
        raise ConfigError(
            f"WarpSim: the arm has {num_joints} joints, expected at most {MAX_JOINTS}; "
            "simulate it with VectorSim"
        )
    result, padding = Chain(), (0, MAX_JOINTS - num_joints)
    result.num_joints = num_joints
    result.offsets = wp.array(chain.offsets_m, dtype=wp.vec3d, device=device)
    result.rotations = wp.array(chain.rotations, dtype=wp.mat33d, device=device)
    result.axes = wp.array(chain.axes, dtype=wp.vec3d, device=device)
    result.rest = Joints(*np.pad(chain.rest_rad, padding))
    result.low = Joints(*np.pad(chain.low_rad, padding))
    result.high = Joints(*np.pad(chain.high_rad, padding))
    return result


@wp.func
def rotation_about(axis_angle: wp.vec3d) -> wp.mat33d:
    """See `kinematics.rotation_about`."""
    angle = wp.length(axis_angle)
    axis = wp.vec3d()
    if angle >= NO_ANGLE:
        axis = axis_angle / angle
    x, y, z = axis[0], axis[1], axis[2]
    c, s = wp.cos(angle), wp.sin(angle)
    d = ONE - c
    return wp.mat33d(
        c + x * x * d, x * y * d - z * s, x * z * d + y * s,
        y * x * d + z * s, c + y * y * d, y * z * d - x * s,
        z * x * d - y * s, z * y * d + x * s, c + z * z * d,
    )  # fmt: skip


@wp.func
def forward(chain: Chain, joints: Joints):
    """Return position, rotation and Jacobian; see `kinematics.forward`."""
    position = wp.vec3d()
    rotation = wp.identity(n=3, dtype=wp.float64)
    origins = Jacobian()  # rows 0 to 2: position of each joint
    jacobian = Jacobian()
    for j in range(chain.num_joints):
        position += rotation @ chain.offsets[j]
        rotation = rotation @ chain.rotations[j]
        axis = rotation @ chain.axes[j]
        for i in range(3):
            origins[i, j] = position[i]
            jacobian[3 + i, j] = axis[i]
        rotation = rotation @ rotation_about(chain.axes[j] * joints[j])
    position += rotation @ chain.offsets[chain.num_joints]
    rotation = rotation @ chain.rotations[chain.num_joints]
    for j in range(chain.num_joints):  # linear part: axis x (grip - joint origin)
        axis = wp.vec3d(jacobian[3, j], jacobian[4, j], jacobian[5, j])
        origin = wp.vec3d(origins[0, j], origins[1, j], origins[2, j])
        linear = wp.cross(axis, position - origin)
        for i in range(3):
            jacobian[i, j] = linear[i]
    return position, rotation, jacobian


@wp.func
def inverse(
    chain: Chain, start: Joints, target: wp.vec3d, target_rotation: wp.mat33d, num_iterations: int
) -> Joints:
    """Return joints (rad) whose grip is nearer to a target pose; see `kinematics.inverse`."""
    joints = Joints(start)
    for _ in range(num_iterations):
        position, rotation, jacobian = forward(chain, joints)
        turn = wp.vec3d()  # half the sum of column cross products: small-angle rotation error
        for k in range(3):
            column = wp.vec3d(rotation[0, k], rotation[1, k], rotation[2, k])
            wanted = wp.vec3d(target_rotation[0, k], target_rotation[1, k], target_rotation[2, k])
            turn += HALF * wp.cross(column, wanted)
        shift = target - position
        error = Twist(shift[0], shift[1], shift[2], turn[0], turn[1], turn[2])
        posture = POSTURE_GAIN * (chain.rest - joints)
        gram = jacobian @ wp.transpose(jacobian)
        gram += DAMPING_SQUARED * wp.identity(n=6, dtype=wp.float64)
        solved = solve_positive_definite(gram, error - jacobian @ posture)
        moved = joints + posture + wp.transpose(jacobian) @ solved
        joints = wp.min(wp.max(moved, chain.low), chain.high)
    return joints


@wp.func
def solve_positive_definite(matrix: Gram, vector: Twist) -> Twist:
    """Return matrix^-1 vector; see `stepped.solve_positive_definite`."""
    lower, result = Gram(), Twist()
    for j in range(6):
        for i in range(j, 6):
            total = matrix[i, j]
            for k in range(j):
                total -= lower[i, k] * lower[j, k]
            lower[i, j] = total
        diagonal = wp.sqrt(lower[j, j])
        for i in range(j, 6):
            lower[i, j] = lower[i, j] / diagonal
    for i in range(6):
        total = vector[i]
        for k in range(i):
            total -= lower[i, k] * result[k]
        result[i] = total / lower[i, i]
    for back in range(6):
        i = 5 - back
        total = result[i]
        for k in range(i + 1, 6):
            total -= lower[k, i] * result[k]
        result[i] = total / lower[i, i]
    return result
