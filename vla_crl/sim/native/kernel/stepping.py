"""The compiled inner loop: control, physics, predicates and poses of a block of slots."""

import numpy as np
from numba import njit  # pyright: ignore[reportPrivateImportUsage]

from vla_crl.sim.machine_code import source_version
from vla_crl.sim.mujoco_c import (
    mj_camera_light,
    mj_com_pos,
    mj_get_state,
    mj_kinematics,
    mj_set_state,
    mj_step,
    mj_update_sleep,
)
from vla_crl.sim.native.kernel.controller import FINGER, JOINTS, command, servo_command, state_size
from vla_crl.sim.native.kernel.kinematics import multiply
from vla_crl.sim.native.kernel.mechanics import vary
from vla_crl.sim.native.kernel.memory import has_room, watch_memory
from vla_crl.sim.native.kernel.predicates import Poses, goal_reached, poses_of
from vla_crl.sim.outcomes import DIVERGED, RUNNING, SUCCESS, TIME_LIMIT
from vla_crl.sim.packed_state import STATE_SPEC
from vla_crl.sim.stepped import SOURCES, is_healthy, rouse, view, view_integers


@njit(nogil=True)
def _enter(scene, scratch, slots, slot):
    """Put a slot's mechanics and physics state into the thread's model and data."""
    vary(
        scene.mechanics, scratch.mechanics, scene.objects,
        slots.varied.mass_gain[slot], slots.varied.friction_gain[slot],
    )  # fmt: skip
    packed = slots.dynamics.physics[slot]
    mj_set_state(scratch.model, scratch.data, packed.ctypes.data, STATE_SPEC)
    still = _still(scene, scratch)
    still[:] = slots.dynamics.tree_asleep[slot, : still.size]
    mj_update_sleep(scratch.model, scratch.data)
    watch_memory(scratch)


@njit(nogil=True)
def _still(scene, scratch):
    """Return MuJoCo's counters of steps without motion, one a tree."""
    return view_integers(scratch.arrays.tree_asleep, (scene.sizes.ntree,))


@njit(nogil=True)
def _publish(scene, scratch, slots, slot):
    """Refresh the poses of the current state and copy them into the slot's row."""
    mj_kinematics(scratch.model, scratch.data)
    mj_com_pos(scratch.model, scratch.data)  # for cameras that follow a centre of mass
    mj_camera_light(scratch.model, scratch.data)
    size, arrays, poses = scene.sizes, scratch.arrays, slots.poses
    poses.qpos[slot, : size.nq] = view(arrays.qpos, (size.nq,))
    poses.body_pos[slot, : size.nbody] = view(arrays.xpos, (size.nbody, 3))
    poses.site_pos[slot, : size.nsite] = view(arrays.site_xpos, (size.nsite, 3))
    poses.site_mat[slot, : size.nsite] = view(arrays.site_xmat, (size.nsite, 9))
    poses.geom_pos[slot, : size.ngeom] = view(arrays.geom_xpos, (size.ngeom, 3))
    poses.geom_mat[slot, : size.ngeom] = view(arrays.geom_xmat, (size.ngeom, 9))
    poses.camera_pos[slot, : size.ncam] = view(arrays.cam_xpos, (size.ncam, 3))
    poses.camera_mat[slot, : size.ncam] = view(arrays.cam_xmat, (size.ncam, 9))
    turned, varied = np.empty((3, 3)), slots.varied
    for camera in range(size.ncam):
        if scene.varied_cameras[camera]:  # p + R s, R T
            rotation = poses.camera_mat[slot, camera].reshape((3, 3))
            for i in range(3):
                for j in range(3):
                    shift = rotation[i, j] * varied.camera_shift[slot, j]
                    poses.camera_pos[slot, camera, i] += shift
            multiply(rotation, varied.camera_turn[slot].reshape((3, 3)), turned)
            rotation[:] = turned


@njit(nogil=True)
def _control_step(scene, scratch, state, action, grip, base_shift, qvel):
    """Advance one controller state and run the physics under it, joints moving linearly.

    Return whether its velocities `qvel` stayed healthy and its contacts found room; it stops where
    they do not.
    """
    ctrl = view(scratch.arrays.ctrl, (scene.sizes.nu,))
    qpos = view(scratch.arrays.qpos, (scene.sizes.nq,))
    joints, before, finger_before = state[JOINTS], state[JOINTS].copy(), state[FINGER]
    command(scene.controller, state, action, grip, base_shift)
    for substep in range(scene.num_substeps):
        fraction = (substep + 1) / scene.num_substeps
        for j in range(joints.shape[0]):
            joint = before[j] + fraction * (joints[j] - before[j])
            ctrl[scene.arm_actuators[j]] = servo_command(joint, qpos[scene.arm_qpos[j]])
        for j in range(2):
            change = state[FINGER] - finger_before
            ctrl[scene.finger_actuators[j]] = finger_before + fraction * change
        mj_step(scratch.model, scratch.data)
        if not (is_healthy(qvel) and has_room(scratch)):  # at once, before it has spread
            return False
    rouse(scratch, _still(scene, scratch))
    mj_kinematics(scratch.model, scratch.data)
    return True


