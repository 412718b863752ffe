"""The controller and the joint ramp of `vla_crl.sim.native.kernel` as Warp kernels."""

import warp as wp

from vla_crl.sim.native.kernel import controller
from vla_crl.sim.native.kernel.slots import SceneConstants
from vla_crl.sim.warp.kernels.kinematics import Chain, Joints, inverse, put_chain, rotation_about

wp.set_module_options({"enable_backward": False, "max_unroll": 3})

MAX_LEAD_M = wp.constant(wp.float64(controller.MAX_LEAD_M))
MAX_JOINT_STEP_RAD = wp.constant(wp.float64(controller.MAX_JOINT_STEP_RAD))
MAX_JOINT_LEAD_RAD = wp.constant(wp.float64(controller.MAX_JOINT_LEAD_RAD))
FINGER_STEP_M = wp.constant(wp.float64(controller.FINGER_STEP_M))
FINGER_OPEN_M = wp.constant(wp.float64(controller.FINGER_OPEN_M))
ZERO, HALF, ONE = (wp.constant(wp.float64(value)) for value in (0.0, 0.5, 1.0))
POSITION = wp.constant(controller.POSITION.start)
ROTATION = wp.constant(controller.ROTATION.start)
FIRST_JOINT = wp.constant(controller.JOINTS.start)
POSE_ITERATIONS = wp.constant(controller.POSE_ITERATIONS)
EEF_POSE = wp.constant(controller.EEF_POSE)
JOINT_POSITION = wp.constant(controller.JOINT_POSITION)


@wp.struct
class Controller:
    """`controller.Controller`, and which actuators it drives."""

    kind: int
    chain: Chain
    max_step_m: wp.float64
    max_step_rad: wp.float64
    low_m: wp.vec3d
    high_m: wp.vec3d
    grip_site: int
    arm_actuators: wp.array(dtype=int)
    arm_qpos: wp.array(dtype=int)
    finger_actuators: wp.array(dtype=int)


def put_controller(constants: SceneConstants, device: str) -> Controller:
    """Copy the interface of a scene to a device."""
    source, result = constants.controller, Controller()
    result.kind = source.kind
    result.chain = put_chain(source.chain, device)
    result.max_step_m, result.max_step_rad = source.max_step_m, source.max_step_rad
    result.low_m, result.high_m = wp.vec3d(*source.low_m), wp.vec3d(*source.high_m)
    result.grip_site = constants.grip_site
    result.arm_actuators = wp.array(constants.arm_actuators, dtype=int, device=device)
    result.arm_qpos = wp.array(constants.arm_qpos, dtype=int, device=device)
    result.finger_actuators = wp.array(constants.finger_actuators, dtype=int, device=device)
    return result


@wp.kernel
def delay(
    acting: wp.array(dtype=int),
    latency: wp.array(dtype=int),
    num_steps: wp.array(dtype=int),
    pending: wp.array3d(dtype=wp.float64),
    actions: wp.array2d(dtype=wp.float64),
):
    """Replace actions [N, A] by those of `latency` steps ago; see `stepping._delayed`."""
    world = wp.tid()
    if acting[world] == 0 or latency[world] == 0:
        return
    place = num_steps[world] % latency[world]
    for i in range(actions.shape[1]):
        earlier = pending[world, place, i]
        pending[world, place, i] = actions[world, i]
        actions[world, i] = earlier


@wp.func
def _shorten(joints: Joints, num_joints: int, states: wp.array2d(dtype=wp.float64), world: int):
    """Write joint commands into a state; see `controller._shorten`."""
    fastest = MAX_JOINT_STEP_RAD
    for j in range(num_joints):
        fastest = wp.max(fastest, wp.abs(joints[j] - states[world, FIRST_JOINT + j]))
    for j in range(num_joints):
        previous = states[world, FIRST_JOINT + j]
        part = MAX_JOINT_STEP_RAD / fastest * (joints[j] - previous)
        states[world, FIRST_JOINT + j] = previous + part


