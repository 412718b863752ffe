"""Plain arrays that compiled code works on: a scene's constants, the slots, a thread's data."""

import ctypes
from copy import copy
from typing import NamedTuple

import mujoco
import numpy as np

from vla_crl.sim.native.kernel.controller import Controller
from vla_crl.sim.native.kernel.mechanics import Mechanics, Objects, mechanics_of
from vla_crl.sim.native.kernel.predicates import Goals
from vla_crl.sim.stepped import Progress


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


def sizes_of(model: mujoco.MjModel) -> Sizes:
    """Read the sizes of a model."""
    return Sizes(*(int(getattr(model, name)) for name in Sizes._fields))


class SceneConstants(NamedTuple):
    """Constants of one scene for the kernel.

    Attributes:
        controller: How the arm is commanded.
        arm_actuators: [J] actuator id of each arm joint.
        arm_qpos: [J] index into qpos of each arm joint.
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
    arm_qpos: np.ndarray
    finger_actuators: np.ndarray
    grip_site: int
    num_substeps: int
    horizon: int
    goals: Goals
    sizes: Sizes
    mechanics: Mechanics
    objects: Objects
    base: int
    varied_cameras: np.ndarray


class Dynamics(NamedTuple):
    """All that the future depends on beside the task, the variation and the actions to come.

    Attributes:
        physics: [N, state] packed by STATE_SPEC.
        tree_asleep: [N, trees] how long each has been still: MuJoCo's counter, below -1.
        controller: [N, R] controller states.
        pending: [N, MAX_LATENCY, A] actions that have not taken effect yet.
    """

    physics: np.ndarray
    tree_asleep: np.ndarray
    controller: np.ndarray
    pending: np.ndarray


class SlotPoses(NamedTuple):
    """What is seen of the slots: poses (m, world) and positions of joints.

    Attributes:
        body_pos: [N, bodies, 3].
        site_pos: [N, sites, 3].
        site_mat: [N, sites, 9].
        geom_pos: [N, geoms, 3].
        geom_mat: [N, geoms, 9].
        camera_pos: [N, cameras, 3].
        camera_mat: [N, cameras, 9].
        qpos: [N, nq].
    """

    body_pos: np.ndarray
    site_pos: np.ndarray
    site_mat: np.ndarray
    geom_pos: np.ndarray
    geom_mat: np.ndarray
    camera_pos: np.ndarray
    camera_mat: np.ndarray
    qpos: np.ndarray


class Varied(NamedTuple):
    """What the episodes have drawn, as far as the kernel needs it.

    Attributes:
        camera_shift: [N, 3] m, in the frames of the varied cameras.
        camera_turn: [N, 9] rotation in those frames.
        base_shift: [N, 3] m, world.
        mass_gain: [N, objects].
        friction_gain: [N].
        latency: [N] control steps.
    """

    camera_shift: np.ndarray
    camera_turn: np.ndarray
    base_shift: np.ndarray
    mass_gain: np.ndarray
    friction_gain: np.ndarray
    latency: np.ndarray


class Slots(NamedTuple):
    """Everything that differs between slots, one row each; as wide as the largest scene needs."""

    progress: Progress
    dynamics: Dynamics
    poses: SlotPoses
    varied: Varied


class DataHead(ctypes.Structure):
    """How an mjData begins."""

    _fields_ = (
        ("narena", ctypes.c_int64),
        ("nbuffer", ctypes.c_int64),
        ("nplugin", ctypes.c_int),
        ("pstack", ctypes.c_size_t),
        ("pbase", ctypes.c_size_t),
        ("parena", ctypes.c_size_t),
        ("maxuse_stack", ctypes.c_int64),
        ("maxuse_threadstack", ctypes.c_int64 * 128),
        ("maxuse_arena", ctypes.c_int64),
    )


class Addresses(NamedTuple):
    """Where arrays of one MjData lie in memory."""

    ctrl: np.uintp
    qpos: np.uintp
    qvel: np.uintp
    xpos: np.uintp
    site_xpos: np.uintp
    site_xmat: np.uintp
    geom_xpos: np.uintp
    geom_xmat: np.uintp
    cam_xpos: np.uintp
    cam_xmat: np.uintp
    tree_asleep: np.uintp


class Memory(NamedTuple):
    """What one MjData tells about its memory for contacts.

    Attributes:
        size: Bytes.
        most_used: Address of the most bytes that were in use.
        warnings: Address of MuJoCo's statistics of warnings.
    """

    size: int
    most_used: np.uintp
    warnings: np.uintp


class Scratch(NamedTuple):
    """One thread's MjModel and MjData of one scene.

    Attributes:
        model: Address of the mjModel.
        data: Address of the mjData.
        arrays: Addresses of the mjData's arrays.
        memory: Of the mjData.
        mechanics: Views into the mjModel.
    """

    model: np.uintp
    data: np.uintp
    arrays: Addresses
    memory: Memory
    mechanics: Mechanics


def scratch_of(model: mujoco.MjModel) -> tuple[Scratch, mujoco.MjModel, mujoco.MjData]:
    """Copy a model and make data for it; the caller keeps both alive as long as the scratch."""
    model = copy(model)
    data = mujoco.MjData(model)
    scratch = Scratch(
        np.uintp(model._address),
        np.uintp(data._address),
        Addresses(*(np.uintp(getattr(data, name).ctypes.data) for name in Addresses._fields)),
        Memory(
            model.narena,
            np.uintp(data._address + DataHead.maxuse_arena.offset),
            np.uintp(data.warning.lastinfo.ctypes.data),
        ),
        mechanics_of(model),
    )
    return scratch, model, data