@njit(nogil=True)
def _step_slot(scene, scratch, slots, slot, actions):
    """Run a chunk of actions [K, A] until it ends, succeeds, times out or diverges."""
    size, arrays, progress, dynamics = scene.sizes, scratch.arrays, slots.progress, slots.dynamics
    qvel = view(arrays.qvel, (size.nv,))
    site_pos = view(arrays.site_xpos, (size.nsite, 3))
    poses = Poses(
        view(arrays.xpos, (size.nbody, 3)),
        site_pos,
        view(arrays.site_xmat, (size.nsite, 9)),
        view(arrays.geom_xpos, (size.ngeom, 3)),
        view(arrays.geom_xmat, (size.ngeom, 9)),
        view(arrays.qpos, (size.nq,)),
        site_pos[scene.grip_site],
    )
    grip = slots.poses.site_pos[slot, scene.grip_site].copy()
    state = dynamics.controller[slot, : state_size(scene.arm_actuators.shape[0])]
    base_shift = slots.varied.base_shift[slot]
    _enter(scene, scratch, slots, slot)
    for action in actions:
        acting = _delayed(slots, slot, action)
        healthy = _control_step(scene, scratch, state, acting, grip, base_shift, qvel)
        grip[:] = site_pos[scene.grip_site]
        progress.num_steps[slot] += 1
        if not healthy:
            progress.outcome[slot] = DIVERGED
        elif goal_reached(scene.goals, progress.task[slot], poses):
            progress.outcome[slot] = SUCCESS
        elif progress.num_steps[slot] >= scene.horizon:
            progress.outcome[slot] = TIME_LIMIT
        if progress.outcome[slot] != RUNNING:
            break
    if progress.outcome[slot] != DIVERGED:  # else the slot keeps its last healthy state
        packed = dynamics.physics[slot]
        mj_get_state(scratch.model, scratch.data, packed.ctypes.data, STATE_SPEC)
        dynamics.tree_asleep[slot, : size.ntree] = _still(scene, scratch)
        _publish(scene, scratch, slots, slot)


@njit(nogil=True)
def _delayed(slots, slot, action):
    """Return the action of `latency` steps ago, at first one that lets the robot stand still."""
    latency = slots.varied.latency[slot]
    if latency == 0:
        return action
    ring = slots.dynamics.pending[slot, slots.progress.num_steps[slot] % latency]
    earlier = ring.copy()
    ring[:] = action
    return earlier


def _make_entry_points(version):
    """Return the functions that Python calls, the only ones cached (see `source_version`)."""

    @njit(nogil=True, cache=True)
    def refresh_slots(scene, scratch, slots, chosen):
        """Recompute the published poses of the `chosen` slots [B] from their physics state."""
        _ = version
        for slot in chosen:
            _enter(scene, scratch, slots, slot)
            _publish(scene, scratch, slots, slot)

    @njit(nogil=True, cache=True)
    def step_slots(scene, scratch, slots, chosen, actions):
        """Run chunks of actions; the content of `scratch` on entry does not matter.

        Args:
            scene: Constants of the scene.
            scratch: Model and data of that scene, to compute in.
            slots: All slots; only `chosen`, which are in that scene, are touched.
            chosen: [B] slot indices.
            actions: [N, K, A] finite, in [-1, 1], indexed by slot.
        """
        _ = version
        for slot in chosen:
            _step_slot(scene, scratch, slots, slot, actions[slot])

    @njit(nogil=True, cache=True)
    def evaluate_goals(goals, published, grip_site, chosen, indices, holds):
        """Write into holds [B] whether goal indices[b] holds in slot chosen[b].

        Args:
            goals: `Goals`.
            published: `SlotPoses`.
            grip_site: Site id.
            chosen: [B] slot indices.
            indices: [B] which goal.
            holds: Written.
        """
        _ = version
        for k in range(chosen.shape[0]):
            slot = chosen[k]
            poses = poses_of(published, slot, grip_site)
            holds[k] = goal_reached(goals, indices[k], poses)

    return refresh_slots, step_slots, evaluate_goals


refresh_slots, step_slots, evaluate_goals = _make_entry_points(
    source_version("native/kernel/*.py", *SOURCES)
)
