"""The compiled inner loop: control, physics, goals and what is observed, for a block of slots.

Each physics step equals robosuite's forward, control, step, which is MuJoCo's `mj_step1`, control,
`mj_step2`. Two of LIBERO's oddities are kept because published numbers have them: observations are
of the 24th physics step of 25, and the first physics step of an episode is controlled from what the
controller has read at the reset, before the initial state was put in.
"""

import numpy as np
from numba import njit  # pyright: ignore[reportPrivateImportUsage]

from vla_crl.sim.libero.kernel.arm import (
    IS_STALE,
    NUM_JOINTS,
    NUM_SUBSTEPS,
    Reading,
    move_fingers,
    set_goal,
    torques,
)
from vla_crl.sim.libero.kernel.goals import World, goal_reached, holds
from vla_crl.sim.libero.kernel.slots import contact_layout
from vla_crl.sim.machine_code import source_version
from vla_crl.sim.mujoco_c import (
    mj_forward,
    mj_get_state,
    mj_jacobian_of_site,
    mj_reset_data,
    mj_set_state,
    mj_step1,
    mj_step2,
    mj_update_sleep,
)
from vla_crl.sim.outcomes import DIVERGED, RUNNING, SUCCESS, TIME_LIMIT
from vla_crl.sim.packed_state import STATE_SPEC
from vla_crl.sim.stepped import SOURCES, is_healthy, rouse, view, view_integers

OBSERVED_SUBSTEP = 23
"""The physics step after which robosuite samples what is observed, from 0 on."""
BURNER_ON = 0.5
"""rad of a stove's knob."""
_CONTACT_SIZE, _CONTACT_GEOM = contact_layout()
STILL = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
"""The action of waiting: nothing moves, the gripper opens."""


@njit(nogil=True)
def _counters(scene, scratch):
    """Return MuJoCo's counters of steps without motion, one a tree."""
    return view_integers(scratch.arrays.tree_asleep, (scene.sizes.ntree,))


@njit(nogil=True)
def _enter(scene, scratch, slots, slot):
    """Put a slot's fixtures and physics state into the thread's model and data."""
    _place_fixtures(scene, scratch, slots, slot)
    if scene.sleeps:  # where it may sleep, what has no joint is placed once after a reset
        mj_reset_data(scratch.model, scratch.data)
    packed = slots.physics[slot]
    mj_set_state(scratch.model, scratch.data, packed.ctypes.data, STATE_SPEC)
    if scene.sleeps:
        _counters(scene, scratch)[:] = slots.tree_asleep[slot, : scene.sizes.ntree]
        mj_update_sleep(scratch.model, scratch.data)


@njit(nogil=True)
def _place_fixtures(scene, scratch, slots, slot):
    position = view(scratch.arrays.body_pos, (scene.sizes.nbody, 3))
    rotation = view(scratch.arrays.body_quat, (scene.sizes.nbody, 4))
    for i in range(scene.fixtures.size):
        position[scene.fixtures[i]] = slots.fixtures[slot, i, :3]
        rotation[scene.fixtures[i]] = slots.fixtures[slot, i, 3:]


@njit(nogil=True)
def _leave(scene, scratch, slots, slot):
    """Keep the physics state for the next call."""
    packed = slots.physics[slot]
    mj_get_state(scratch.model, scratch.data, packed.ctypes.data, STATE_SPEC)
    if scene.sleeps:
        slots.tree_asleep[slot, : scene.sizes.ntree] = _counters(scene, scratch)


@njit(nogil=True)
def _observe(scene, scratch, slots, slot):
    """Copy what robosuite would observe now: poses as they were last computed, joints as they are.

    Whether a burner burns is seen as it was after the control step before.
    """
    size, arrays = scene.sizes, scratch.arrays
    slots.body_pos[slot, : size.nbody] = view(arrays.xpos, (size.nbody, 3))
    slots.body_mat[slot, : size.nbody] = view(arrays.xmat, (size.nbody, 9))
    slots.grip_pos[slot] = view(arrays.site_xpos, (size.nsite, 3))[scene.arm.site]
    slots.hand_quat[slot] = view(arrays.xquat, (size.nbody, 4))[scene.arm.hand]
    slots.qpos[slot, : size.nq] = view(arrays.qpos, (size.nq,))
    slots.is_lit[slot, 0] = slots.is_lit[slot, 1]


@njit(nogil=True)
def _light(scene, scratch, slots, slot):
    if scene.burner >= 0:
        knob = view(scratch.arrays.qpos, (scene.sizes.nq,))[scene.burner]
        slots.is_lit[slot, 1] = knob >= BURNER_ON


@njit(nogil=True)
def _read(scene, scratch, jacobian):
    """Read the arm from what `mj_step1` has computed; jacobian [6, nv] is room to work in."""
    size, arrays, arm = scene.sizes, scratch.arrays, scene.arm
    mj_jacobian_of_site(
        scratch.model, scratch.data, jacobian.ctypes.data, jacobian[3:].ctypes.data, arm.site
    )
    inertia, mass = view(arrays.qM, (arm.mass_address[-1] + NUM_JOINTS,)), np.empty((7, 7))
    for row in range(NUM_JOINTS):  # the parent of a joint is the one before it
        for back in range(row + 1):
            mass[row, row - back] = mass[row - back, row] = inertia[arm.mass_address[row] + back]
    return Reading(
        view(arrays.site_xpos, (size.nsite, 3))[arm.site],
        view(arrays.site_xmat, (size.nsite, 9))[arm.site].copy().reshape((3, 3)),
        jacobian[:, :NUM_JOINTS].copy(),
        mass,
        view(arrays.qpos, (size.nq,))[:NUM_JOINTS],
        view(arrays.qvel, (size.nv,))[:NUM_JOINTS],
    )


