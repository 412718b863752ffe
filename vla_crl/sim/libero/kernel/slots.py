"""Plain arrays that compiled code works on: a scene's constants, the slots, a thread's data."""

import ctypes
from copy import copy
from functools import cache
from typing import NamedTuple

import mujoco
import numpy as np

from vla_crl.sim.libero.kernel.arm import STATE_SIZE, Arm
from vla_crl.sim.libero.kernel.goals import Goals

MAX_STATE, MAX_QPOS, MAX_BODIES, MAX_FIXTURES, MAX_TREES = 400, 96, 56, 8, 20
"""How wide the rows of the slots are: no scene of LIBERO or LIBERO-PRO needs more."""


class Sizes(NamedTuple):
    """How many positions, velocities, actuators, trees, bodies, sites a model has."""

    nq: int
    nv: int
    nu: int
    ntree: int
    nbody: int
    nsite: int


class Scene(NamedTuple):
    """Constants of one task for the kernel.

    Attributes:
        sizes: What the model has how much of.
        arm: The robot.
        goals: When it is solved.
        fixtures: [F] bodies that are displaced from episode to episode, without a joint.
        burner: Place in qpos of the knob that lights a burner, -1 where there is none.
        horizon: Control steps in an episode.
        wait_steps: Control steps after a reset in which the robot stands still.
        sleeps: Whether things that rest may sleep, so that a step is faster and not exact.
    """

    sizes: Sizes
    arm: Arm
    goals: Goals
    fixtures: np.ndarray
    burner: int
    horizon: int
    wait_steps: int
    sleeps: bool


class Slots(NamedTuple):
    """Everything that differs between slots, one row each; as wide as the largest scene needs.

    What is seen and felt is what robosuite observes in a control step: after the 24th of its 25
    physics steps, with poses that are one physics step older still.

    Attributes:
        task: [N] task index.
        num_steps: [N] control steps since the episode began, without those of waiting.
        outcome: [N] outcome code.
        physics: [N, MAX_STATE] packed by STATE_SPEC.
        tree_asleep: [N, MAX_TREES] how long each has been still: MuJoCo's counter, below -1.
        controller: [N, STATE_SIZE].
        fixtures: [N, MAX_FIXTURES, 7] position (m, world) and quaternion (w, x, y, z).
        is_lit: [N, 2] whether the burner was seen to burn, and burns.
        body_pos: [N, MAX_BODIES, 3] m, world.
        body_mat: [N, MAX_BODIES, 9].
        grip_pos: [N, 3] m, world.
        hand_quat: [N, 4] (w, x, y, z).
        qpos: [N, MAX_QPOS].
    """

    task: np.ndarray
    num_steps: np.ndarray
    outcome: np.ndarray
    physics: np.ndarray
    tree_asleep: np.ndarray
    controller: np.ndarray
    fixtures: np.ndarray
    is_lit: np.ndarray
    body_pos: np.ndarray
    body_mat: np.ndarray
    grip_pos: np.ndarray
    hand_quat: np.ndarray
    qpos: np.ndarray


def new_slots(num_slots: int) -> Slots:
    """Allocate rows for N slots."""
    return Slots(
        task=np.zeros(num_slots, np.int64),
        num_steps=np.zeros(num_slots, np.int64),
        outcome=np.zeros(num_slots, np.int64),
        physics=np.zeros((num_slots, MAX_STATE)),
        tree_asleep=np.full((num_slots, MAX_TREES), -1, np.int32),
        controller=np.zeros((num_slots, STATE_SIZE)),
        fixtures=np.zeros((num_slots, MAX_FIXTURES, 7)),
        is_lit=np.zeros((num_slots, 2), np.bool_),
        body_pos=np.zeros((num_slots, MAX_BODIES, 3)),
        body_mat=np.zeros((num_slots, MAX_BODIES, 9)),
        grip_pos=np.zeros((num_slots, 3)),
        hand_quat=np.zeros((num_slots, 4)),
        qpos=np.zeros((num_slots, MAX_QPOS)),
    )


class Addresses(NamedTuple):
    """Where arrays of one MjModel and its MjData lie in memory."""

    body_pos: np.uintp
    body_quat: np.uintp
    ctrl: np.uintp
    qpos: np.uintp
    qvel: np.uintp
    qM: np.uintp  # noqa: N815 - MuJoCo's name
    qfrc_bias: np.uintp
    xpos: np.uintp
    xquat: np.uintp
    xmat: np.uintp
    site_xpos: np.uintp
    site_xmat: np.uintp
    tree_asleep: np.uintp
    num_contacts: np.uintp
    contacts: np.uintp


class Scratch(NamedTuple):
    """One thread's MjModel and MjData of one scene.

    Attributes:
        model: Address of the mjModel.
        data: Address of the mjData.
        arrays: Addresses of their arrays.
    """

    model: np.uintp
    data: np.uintp
    arrays: Addresses


def scratch_of(
    model: mujoco.MjModel, *, sleeps: bool = False
) -> tuple[Scratch, mujoco.MjModel, mujoco.MjData]:
    """Copy a model and make data for it; the caller keeps both alive as long as the scratch."""
    model = copy(model)
    if sleeps:
        model.opt.enableflags |= int(mujoco.mjtEnableBit.mjENBL_SLEEP)
    data = mujoco.MjData(model)
    of_model = [getattr(model, name).ctypes.data for name in ("body_pos", "body_quat")]
    of_data = [getattr(data, name).ctypes.data for name in Addresses._fields[2:13]]
    fields = [data._address + _offset("mjData", name) for name in ("ncon", "contact")]
    addresses = Addresses(*(np.uintp(address) for address in (*of_model, *of_data, *fields)))
    return Scratch(np.uintp(model._address), np.uintp(data._address), addresses), model, data


def contact_layout() -> tuple[int, int]:
    """Return the bytes of MuJoCo's `mjContact`, and where in it the two geoms are."""
    return ctypes.sizeof(_structure("mjContact")), _offset("mjContact", "geom")


def _offset(struct: str, field: str) -> int:
    return getattr(_structure(struct), field).offset


@cache
def _structure(name: str) -> type[ctypes.Structure]:
    """Build a struct of MuJoCo from its description of itself."""
    from mujoco.introspect.structs import STRUCTS

    fields = [(field.name, _c_type(str(field.type))) for field in STRUCTS[name].fields]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_NUMBERS = {
    "int": ctypes.c_int,
    "mjtNum": ctypes.c_double,
    "mjtByte": ctypes.c_ubyte,
    "mjtSize": ctypes.c_int64,
    "size_t": ctypes.c_size_t,
    "uint64_t": ctypes.c_uint64,
    "uintptr_t": ctypes.c_size_t,
    "float": ctypes.c_float,
}


def _c_type(declared: str) -> type:
    declared = declared.removeprefix("const ")
    if declared.endswith("*"):
        return ctypes.c_void_p
    name, _, extents = declared.partition(" [")
    kind = _NUMBERS.get(name) or _structure(name)
    for extent in reversed(extents.rstrip("]").split("][")):
        kind = kind * int(extent) if extent else kind
    return kind
