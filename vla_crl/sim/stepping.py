"""The compiled inner loop: control, physics, predicates and poses of a block of slots."""

from collections.abc import Sequence
from typing import NamedTuple

import mujoco
import numpy as np
from numba import carray, njit  # pyright: ignore[reportPrivateImportUsage]

from vla_crl.sim.controller import Controller, command, row_size
from vla_crl.sim.kinematics import chain_of
from vla_crl.sim.mujoco_c import (
    as_double_pointer,
    mj_camera_light,
    mj_get_state,
    mj_kinematics,
    mj_set_state,
    mj_step,
)
from vla_crl.sim.predicates import Goals, Poses, goal_reached
from vla_crl.sim.source_version import source_version
from vla_crl.sim.suite import Suite

STATE_SPEC = int(
    mujoco.mjtState.mjSTATE_TIME
    | mujoco.mjtState.mjSTATE_QPOS
    | mujoco.mjtState.mjSTATE_QVEL
    | mujoco.mjtState.mjSTATE_ACT
    | mujoco.mjtState.mjSTATE_WARMSTART
    | mujoco.mjtState.mjSTATE_CTRL
    | mujoco.mjtState.mjSTATE_MOCAP_POS
    | mujoco.mjtState.mjSTATE_MOCAP_QUAT
)
"""Everything the next `mj_step` depends on, so a slot can continue in any MjData, bit for bit."""

RUNNING, SUCCESS, TIME_LIMIT, DIVERGED = 0, 1, 2, 3
"""Outcome codes of a slot."""
MAX_SPEED = 200.0
"""A generalised velocity beyond this (m/s or rad/s) counts as diverged physics."""


class World(NamedTuple):
    """Constants of one suite for the kernel.

    Attributes:
        controller: End-effector interface.
        arm_actuators: [J] actuator id of each arm joint.
        finger_actuators: [2] actuator ids.
        grip_site: Site id.
        num_substeps: Physics steps in a control step.
        horizon: Control steps in an episode.
        goals: Success condition of every task.
        num_velocities: Degrees of freedom.
    """

    controller: Controller
    arm_actuators: np.ndarray
    finger_actuators: np.ndarray
    grip_site: int
    num_substeps: int
    horizon: int
    goals: Goals
    num_velocities: int


class Slots(NamedTuple):
    """Everything that differs between slots, one row each.

    Attributes:
        physics: [N, state] packed by STATE_SPEC.
        controller: [N, R] controller rows.
        task: [N] task index.
        num_steps: [N] control steps since the episode began.
        outcome: [N] outcome code.
        body_pos: [N, bodies, 3] m, world.
        site_pos: [N, sites, 3] m, world.
        site_mat: [N, sites, 9].
        geom_pos: [N, geoms, 3].
        geom_mat: [N, geoms, 9].
        camera_pos: [N, cameras, 3].
        camera_mat: [N, cameras, 9].
        qpos: [N, nq].
    """

    physics: np.ndarray
    controller: np.ndarray
    task: np.ndarray
    num_steps: np.ndarray
    outcome: np.ndarray
    body_pos: np.ndarray
    site_pos: np.ndarray
    site_mat: np.ndarray
    geom_pos: np.ndarray
    geom_mat: np.ndarray
    camera_pos: np.ndarray
    camera_mat: np.ndarray
    qpos: np.ndarray


class Scratch(NamedTuple):
    """One thread's MjData, as integer addresses.

    Attributes:
        model: Address of the mjModel.
        data: Address of the mjData.
        arrays: Addresses of ctrl, qpos, qvel, xpos, site_xpos, site_xmat, geom_xpos, geom_xmat,
            cam_xpos, cam_xmat.
    """

    model: np.uintp
    data: np.uintp
    arrays: np.ndarray


def scratch_of(model: mujoco.MjModel, data: mujoco.MjData) -> Scratch:
    """Collect the addresses of `data`; the caller keeps model and data alive."""
    arrays = (
        data.ctrl, data.qpos, data.qvel, data.xpos, data.site_xpos, data.site_xmat,
        data.geom_xpos, data.geom_xmat, data.cam_xpos, data.cam_xmat,
    )  # fmt: skip
    return Scratch(
        np.uintp(model._address),
        np.uintp(data._address),
        np.array([array.ctypes.data for array in arrays], dtype=np.uintp),
    )


def world_of(suite: Suite) -> World:
    """Collect the constants of a suite."""
    model, arm = suite.model, suite.config.arm
    joint_actuator = {int(model.actuator_trnid[i, 0]): i for i in range(model.nu)}

    def actuators(names: Sequence[str]) -> np.ndarray:
        return np.array([joint_actuator[model.joint(name).id] for name in names])

    return World(
        controller=Controller(
            chain_of(model, arm),
            arm.max_step_m,
            arm.max_step_rad,
            np.array(arm.workspace_low_m),
            np.array(arm.workspace_high_m),
        ),
        arm_actuators=actuators(arm.joints),
        finger_actuators=actuators(arm.fingers),
        grip_site=model.site(arm.grip_site).id,
        num_substeps=suite.num_substeps,
        horizon=suite.config.horizon,
        goals=suite.compile(suite.goals),
        num_velocities=model.nv,
    )


