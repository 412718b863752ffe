"""Plain arrays that compiled code works on: a task's constants, the slots, a thread's data."""

from copy import copy
from typing import NamedTuple

import mujoco
import numpy as np

from vla_crl.sim.stepped import Progress

NUM_SENSED = 18
"""Numbers that Meta-World observes at one moment: hand 3, fingers 1, two objects with 7 each."""

BODY, SITE, GEOM, TIPS, DIAL, JOINT = range(6)
"""What `Points` are fixed to: a body, a site, a geom, the middle between the fingertips, the mark
on a turned dial; or no point at all but the position of a joint, as x."""

BODY_QUAT, BODY_MATRIX, SITE_MATRIX, GEOM_MATRIX, IDENTITY, NOTHING = range(6)
"""Where the four numbers of `Turns` come from: MuJoCo's quaternion (w first), a matrix as scipy's
quaternion (x first), or nowhere: (1, 0, 0, 0), or all zero."""

NEAR, ANGLE, BEYOND, ABOVE, THREADED, HOOKED, HELD = range(7)
"""Kinds of `Success`, see `kernel.success`."""


class Sizes(NamedTuple):
    """How many positions, velocities, bodies, sites and geoms a model has."""

    nq: int
    nv: int
    nbody: int
    nsite: int
    ngeom: int


class Points(NamedTuple):
    """Places that move with parts of a model.

    Attributes:
        source: [P] BODY, SITE, ...
        part: [P] its id.
        joint: [P] place in qpos, for DIAL and JOINT.
        offset: [P, 3] m, along the world's axes.
    """

    source: np.ndarray
    part: np.ndarray
    joint: np.ndarray
    offset: np.ndarray


class Turns(NamedTuple):
    """Orientations that Meta-World observes.

    Attributes:
        source: [P] BODY_QUAT, ...
        part: [P] its id.
    """

    source: np.ndarray
    part: np.ndarray


class Success(NamedTuple):
    """When a task is done.

    Attributes:
        kind: NEAR, ANGLE, ...
        points: What the condition looks at.
        scale: [3] factors on the distance along the world's axes.
        limit: m, or rad.
        height: z of the target (m), NaN for that of the goal.
    """

    kind: int
    points: Points
    scale: np.ndarray
    limit: float
    height: float


class TaskConstants(NamedTuple):
    """Constants of one task for the kernel.

    Attributes:
        sizes: What the model has how much of.
        num_substeps: Physics steps in a control step.
        horizon: Control steps in an episode.
        action_scale: m a control step, for an action of 1.
        mocap_low: [3] where the hand may be told to go (m, world).
        mocap_high: [3] likewise.
        hand: Body id.
        claws: [2] body ids, whose distance tells how open the fingers are.
        tips: [2] site ids of the fingertips.
        pads: [2] geom ids of the fingers' insides.
        held: Geom id of what HELD is about.
        objects: What is to be moved, one or two.
        turns: Their orientations.
        success: When the task is done.
    """

    sizes: Sizes
    num_substeps: int
    horizon: int
    action_scale: float
    mocap_low: np.ndarray
    mocap_high: np.ndarray
    hand: int
    claws: np.ndarray
    tips: np.ndarray
    pads: np.ndarray
    held: int
    objects: Points
    turns: Turns
    success: Success


class Dynamics(NamedTuple):
    """All that the future depends on beside the initial state and the actions to come.

    Attributes:
        physics: [N, state] packed by `STATE_SPEC` of the native kernel.
        sensed: [N, 2, NUM_SENSED] what Meta-World observes, now and one control step ago.
    """

    physics: np.ndarray
    sensed: np.ndarray


class Placed(NamedTuple):
    """What an episode has drawn: where things stand that no joint moves (m).

    Attributes:
        body_pos: [N, bodies, 3] of the model, in the parents' frames.
        site_pos: [N, sites, 3] of the model, in the bodies' frames.
        goal: [N, 3] world.
    """

    body_pos: np.ndarray
    site_pos: np.ndarray
    goal: np.ndarray


class SlotPoses(NamedTuple):
    """What is seen of the slots (m, world).

    Attributes:
        body_pos: [N, bodies, 3].
        body_mat: [N, bodies, 9] rotations from the bodies' frames.
        hand_pos: [N, 3].
        hand_mat: [N, 9].
        tip_pos: [N, 2, 3] fingertips.
        object_pos: [N, 3] what is to be moved.
    """

    body_pos: np.ndarray
    body_mat: np.ndarray
    hand_pos: np.ndarray
    hand_mat: np.ndarray
    tip_pos: np.ndarray
    object_pos: np.ndarray


class Slots(NamedTuple):
    """Everything that differs between slots, one row each."""

    progress: Progress
    dynamics: Dynamics
    placed: Placed
    poses: SlotPoses


WIDEST_STATE, MOST_BODIES, MOST_SITES = 62, 39, 16
"""Of all tasks of Meta-World."""


def allocate_slots(num_slots: int) -> Slots:
    """Allocate slots that any of Meta-World's tasks fits into."""

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros((num_slots, *shape))

    return Slots(
        progress=Progress(*np.zeros((len(Progress._fields), num_slots), np.int64)),
        dynamics=Dynamics(physics=zeros(WIDEST_STATE), sensed=zeros(2, NUM_SENSED)),
        placed=Placed(zeros(MOST_BODIES, 3), zeros(MOST_SITES, 3), zeros(3)),
        poses=SlotPoses(
            body_pos=zeros(MOST_BODIES, 3),
            body_mat=zeros(MOST_BODIES, 9),
            hand_pos=zeros(3),
            hand_mat=zeros(9),
            tip_pos=zeros(2, 3),
            object_pos=zeros(3),
        ),
    )


class Addresses(NamedTuple):
    """Where arrays of one MjData lie in memory."""

    qpos: np.uintp
    qvel: np.uintp
    ctrl: np.uintp
    mocap_pos: np.uintp
    mocap_quat: np.uintp
    xpos: np.uintp
    xquat: np.uintp
    xmat: np.uintp
    site_xpos: np.uintp
    site_xmat: np.uintp
    geom_xpos: np.uintp
    geom_xmat: np.uintp


class Contacts(NamedTuple):
    """Where the geoms of an MjData's contacts lie in memory.

    Attributes:
        geoms: Address of the first contact's pair of geom ids.
        stride: Bytes to that of the next.
    """

    geoms: np.uintp
    stride: int


class Scratch(NamedTuple):
    """One thread's MjModel and MjData of one task.

    Attributes:
        model: Address of the mjModel.
        data: Address of the mjData.
        arrays: Addresses of the mjData's arrays.
        contacts: Its contacts, of which there are some after a step only.
        body_pos: [bodies, 3] view into the mjModel.
        site_pos: [sites, 3] view into the mjModel.
    """

    model: np.uintp
    data: np.uintp
    arrays: Addresses
    contacts: Contacts
    body_pos: np.ndarray
    site_pos: np.ndarray


def scratch_of(model: mujoco.MjModel) -> tuple[Scratch, mujoco.MjModel, mujoco.MjData]:
    """Copy a model and make data for it; the caller keeps both alive as long as the scratch."""
    model = copy(model)
    data = mujoco.MjData(model)
    geoms = data.contact.geom
    scratch = Scratch(
        np.uintp(model._address),
        np.uintp(data._address),
        Addresses(*(np.uintp(getattr(data, name).ctypes.data) for name in Addresses._fields)),
        Contacts(np.uintp(geoms.ctypes.data), geoms.strides[0]),
        model.body_pos,
        model.site_pos,
    )
    return scratch, model, data
