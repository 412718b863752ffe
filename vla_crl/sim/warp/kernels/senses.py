"""What the robot feels, as a Warp kernel: the state of `vla_crl.contracts.STATE_DIM`."""

import warp as wp

wp.set_module_options({"enable_backward": False})

ONE, TWO = wp.constant(wp.float64(1.0)), wp.constant(wp.float64(2.0))
NO_SINE = wp.constant(wp.float64(1e-9))


@wp.func
def axis_angle(m: wp.mat33d) -> wp.vec3d:
    """See `rotations.axis_angle_from_matrix`."""
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    outer = wp.mat44d()  # 4 q q' (wxyz): its largest-diagonal row is the best-conditioned q
    outer[0, 0] = ONE + trace
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        outer[1 + i, 1 + i] = ONE + TWO * m[i, i] - trace
        outer[0, 1 + i] = m[k, j] - m[j, k]
        outer[1 + i, 0] = m[k, j] - m[j, k]
        outer[1 + i, 1 + j] = m[i, j] + m[j, i]
        outer[1 + j, 1 + i] = m[i, j] + m[j, i]
    best = int(0)
    for i in range(1, 4):
        if outer[i, i] > outer[best, best]:
            best = i
    quat = wp.normalize(wp.vec4d(outer[best, 0], outer[best, 1], outer[best, 2], outer[best, 3]))
    vector = wp.vec3d(quat[1], quat[2], quat[3])
    sine = wp.length(vector)
    scale = TWO
    if sine > NO_SINE:
        scale = TWO * wp.atan2(sine, quat[0]) / sine
    return scale * vector


@wp.kernel
def feel(
    felt: wp.array(dtype=int),
    site_pos: wp.array2d(dtype=wp.vec3),
    site_mat: wp.array2d(dtype=wp.mat33),
    qpos: wp.array2d(dtype=float),
    grip_site: int,
    fingers: wp.array(dtype=int),
    state: wp.array2d(dtype=float),
):
    """Write the state [N, 8] of the worlds where `felt` is 1."""
    world = wp.tid()
    if felt[world] == 0:
        return
    turn = axis_angle(wp.mat33d(site_mat[world, grip_site]))
    for i in range(3):
        state[world, i] = site_pos[world, grip_site][i]
        state[world, 3 + i] = float(turn[i])
    for i in range(2):
        state[world, 6 + i] = qpos[world, fingers[i]]
