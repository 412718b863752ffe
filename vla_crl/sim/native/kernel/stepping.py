"""The compiled inner loop: control, physics, predicates and poses of a block of slots."""

import numpy as np
from numba import carray, njit  # pyright: ignore[reportPrivateImportUsage]

from vla_crl.sim.machine_code import source_version
from vla_crl.sim.native.kernel.controller import command
from vla_crl.sim.native.kernel.kinematics import multiply
from vla_crl.sim.native.kernel.mechanics import vary
from vla_crl.sim.native.kernel.mujoco_c import (
    as_double_pointer,
    as_int_pointer,
    mj_camera_light,
    mj_get_state,
    mj_kinematics,
    mj_set_state,
    mj_step,
    mj_update_sleep,
)
from vla_crl.sim.native.kernel.predicates import Poses, goal_reached
from vla_crl.sim.native.kernel.slots import FALLS_ASLEEP_NEXT, STATE_SPEC
from vla_crl.sim.outcomes import DIVERGED, MAX_SPEED, RUNNING, SUCCESS, TIME_LIMIT


@njit(nogil=True)
def _view(address, shape):
    return carray(as_double_pointer(address), shape)  # pyright: ignore[reportCallIssue]


@njit(nogil=True)
def _enter(world, scratch, slots, row):
    """Put a slot's mechanics and physics state into the thread's model and data."""
    vary(
        world.mechanics, scratch.mechanics, world.objects,
        slots.mass_gain[row], slots.friction_gain[row],
    )  # fmt: skip
    mj_set_state(scratch.model, scratch.data, slots.physics[row].ctypes.data, STATE_SPEC)
    still = _still(world, scratch)
    still[:] = slots.tree_asleep[row, : still.size]
    mj_update_sleep(scratch.model, scratch.data)


@njit(nogil=True)
def _still(world, scratch):
    """Return MuJoCo's counters of steps without motion, one a tree."""
    return carray(as_int_pointer(scratch.arrays[10]), (world.sizes.ntree,))  # pyright: ignore[reportCallIssue]


@njit(nogil=True)
def _rouse(world, scratch):
    """Wake all that sleeps for one step: a slot must not depend on what else its MjData holds.

    What slept and is touched by nothing that moves sleeps on after it.
    """
    still = _still(world, scratch)
    for tree in range(still.size):
        still[tree] = min(still[tree], FALLS_ASLEEP_NEXT)
    mj_update_sleep(scratch.model, scratch.data)


@njit(nogil=True)
def _publish(world, scratch, slots, row):
    """Refresh the poses of the current state and copy them into the slot's row."""
    mj_kinematics(scratch.model, scratch.data)
    mj_camera_light(scratch.model, scratch.data)
    size = world.sizes
    slots.qpos[row, : size.nq] = _view(scratch.arrays[1], (size.nq,))
    slots.body_pos[row, : size.nbody] = _view(scratch.arrays[3], (size.nbody, 3))
    slots.site_pos[row, : size.nsite] = _view(scratch.arrays[4], (size.nsite, 3))
    slots.site_mat[row, : size.nsite] = _view(scratch.arrays[5], (size.nsite, 9))
    slots.geom_pos[row, : size.ngeom] = _view(scratch.arrays[6], (size.ngeom, 3))
    slots.geom_mat[row, : size.ngeom] = _view(scratch.arrays[7], (size.ngeom, 9))
    slots.camera_pos[row, : size.ncam] = _view(scratch.arrays[8], (size.ncam, 3))
    slots.camera_mat[row, : size.ncam] = _view(scratch.arrays[9], (size.ncam, 9))
    turned = np.empty((3, 3))
    for camera in range(size.ncam):
        if world.varied_cameras[camera]:  # p + R s, R T
            rotation = slots.camera_mat[row, camera].reshape((3, 3))
            for i in range(3):
                for j in range(3):
                    shift = rotation[i, j] * slots.camera_shift[row, j]
                    slots.camera_pos[row, camera, i] += shift
            multiply(rotation, slots.camera_turn[row].reshape((3, 3)), turned)
            rotation[:] = turned


@njit(nogil=True)
def _healthy(velocities):
    for velocity in velocities:  # noqa: SIM110 - numba compiles no generator expressions
        if not abs(velocity) < MAX_SPEED:  # also catches NaN
            return False
    return True


