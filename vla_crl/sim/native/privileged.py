"""Where the things of a scene are, as numbers: for learners that may know it, and for critics.

Of every thing, in the order of `Suite.things`, what applies to it:

    NAME.x .y .z                 m, from the grip, world axes: its origin, a moving part's handle
    NAME.xx .yx .zx .xy .yy .zy  first two columns of an object's rotation matrix (world)
    NAME.joint                   m or rad, of a moving part

They are exact whatever a variation adds to the other senses. What a scene does not have is 0; an
object that a variation has sent away is where it waits, out of sight. Two columns of a rotation are
continuous, as quaternions and angles are not (Zhou et al. 2019, "On the Continuity of Rotation
Representations in Neural Networks").
"""

from typing import NamedTuple

import numpy as np

from vla_crl.sim.native.kernel.slots import SlotPoses
from vla_crl.sim.native.scene import Scene, is_free
from vla_crl.sim.native.suite import Suite
from vla_crl.sim.threads import made_once

PLACE, TURN, JOINT = ("x", "y", "z"), ("xx", "yx", "zx", "xy", "yy", "zy"), ("joint",)
"""Endings of the names of numbers, by what they tell."""


class _Columns(NamedTuple):
    """Where the numbers of one scene come from; each is a list of (id, first column)."""

    bodies: np.ndarray
    handles: np.ndarray
    turns: np.ndarray
    joints: np.ndarray


def privileged_names(suite: Suite) -> tuple[str, ...]:
    """Return the names of the P numbers of a suite's privileged state."""
    return _layout(suite)[0]


def read_privileged(
    suite: Suite, poses: SlotPoses, slots: np.ndarray, scenes: np.ndarray
) -> np.ndarray:
    """Return the privileged state [B, P] float32 of slots [B] in scenes [B]."""
    names, columns_of = _layout(suite)
    state = np.zeros((len(slots), len(names)))
    for scene in np.unique(scenes).tolist():
        rows, columns = np.flatnonzero(scenes == scene)[:, None], columns_of[scene]
        chosen, axes = slots[rows], np.arange(3)
        grip = poses.site_pos[chosen, suite.grip_sites[scene]]
        for source, (ids, first) in (
            (poses.body_pos, columns.bodies.T),
            (poses.site_pos, columns.handles.T),
        ):
            state[rows[:, None], first[:, None] + axes] = source[chosen, ids] - grip
        ids, first = columns.turns.T
        quat = poses.qpos[chosen[:, None], ids[:, None] + np.arange(4)]
        state[rows[:, None], first[:, None] + np.arange(6)] = _two_columns(quat)
        ids, first = columns.joints.T
        state[rows, first] = poses.qpos[chosen, ids]
    return state.astype(np.float32)


@made_once
def _layout(suite: Suite) -> tuple[tuple[str, ...], list[_Columns]]:
    """Return the names, and for every scene where their numbers come from."""
    kinds = [
        {thing.name: _kinds(scene, thing.name) for thing in scene.things} for scene in suite.scenes
    ]
    names: list[str] = []
    for thing in suite.things:
        told = {kind for of_scene in kinds for kind in of_scene.get(thing, ())}
        names += [f"{thing}.{end}" for kind in (PLACE, TURN, JOINT) if kind in told for end in kind]
    return tuple(names), [
        _columns(scene, names, own) for scene, own in zip(suite.scenes, kinds, strict=True)
    ]


def _kinds(scene: Scene, thing: str) -> tuple[tuple[str, ...], ...]:
    if thing in scene.joints:
        return PLACE, JOINT
    return (PLACE, TURN) if is_free(scene.model, scene.bodies[thing]) else (PLACE,)


def _columns(
    scene: Scene, names: list[str], kinds: dict[str, tuple[tuple[str, ...], ...]]
) -> _Columns:
    model = scene.model
    bodies, handles, turns, joints = [], [], [], []
    for thing, told in kinds.items():
        body, place = scene.bodies[thing], names.index(f"{thing}.{PLACE[0]}")
        if JOINT in told:
            handles.append((model.site(scene.thing(thing).handle).id, place))
            joints.append((scene.joints[thing].qpos_index, names.index(f"{thing}.{JOINT[0]}")))
        else:
            bodies.append((body, place))
        if TURN in told:
            quat = model.jnt_qposadr[model.body_jntadr[body]] + 3
            turns.append((quat, names.index(f"{thing}.{TURN[0]}")))
    parts = (bodies, handles, turns, joints)
    return _Columns(*(np.array(part, np.int64).reshape(-1, 2) for part in parts))


def _two_columns(quat: np.ndarray) -> np.ndarray:
    """Return the first two columns [..., 6] of the rotation matrices of quaternions wxyz."""
    w, x, y, z = np.moveaxis(quat, -1, 0)
    first = (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
    second = (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x))
    return np.stack([*first, *second], axis=-1)