@njit(nogil=True)
def _control_step(scene, scratch, slots, slot, action, jacobian):
    """Advance a slot by one action; return whether its velocities stayed healthy."""
    size, arrays, state = scene.sizes, scratch.arrays, slots.controller[slot]
    ctrl, qvel = view(arrays.ctrl, (size.nu,)), view(arrays.qvel, (size.nv,))
    bias = view(arrays.qfrc_bias, (size.nv,))
    for substep in range(NUM_SUBSTEPS):
        mj_step1(scratch.model, scratch.data)
        reading = _read(scene, scratch, jacobian)
        if state[IS_STALE]:
            reading, state[IS_STALE] = scene.arm.reset, 0.0
        if substep == 0:
            set_goal(state, action, reading)
        torques(scene.arm, state, reading, bias, ctrl)
        move_fingers(scene.arm, state, action[6], ctrl[NUM_JOINTS:])
        mj_step2(scratch.model, scratch.data)
        if not is_healthy(qvel):  # at once, before what blew up has spread
            return False
        if substep == OBSERVED_SUBSTEP:
            _observe(scene, scratch, slots, slot)
            if scene.sleeps:  # the goal needs the contacts of what rests, too
                rouse(scratch, _counters(scene, scratch))
    if scene.sleeps:
        rouse(scratch, _counters(scene, scratch))
    _light(scene, scratch, slots, slot)
    return True


@njit(nogil=True)
def _world(scene, scratch):
    """Return what the goal is read from."""
    size, arrays = scene.sizes, scratch.arrays
    num_contacts = view_integers(arrays.num_contacts, (1,))[0]
    halves = view_integers(arrays.contacts, (2,))  # of a pointer
    first = (np.int64(halves[1]) << 32) | (np.int64(halves[0]) & 0xFFFFFFFF)
    contacts = np.empty((num_contacts, 2), np.int32)
    for i in range(num_contacts):
        contacts[i] = view_integers(np.uintp(first + i * _CONTACT_SIZE + _CONTACT_GEOM), (2,))
    return World(
        view(arrays.xpos, (size.nbody, 3)),
        view(arrays.site_xpos, (size.nsite, 3)),
        view(arrays.site_xmat, (size.nsite, 9)),
        view(arrays.qpos, (size.nq,)),
        contacts,
    )


@njit(nogil=True)
def _step_slot(scene, scratch, slots, slot, actions, jacobian):
    """Run a chunk of actions [K, A] until it ends, succeeds, times out or diverges."""
    _enter(scene, scratch, slots, slot)
    for action in actions:
        healthy = _control_step(scene, scratch, slots, slot, action, jacobian)
        slots.num_steps[slot] += 1
        if not healthy:
            slots.outcome[slot] = DIVERGED
        elif goal_reached(scene.goals, _world(scene, scratch)):
            slots.outcome[slot] = SUCCESS
        elif slots.num_steps[slot] >= scene.horizon:
            slots.outcome[slot] = TIME_LIMIT
        if slots.outcome[slot] != RUNNING:
            break
    if slots.outcome[slot] != DIVERGED:  # else the slot keeps its last healthy state
        _leave(scene, scratch, slots, slot)


@njit(nogil=True)
def _begin_slot(scene, scratch, slots, slot, jacobian):
    """Observe the initial state, and wait."""
    arm, state = scene.arm, slots.controller[slot]
    state[:3] = arm.reset.pos
    state[3:12] = arm.reset.mat.reshape(9)
    state[12:14] = 0.0
    state[IS_STALE] = 1.0
    slots.num_steps[slot], slots.outcome[slot] = 0, RUNNING
    _enter(scene, scratch, slots, slot)
    mj_forward(scratch.model, scratch.data)
    _light(scene, scratch, slots, slot)
    _observe(scene, scratch, slots, slot)
    for _ in range(scene.wait_steps):
        if not _control_step(scene, scratch, slots, slot, STILL, jacobian):
            slots.outcome[slot] = DIVERGED
            break
    _leave(scene, scratch, slots, slot)


def _make_entry_points(version):
    """Return the functions that Python calls, the only ones cached (see `source_version`)."""

    @njit(nogil=True, cache=True)
    def begin_slots(scene, scratch, slots, chosen):
        """Begin the episodes of the `chosen` slots [B], whose fixtures and physics are set."""
        _ = version
        jacobian = np.zeros((6, scene.sizes.nv))
        for slot in chosen:
            _begin_slot(scene, scratch, slots, slot, jacobian)

    @njit(nogil=True, cache=True)
    def step_slots(scene, scratch, slots, chosen, actions):
        """Run a chunk in each of the `chosen` slots [B]; actions [N, K, A] by slot."""
        _ = version
        jacobian = np.zeros((6, scene.sizes.nv))
        for slot in chosen:
            _step_slot(scene, scratch, slots, slot, actions[slot], jacobian)

    @njit(nogil=True, cache=True)
    def evaluate_terms(scene, scratch, slots, chosen, out):
        """Tell which terms of the goal hold in the physics states of slots: out [B, terms]."""
        _ = version
        for row in range(chosen.size):
            _enter(scene, scratch, slots, chosen[row])
            mj_forward(scratch.model, scratch.data)
            world = _world(scene, scratch)
            for term in range(scene.goals.kind.size):
                out[row, term] = holds(scene.goals, term, world)

    return begin_slots, step_slots, evaluate_terms


begin_slots, step_slots, evaluate_terms = _make_entry_points(
    source_version("libero/kernel/*.py", *SOURCES)
)