@wp.func
def _move_pose(
    controller: Controller,
    actions: wp.array2d(dtype=wp.float64),
    measured: wp.vec3d,
    base_shift: wp.vec3d,
    states: wp.array2d(dtype=wp.float64),
    world: int,
):
    """See `controller.move_pose`."""
    position, turn = wp.vec3d(), wp.vec3d()
    for i in range(3):
        lead = states[world, POSITION + i] + controller.max_step_m * actions[world, i]
        lead = wp.min(wp.max(lead, measured[i] - MAX_LEAD_M), measured[i] + MAX_LEAD_M)
        position[i] = wp.min(wp.max(lead, controller.low_m[i]), controller.high_m[i])
        if controller.kind == EEF_POSE:
            turn[i] = actions[world, 3 + i] * controller.max_step_rad
    rotation = wp.mat33d()
    for i in range(3):
        for j in range(3):
            rotation[i, j] = states[world, ROTATION + 3 * i + j]
    rotation = rotation_about(turn) @ rotation
    joints, num_joints = Joints(), controller.chain.num_joints
    for j in range(num_joints):
        joints[j] = states[world, FIRST_JOINT + j]
    target = position - base_shift
    solved = inverse(controller.chain, joints, target, rotation, POSE_ITERATIONS)
    for i in range(3):
        states[world, POSITION + i] = position[i]
        for j in range(3):
            states[world, ROTATION + 3 * i + j] = rotation[i, j]
    _shorten(solved, num_joints, states, world)


@wp.func
def _move_joints(
    chain: Chain,
    actions: wp.array2d(dtype=wp.float64),
    states: wp.array2d(dtype=wp.float64),
    world: int,
):
    """See `controller._move_joints`."""
    target = Joints()
    for j in range(chain.num_joints):
        part = HALF * (actions[world, j] + ONE)
        target[j] = chain.low[j] + part * (chain.high[j] - chain.low[j])
    _shorten(target, chain.num_joints, states, world)


@wp.kernel
def command(
    controller: Controller,
    acting: wp.array(dtype=int),
    actions: wp.array2d(dtype=wp.float64),
    site_pos: wp.array2d(dtype=wp.vec3),
    base_shift: wp.array(dtype=wp.vec3d),
    states: wp.array2d(dtype=wp.float64),
    previous: wp.array2d(dtype=wp.float64),
):
    """Advance the controller states of the worlds that act; see `controller.command`.

    Args:
        controller: Constants.
        acting: [N] 1 where the episode runs.
        actions: [N, A].
        site_pos: [N, sites] as measured, m.
        base_shift: [N] displacement of the robot, m, world.
        states: [N, R] updated in place.
        previous: [N, R] written: the states before.
    """
    world = wp.tid()
    for i in range(states.shape[1]):
        previous[world, i] = states[world, i]
    if acting[world] == 0:
        return
    if controller.kind == JOINT_POSITION:
        _move_joints(controller.chain, actions, states, world)
    else:
        measured = wp.vec3d(site_pos[world, controller.grip_site])
        _move_pose(controller, actions, measured, base_shift[world], states, world)
    gripper = actions[world, actions.shape[1] - 1]
    finger, last = ZERO, FIRST_JOINT + controller.chain.num_joints
    if gripper > ZERO:
        finger = states[world, last] - FINGER_STEP_M
    elif gripper < ZERO:
        finger = states[world, last] + FINGER_STEP_M
    else:
        finger = states[world, last]
    states[world, last] = wp.min(wp.max(finger, ZERO), FINGER_OPEN_M)


@wp.kernel
def ramp(
    controller: Controller,
    fraction: wp.float64,
    states: wp.array2d(dtype=wp.float64),
    previous: wp.array2d(dtype=wp.float64),
    qpos: wp.array2d(dtype=float),
    ctrl: wp.array2d(dtype=float),
):
    """Move the actuator commands a fraction of the way; see `stepping._control_step`."""
    world = wp.tid()
    num_joints = controller.chain.num_joints
    for j in range(num_joints):
        start = previous[world, FIRST_JOINT + j]
        change = states[world, FIRST_JOINT + j] - start
        measured = wp.float64(qpos[world, controller.arm_qpos[j]])
        lead = start + fraction * change - measured
        lead = wp.clamp(lead, -MAX_JOINT_LEAD_RAD, MAX_JOINT_LEAD_RAD)
        ctrl[world, controller.arm_actuators[j]] = float(measured + lead)
    start = previous[world, FIRST_JOINT + num_joints]
    change = states[world, FIRST_JOINT + num_joints] - start
    for j in range(2):
        ctrl[world, controller.finger_actuators[j]] = float(start + fraction * change)
