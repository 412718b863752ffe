"""Control steps of many slots."""

from numba import njit

from vla_crl.sim.machine_code import source_version
from vla_crl.sim.metaworld.kernel.senses import copy, copy_rows, place, sense, world_of
from vla_crl.sim.metaworld.kernel.success import succeeds
from vla_crl.sim.mujoco_c import (
    mj_get_state,
    mj_kinematics,
    mj_set_state,
    mj_step,
)
from vla_crl.sim.outcomes import DIVERGED, RUNNING, SUCCESS, TIME_LIMIT
from vla_crl.sim.packed_state import STATE_SPEC
from vla_crl.sim.stepped import SOURCES, is_healthy, view


@njit(nogil=True)
def _enter(task, scratch, slots, slot):
    """Put a slot's placed things and physics state into the thread's model and data."""
    copy_rows(slots.placed.body_pos[slot], scratch.body_pos, task.sizes.nbody)
    copy_rows(slots.placed.site_pos[slot], scratch.site_pos, task.sizes.nsite)
    packed = slots.dynamics.physics[slot]
    mj_set_state(scratch.model, scratch.data, packed.ctypes.data, STATE_SPEC)


@njit(nogil=True)
def _publish(task, world, poses, slot):
    """Copy the current poses into the slot's row."""
    copy_rows(world.xpos, poses.body_pos[slot], task.sizes.nbody)
    copy_rows(world.xmat, poses.body_mat[slot], task.sizes.nbody)
    copy(world.xpos[task.hand], poses.hand_pos[slot])
    copy(world.xmat[task.hand], poses.hand_mat[slot])
    for side in range(2):
        copy(world.site_xpos[task.tips[side]], poses.tip_pos[slot, side])
    place(task, world, task.objects, 0, poses.object_pos[slot])


@njit(nogil=True)
def _command(task, arrays, action):
    """Tell the hand and the fingers what to do, as `set_xyz_action` of sawyer_xyz_env.py does."""
    position = view(arrays.mocap_pos, (3,))
    for i in range(3):
        wanted = position[i] + action[i] * task.action_scale
        position[i] = min(max(wanted, task.mocap_low[i]), task.mocap_high[i])
    quat = view(arrays.mocap_quat, (4,))
    quat[0], quat[1], quat[2], quat[3] = 1.0, 0.0, 1.0, 0.0
    ctrl = view(arrays.ctrl, (2,))
    ctrl[0], ctrl[1] = action[3], -action[3]


@njit(nogil=True)
def _control_step(task, scratch, qvel, action):
    """Run the physics under an action [4]; return whether its velocities stayed healthy."""
    _command(task, scratch.arrays, action)
    for _ in range(task.num_substeps):
        mj_step(scratch.model, scratch.data)
        if not is_healthy(qvel):  # at once, before what blew up has spread
            return False
    mj_kinematics(scratch.model, scratch.data)
    return True


@njit(nogil=True)
def _step_slot(task, scratch, slots, slot, actions):
    """Run a chunk of actions [K, 4] until it ends, succeeds, times out or diverges."""
    progress, dynamics = slots.progress, slots.dynamics
    world, qvel = world_of(task.sizes, scratch.arrays), view(scratch.arrays.qvel, (task.sizes.nv,))
    sensed, goal = dynamics.sensed[slot].copy(), slots.placed.goal[slot]
    _enter(task, scratch, slots, slot)
    for action in actions:
        healthy = _control_step(task, scratch, qvel, action)
        progress.num_steps[slot] += 1
        if healthy:
            copy(sensed[0], sensed[1])
            sense(task, world, sensed[0])
        if not healthy:
            progress.outcome[slot] = DIVERGED
        elif succeeds(task, scratch, world, sensed[0], goal):
            progress.outcome[slot] = SUCCESS
        elif progress.num_steps[slot] >= task.horizon:
            progress.outcome[slot] = TIME_LIMIT
        if progress.outcome[slot] != RUNNING:
            break
    if progress.outcome[slot] != DIVERGED:  # else the slot keeps its last healthy state
        packed = dynamics.physics[slot]
        mj_get_state(scratch.model, scratch.data, packed.ctypes.data, STATE_SPEC)
        copy_rows(sensed, dynamics.sensed[slot], 2)
        _publish(task, world, slots.poses, slot)


def _make_entry_points(version):
    """Return the functions that Python calls, the only ones cached (see `source_version`)."""

    @njit(nogil=True, cache=True)
    def refresh_slots(task, scratch, slots, chosen):
        """Recompute the published poses of the `chosen` slots [B] from their physics state."""
        _ = version
        world = world_of(task.sizes, scratch.arrays)
        for slot in chosen:
            _enter(task, scratch, slots, slot)
            mj_kinematics(scratch.model, scratch.data)
            _publish(task, world, slots.poses, slot)

    @njit(nogil=True, cache=True)
    def step_slots(task, scratch, slots, chosen, actions):
        """Run chunks of actions; the content of `scratch` on entry does not matter.

        Args:
            task: `TaskConstants`.
            scratch: Model and data of that task, to compute in.
            slots: All slots; only `chosen`, which are of that task, are touched.
            chosen: [B] slot indices.
            actions: [N, K, 4] finite, in [-1, 1], indexed by slot.
        """
        _ = version
        for slot in chosen:
            _step_slot(task, scratch, slots, slot, actions[slot])

    @njit(nogil=True, cache=True)
    def evaluate_slots(task, scratch, slots, chosen, holds):
        """Write into holds [N] whether the success condition holds in the `chosen` slots [B]."""
        _ = version
        world = world_of(task.sizes, scratch.arrays)
        for slot in chosen:
            _enter(task, scratch, slots, slot)
            mj_kinematics(scratch.model, scratch.data)
            sensed = slots.dynamics.sensed[slot, 0].copy()
            sense(task, world, sensed)
            holds[slot] = succeeds(task, scratch, world, sensed, slots.placed.goal[slot])

    return refresh_slots, step_slots, evaluate_slots


refresh_slots, step_slots, evaluate_slots = _make_entry_points(
    source_version("metaworld/kernel/*.py", *SOURCES)
)
