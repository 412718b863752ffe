"""Plain arrays that compiled code works on: a scene's constants, the slots, a thread's data."""

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import mujoco
import numpy as np

from vla_crl.sim.native.kernel.controller import Controller, row_size
from vla_crl.sim.native.kernel.kinematics import chain_of
from vla_crl.sim.native.kernel.mechanics import Mechanics, Objects, mechanics_of
from vla_crl.sim.native.kernel.predicates import Goals
from vla_crl.sim.native.suite import Suite
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
"""What the next `mj_step` depends on beside `tree_asleep`: with both a slot can continue in any
MjData, bit for bit."""

JUST_WOKEN, FALLS_ASLEEP_NEXT = -11, -2
"""Values of `tree_asleep`, which MuJoCo counts up in steps of no motion; at -1 a tree sleeps."""


class SceneConstants(NamedTuple):
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
    """How many positions, velocities, actuators, trees, bodies, sites, ... a model has."""

    nq: int
    nv: int
    nu: int
    ntree: int
    nbody: int
    nsite: int
    ngeom: int
    ncam: int


class Slots(NamedTuple):
    """Everything that differs between slots, one row each; as wide as the largest scene needs.

    Attributes:
        physics: [N, state] packed by STATE_SPEC.
        tree_asleep: [N, trees] how long each has been still: MuJoCo's counter, below -1.
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
    tree_asleep: np.ndarray
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
            cam_xpos, cam_xmat, tree_asleep.
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
        data.geom_xpos, data.geom_xmat, data.cam_xpos, data.cam_xmat, data.tree_asleep,
    )  # fmt: skip
    scratch = Scratch(
        np.uintp(model._address),
        np.uintp(data._address),
        np.array([array.ctypes.data for array in arrays], dtype=np.uintp),
        mechanics_of(model),
    )
    return scratch, model, data


def constants_of(suite: Suite, index: int) -> SceneConstants:
    """Collect the constants of one of a suite's scenes."""
    scene = suite.scenes[index]
    model, arm = scene.model, scene.config.arm
    joint_actuator = {int(model.actuator_trnid[i, 0]): i for i in range(model.nu)}

    def actuators(names: Sequence[str]) -> np.ndarray:
        return np.array([joint_actuator[model.joint(name).id] for name in names])

    objects = np.array([b for b in scene.bodies.values() if model.body_dofnum[b] == 6], np.int64)
    cameras = [model.camera(name).id for name in suite.embodiment.cameras]
    return SceneConstants(
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
        varied_cameras=np.isin(np.arange(model.ncam), cameras) & _are_fixed(model),
    )


def _are_fixed(model: mujoco.MjModel) -> np.ndarray:
    """Return [cameras] bool: those that neither a joint nor a mocap body moves."""
    bodies = model.cam_bodyid
    return (model.body_weldid[bodies] == 0) & (model.body_mocapid[model.body_rootid[bodies]] < 0)


def allocate_slots(suite: Suite, worlds: Sequence[SceneConstants], num_slots: int) -> Slots:
    """Allocate slots as wide as the widest scene; nothing varies, all else is zero."""
    size = Sizes(*(max(sizes) for sizes in zip(*(w.sizes for w in worlds), strict=True)))
    states = (mujoco.mj_stateSize(scene.model, STATE_SPEC) for scene in suite.scenes)
    rows = max(row_size(world.controller.chain) for world in worlds)

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros((num_slots, *shape))

    return Slots(
        physics=zeros(max(states)),
        tree_asleep=np.full((num_slots, size.ntree), JUST_WOKEN, np.int32),
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
        pending=zeros(MAX_LATENCY, len(suite.embodiment.action)),
    )
