"""The compiled inner loop: control, physics, predicates and poses of a block of slots."""

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import mujoco
import numpy as np
from numba import carray, njit  # pyright: ignore[reportPrivateImportUsage]

from vla_crl.contracts import ACTION_DIM
from vla_crl.sim.controller import Controller, command, row_size
from vla_crl.sim.kinematics import chain_of, multiply
from vla_crl.sim.mechanics import Mechanics, Objects, mechanics_of, vary
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
from vla_crl.sim.variation import MAX_LATENCY

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
    """Constants of one scene for the kernel.

    Attributes:
        controller: End-effector interface.
        arm_actuators: [J] actuator id of each arm joint.
        finger_actuators: [2] actuator ids.
        grip_site: Site id.
        num_substeps: Physics steps in a control step.
        horizon: Control steps in an episode.
        goals: Success condition of every task.
        sizes: What the model has how much of.
        mechanics: The model's numbers as they are in the file.
        objects: The things with a free joint.
        base: Body that carries the arm.
        varied_cameras: [cameras] bool, those that a variation displaces.
    """

    controller: Controller
    arm_actuators: np.ndarray
    finger_actuators: np.ndarray
    grip_site: int
    num_substeps: int
    horizon: int
    goals: Goals
    sizes: "Sizes"
    mechanics: Mechanics
    objects: Objects
    base: int
    varied_cameras: np.ndarray


class Sizes(NamedTuple):
    """Numbers of positions, velocities, actuators, bodies, sites, geoms, cameras of a model."""

    nq: int
    nv: int
    nu: int
    nbody: int
    nsite: int
    ngeom: int
    ncam: int


class Slots(NamedTuple):
    """Everything that differs between slots, one row each; as wide as the largest scene needs.

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
        camera_shift: [N, 3] m, in the frames of the varied cameras.
        camera_turn: [N, 9] rotation in those frames.
        base_shift: [N, 3] m, world.
        mass_gain: [N, objects].
        friction_gain: [N].
        latency: [N] control steps.
        pending: [N, MAX_LATENCY, 7] actions that have not taken effect yet.
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
    camera_shift: np.ndarray
    camera_turn: np.ndarray
    base_shift: np.ndarray
    mass_gain: np.ndarray
    friction_gain: np.ndarray
    latency: np.ndarray
    pending: np.ndarray


class Scratch(NamedTuple):
    """One thread's MjModel and MjData of one scene, as integer addresses.

    Attributes:
        model: Address of the mjModel.
        data: Address of the mjData.
        arrays: Addresses of ctrl, qpos, qvel, xpos, site_xpos, site_xmat, geom_xpos, geom_xmat,
            cam_xpos, cam_xmat.
        mechanics: Views into the mjModel.
    """

    model: np.uintp
    data: np.uintp
    arrays: np.ndarray
    mechanics: Mechanics


def scratch_of(model: mujoco.MjModel) -> tuple[Scratch, mujoco.MjModel, mujoco.MjData]:
    """Copy a model and make data for it; the caller keeps both alive as long as the scratch."""
    model = copy(model)
    data = mujoco.MjData(model)
    arrays = (
        data.ctrl, data.qpos, data.qvel, data.xpos, data.site_xpos, data.site_xmat,
        data.geom_xpos, data.geom_xmat, data.cam_xpos, data.cam_xmat,
    )  # fmt: skip
    scratch = Scratch(
        np.uintp(model._address),
        np.uintp(data._address),
        np.array([array.ctypes.data for array in arrays], dtype=np.uintp),
        mechanics_of(model),
    )
    return scratch, model, data


def world_of(suite: Suite, index: int) -> World:
    """Collect the constants of one of a suite's scenes."""
    scene = suite.scenes[index]
    model, arm = scene.model, scene.config.arm
    joint_actuator = {int(model.actuator_trnid[i, 0]): i for i in range(model.nu)}

    def actuators(names: Sequence[str]) -> np.ndarray:
        return np.array([joint_actuator[model.joint(name).id] for name in names])

    objects = np.array([b for b in scene.bodies.values() if model.body_dofnum[b] == 6], np.int64)
    cameras = [model.camera(name).id for name in suite.cameras]
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
        num_substeps=scene.num_substeps,
        horizon=scene.config.horizon,
        goals=suite.goals_of(index),
        sizes=Sizes(*(int(getattr(model, name)) for name in Sizes._fields)),
        mechanics=Mechanics(*(array.copy() for array in mechanics_of(model))),
        objects=Objects(objects, model.body_dofadr[objects].astype(np.int64)),
        base=model.body(arm.base).id,
        varied_cameras=np.isin(np.arange(model.ncam), cameras) & (model.cam_bodyid == 0),
    )


def allocate_slots(suite: Suite, worlds: Sequence[World], num_slots: int) -> Slots:
    """Allocate slots as wide as the widest scene; nothing varies, all else is zero."""
    size = Sizes(*(max(sizes) for sizes in zip(*(w.sizes for w in worlds), strict=True)))
    states = (mujoco.mj_stateSize(scene.model, STATE_SPEC) for scene in suite.scenes)
    rows = max(row_size(world.controller.chain) for world in worlds)

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros((num_slots, *shape))

    return Slots(
        physics=zeros(max(states)),
        controller=zeros(rows),
        task=np.zeros(num_slots, np.int64),
        num_steps=np.zeros(num_slots, np.int64),
        outcome=np.zeros(num_slots, np.int64),
        body_pos=zeros(size.nbody, 3),
        site_pos=zeros(size.nsite, 3),
        site_mat=zeros(size.nsite, 9),
        geom_pos=zeros(size.ngeom, 3),
        geom_mat=zeros(size.ngeom, 9),
        camera_pos=zeros(size.ncam, 3),
        camera_mat=zeros(size.ncam, 9),
        qpos=zeros(size.nq),
        camera_shift=zeros(3),
        camera_turn=zeros(9) + np.eye(3).ravel(),
        base_shift=zeros(3),
        mass_gain=zeros(max(len(world.objects.body) for world in worlds)) + 1.0,
        friction_gain=zeros() + 1.0,
        latency=np.zeros(num_slots, np.int64),
        pending=zeros(MAX_LATENCY, ACTION_DIM),
    )


@njit(nogil=True)
def _view(address, shape):
    return carray(as_double_pointer(address), shape)  # pyright: ignore[reportCallIssue]


@njit(nogil=True)
def _enter(world, scratch, slots, row):
    """Put a slot's mechanics and physics state into the thread's model and data."""
    vary(
        world.mechanics, scratch.mechanics, world.objects, world.base,
        slots.base_shift[row], slots.mass_gain[row], slots.friction_gain[row],
    )  # fmt: skip
    mj_set_state(scratch.model, scratch.data, slots.physics[row].ctypes.data, STATE_SPEC)


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
def _control_step(world, scratch, row, action, grip, base_shift):
    """Advance one controller row and run the physics under it, joints moving linearly."""
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
    mj_kinematics(scratch.model, scratch.data)


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
        _control_step(world, scratch, controller, acting, grip, slots.base_shift[row])
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


refresh_slots, step_slots, evaluate_goals = _make_entry_points(source_version())