def allocate_slots(model: mujoco.MjModel, world: World, num_slots: int) -> Slots:
    """Allocate slots; their content is zero."""
    state_size = mujoco.mj_stateSize(model, STATE_SPEC)
    return Slots(
        physics=np.zeros((num_slots, state_size)),
        controller=np.zeros((num_slots, row_size(world.controller.chain))),
        task=np.zeros(num_slots, np.int64),
        num_steps=np.zeros(num_slots, np.int64),
        outcome=np.zeros(num_slots, np.int64),
        body_pos=np.zeros((num_slots, model.nbody, 3)),
        site_pos=np.zeros((num_slots, model.nsite, 3)),
        site_mat=np.zeros((num_slots, model.nsite, 9)),
        geom_pos=np.zeros((num_slots, model.ngeom, 3)),
        geom_mat=np.zeros((num_slots, model.ngeom, 9)),
        camera_pos=np.zeros((num_slots, model.ncam, 3)),
        camera_mat=np.zeros((num_slots, model.ncam, 9)),
        qpos=np.zeros((num_slots, model.nq)),
    )


@njit(nogil=True)
def _view(address, shape):
    return carray(as_double_pointer(address), shape)  # pyright: ignore[reportCallIssue]


@njit(nogil=True)
def _publish(scratch, slots, row):
    """Refresh the poses of the current state and copy them into the slot's row."""
    mj_kinematics(scratch.model, scratch.data)
    mj_camera_light(scratch.model, scratch.data)
    slots.qpos[row] = _view(scratch.arrays[1], slots.qpos.shape[1:])
    slots.body_pos[row] = _view(scratch.arrays[3], slots.body_pos.shape[1:])
    slots.site_pos[row] = _view(scratch.arrays[4], slots.site_pos.shape[1:])
    slots.site_mat[row] = _view(scratch.arrays[5], slots.site_mat.shape[1:])
    slots.geom_pos[row] = _view(scratch.arrays[6], slots.geom_pos.shape[1:])
    slots.geom_mat[row] = _view(scratch.arrays[7], slots.geom_mat.shape[1:])
    slots.camera_pos[row] = _view(scratch.arrays[8], slots.camera_pos.shape[1:])
    slots.camera_mat[row] = _view(scratch.arrays[9], slots.camera_mat.shape[1:])


@njit(nogil=True)
def _healthy(velocities):
    for velocity in velocities:  # noqa: SIM110 - numba compiles no generator expressions
        if not abs(velocity) < MAX_SPEED:  # also catches NaN
            return False
    return True


@njit(nogil=True)
def _control_step(world, scratch, row, action, grip):
    """Advance one controller row and run the physics under it, joints moving linearly."""
    ctrl = _view(scratch.arrays[0], (world.arm_actuators.shape[0] + 2,))
    num_arm = world.arm_actuators.shape[0]
    previous = row[12:].copy()
    command(world.controller, row, action, grip)
    for substep in range(world.num_substeps):
        fraction = (substep + 1) / world.num_substeps
        for j in range(num_arm):
            change = row[12 + j] - previous[j]
            ctrl[world.arm_actuators[j]] = previous[j] + fraction * change
        for j in range(2):
            change = row[12 + num_arm] - previous[num_arm]
            ctrl[world.finger_actuators[j]] = previous[num_arm] + fraction * change
        mj_step(scratch.model, scratch.data)
    mj_kinematics(scratch.model, scratch.data)


@njit(nogil=True)
def _step_slot(world, scratch, slots, row, actions):
    """Run a chunk of actions [K, 7] until it ends, succeeds, times out or diverges."""
    qvel = _view(scratch.arrays[2], (world.num_velocities,))
    site_pos = _view(scratch.arrays[4], slots.site_pos.shape[1:])
    poses = Poses(
        _view(scratch.arrays[3], slots.body_pos.shape[1:]),
        site_pos,
        _view(scratch.arrays[5], slots.site_mat.shape[1:]),
        _view(scratch.arrays[6], slots.geom_pos.shape[1:]),
        _view(scratch.arrays[7], slots.geom_mat.shape[1:]),
        _view(scratch.arrays[1], slots.qpos.shape[1:]),
        site_pos[world.grip_site],
    )
    grip = slots.site_pos[row, world.grip_site].copy()
    mj_set_state(scratch.model, scratch.data, slots.physics[row].ctypes.data, STATE_SPEC)
    for action in actions:
        _control_step(world, scratch, slots.controller[row], action, grip)
        grip[:] = site_pos[world.grip_site]
        slots.num_steps[row] += 1
        if not _healthy(qvel):
            slots.outcome[row] = DIVERGED
        elif goal_reached(world.goals, slots.task[row], poses):
            slots.outcome[row] = SUCCESS
        elif slots.num_steps[row] >= world.horizon:
            slots.outcome[row] = TIME_LIMIT
        if slots.outcome[row] != RUNNING:
            break
    if slots.outcome[row] != DIVERGED:  # else the slot keeps its last healthy state
        mj_get_state(scratch.model, scratch.data, slots.physics[row].ctypes.data, STATE_SPEC)
        _publish(scratch, slots, row)


def _make_entry_points(version):
    """Return the functions that Python calls, the only ones cached (see `source_version`)."""

    @njit(nogil=True, cache=True)
    def refresh_slots(scratch, slots, rows):
        """Recompute the published poses of `rows` [B] from their physics state."""
        _ = version
        for row in rows:
            mj_set_state(scratch.model, scratch.data, slots.physics[row].ctypes.data, STATE_SPEC)
            _publish(scratch, slots, row)

    @njit(nogil=True, cache=True)
    def step_slots(world, scratch, slots, rows, actions):
        """Run chunks of actions; the content of `scratch` on entry does not matter.

        Args:
            world: Constants of the suite.
            scratch: MjData to compute in.
            slots: All slots; only `rows` are touched.
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


refresh_slots, step_slots, evaluate_goals = _make_entry_points(source_version())