@njit(nogil=True)
def _control_step(world, scratch, row, action, grip, base_shift, qvel):
    """Advance one controller row and run the physics under it, joints moving linearly.

    Return whether its velocities `qvel` stayed healthy; it stops where they do not.
    """
    ctrl = _view(scratch.arrays[0], (world.sizes.nu,))
    num_arm = world.arm_actuators.shape[0]
    previous = row[12:].copy()
    command(world.controller, row, action, grip, base_shift)
    for substep in range(world.num_substeps):
        fraction = (substep + 1) / world.num_substeps
        for j in range(num_arm):
            change = row[12 + j] - previous[j]
            ctrl[world.arm_actuators[j]] = previous[j] + fraction * change
        for j in range(2):
            change = row[12 + num_arm] - previous[num_arm]
            ctrl[world.finger_actuators[j]] = previous[num_arm] + fraction * change
        mj_step(scratch.model, scratch.data)
        if not _healthy(qvel):  # at once, before what blew up has spread
            return False
    _rouse(world, scratch)
    mj_kinematics(scratch.model, scratch.data)
    return True


@njit(nogil=True)
def _step_slot(world, scratch, slots, row, actions):
    """Run a chunk of actions [K, 7] until it ends, succeeds, times out or diverges."""
    size = world.sizes
    qvel = _view(scratch.arrays[2], (size.nv,))
    site_pos = _view(scratch.arrays[4], (size.nsite, 3))
    poses = Poses(
        _view(scratch.arrays[3], (size.nbody, 3)),
        site_pos,
        _view(scratch.arrays[5], (size.nsite, 9)),
        _view(scratch.arrays[6], (size.ngeom, 3)),
        _view(scratch.arrays[7], (size.ngeom, 9)),
        _view(scratch.arrays[1], (size.nq,)),
        site_pos[world.grip_site],
    )
    grip = slots.site_pos[row, world.grip_site].copy()
    controller = slots.controller[row, : 13 + world.arm_actuators.shape[0]]
    _enter(world, scratch, slots, row)
    for action in actions:
        acting = _delayed(slots, row, action)
        shift = slots.base_shift[row]
        healthy = _control_step(world, scratch, controller, acting, grip, shift, qvel)
        grip[:] = site_pos[world.grip_site]
        slots.num_steps[row] += 1
        if not healthy:
            slots.outcome[row] = DIVERGED
        elif goal_reached(world.goals, slots.task[row], poses):
            slots.outcome[row] = SUCCESS
        elif slots.num_steps[row] >= world.horizon:
            slots.outcome[row] = TIME_LIMIT
        if slots.outcome[row] != RUNNING:
            break
    if slots.outcome[row] != DIVERGED:  # else the slot keeps its last healthy state
        mj_get_state(scratch.model, scratch.data, slots.physics[row].ctypes.data, STATE_SPEC)
        slots.tree_asleep[row, : size.ntree] = _still(world, scratch)
        _publish(world, scratch, slots, row)


@njit(nogil=True)
def _delayed(slots, row, action):
    """Return the action of `latency` steps ago, at first zero: stand still, gripper as it is."""
    if slots.latency[row] == 0:
        return action
    ring = slots.pending[row, slots.num_steps[row] % slots.latency[row]]
    earlier = ring.copy()
    ring[:] = action
    return earlier


def _make_entry_points(version):
    """Return the functions that Python calls, the only ones cached (see `source_version`)."""

    @njit(nogil=True, cache=True)
    def refresh_slots(world, scratch, slots, rows):
        """Recompute the published poses of `rows` [B] from their physics state."""
        _ = version
        for row in rows:
            _enter(world, scratch, slots, row)
            _publish(world, scratch, slots, row)

    @njit(nogil=True, cache=True)
    def step_slots(world, scratch, slots, rows, actions):
        """Run chunks of actions; the content of `scratch` on entry does not matter.

        Args:
            world: Constants of the scene.
            scratch: Model and data of that scene, to compute in.
            slots: All slots; only `rows`, which are in that scene, are touched.
            rows: [B] slot indices.
            actions: [N, K, 7] finite, in [-1, 1], indexed by slot.
        """
        _ = version
        for row in rows:
            _step_slot(world, scratch, slots, row, actions[row])

    @njit(nogil=True, cache=True)
    def evaluate_goals(goals, slots, grip_site, rows, indices, holds):
        """Write into holds [B] whether goal indices[b] holds in slot rows[b]."""
        _ = version
        for k in range(rows.shape[0]):
            row = rows[k]
            poses = Poses(
                slots.body_pos[row],
                slots.site_pos[row],
                slots.site_mat[row],
                slots.geom_pos[row],
                slots.geom_mat[row],
                slots.qpos[row],
                slots.site_pos[row, grip_site],
            )
            holds[k] = goal_reached(goals, indices[k], poses)

    return refresh_slots, step_slots, evaluate_goals


refresh_slots, step_slots, evaluate_goals = _make_entry_points(
    source_version("native/kernel/*.py", "outcomes.py")
)
