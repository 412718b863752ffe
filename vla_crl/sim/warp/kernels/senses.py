"""What the robot feels, see `Suite.embodiment`, and noise on what it senses."""

import warp as wp

from vla_crl.sim.native.kernel import senses

wp.set_module_options({"enable_backward": False})

ONE, TWO = wp.constant(wp.float64(1.0)), wp.constant(wp.float64(2.0))
NO_SINE = wp.constant(wp.float64(1e-9))
NONE, HALF, WHITE = (wp.constant(wp.float64(value)) for value in (0.0, 0.5, 255.0))
STATE_STREAM = wp.constant(senses.STATE_STREAM)
GOLDEN = wp.constant(wp.uint64(0x9E3779B97F4A7C15))
STREAM_STEP = wp.constant(wp.uint64(0xD1342543DE82EF95))
FIRST_FACTOR = wp.constant(wp.uint64(0xBF58476D1CE4E5B9))
SECOND_FACTOR = wp.constant(wp.uint64(0x94D049BB133111EB))


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
    joints: wp.array(dtype=int),
    state: wp.array2d(dtype=float),
):
    """Write the state [N, S] of the worlds where `felt` is 1.

    Args:
        felt: [N].
        site_pos: [N, sites].
        site_mat: [N, sites].
        qpos: [N, nq].
        grip_site: Site id.
        joints: [S - 6] where in qpos the joints are that follow the grip's pose.
        state: Written.
    """
    world = wp.tid()
    if felt[world] == 0:
        return
    turn = axis_angle(wp.mat33d(site_mat[world, grip_site]))
    for i in range(3):
        state[world, i] = site_pos[world, grip_site][i]
        state[world, 3 + i] = float(turn[i])
    for j in range(joints.shape[0]):
        state[world, 6 + j] = qpos[world, joints[j]]


@wp.func
def _mix(word: wp.uint64) -> wp.uint64:
    """See `senses._mix`."""
    word = (word ^ (word >> wp.uint64(30))) * FIRST_FACTOR
    word = (word ^ (word >> wp.uint64(27))) * SECOND_FACTOR
    return word ^ (word >> wp.uint64(31))


@wp.func
def _stream(key: wp.uint64, num_steps: int, number: int) -> wp.uint64:
    """See `senses._stream`."""
    seed = _mix(key + GOLDEN) ^ (wp.uint64(num_steps) * GOLDEN)
    return _mix(seed + wp.uint64(number) * STREAM_STEP)


@wp.func
def _normal(seed: wp.uint64, index: int) -> wp.float64:
    """See `senses._normal`."""
    bits = _mix(seed + wp.uint64(index) * GOLDEN)
    total = wp.float64(0.0)
    for part in range(4):
        total += wp.float64((bits >> wp.uint64(16 * part)) & wp.uint64(0xFFFF))
    return (total / wp.float64(65535.0) - TWO) * wp.sqrt(wp.float64(3.0))


@wp.kernel
def add_image_noise(
    images: wp.array4d(dtype=wp.vec3ub),
    sigma: wp.array(dtype=wp.float64),
    key: wp.array(dtype=wp.uint64),
    num_steps: wp.array(dtype=int),
):
    """Add noise to images [N, C, H, W]; see `senses.add_image_noise`."""
    world, pixel = wp.tid()
    if sigma[world] == NONE:
        return
    height, width = images.shape[2], images.shape[3]
    camera, place = pixel // (height * width), pixel % (height * width)
    seed = _stream(key[world], num_steps[world], 0)
    colour = images[world, camera, place // width, place % width]
    for i in range(3):
        noise = WHITE * sigma[world] * _normal(seed, 3 * pixel + i)
        value = wp.clamp(wp.float64(colour[i]) + noise, NONE, WHITE)
        colour[i] = wp.uint8(value + HALF)
    images[world, camera, place // width, place % width] = colour


@wp.kernel
def add_state_noise(
    state: wp.array2d(dtype=float),
    sigma: wp.array(dtype=wp.float64),
    key: wp.array(dtype=wp.uint64),
    num_steps: wp.array(dtype=int),
):
    """Add noise to states [N, S]; see `senses.add_state_noise`."""
    world, i = wp.tid()
    if sigma[world] > NONE:
        seed = _stream(key[world], num_steps[world], STATE_STREAM)
        state[world, i] += float(sigma[world] * _normal(seed, i))
