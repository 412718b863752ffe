"""What a dense reward needs to know of a suite's scenes beside their goals."""

import mujoco
import numpy as np

from vla_crl.sim.native.kernel.predicates import Goals, Op
from vla_crl.sim.native.kernel.progress import Shaping
from vla_crl.sim.native.scene import Scene
from vla_crl.sim.native.scene_config import ThingConfig
from vla_crl.sim.native.scene_constants import constants_of
from vla_crl.sim.native.suite import Suite
from vla_crl.sim.threads import made_once


@made_once
def shaping_of(suite: Suite, index: int) -> Shaping:
    """Collect it for one of a suite's scenes; all simulations share it."""
    return shape(constants_of(suite, index).goals, suite.scenes[index])


def shape(goals: Goals, scene: Scene) -> Shaping:
    """Say of every step of compiled goals how a robot makes it true.

    Args:
        goals: Of the scene.
        scene: Where.
    """
    steps = goals.lengths.size, goals.programs.shape[1]
    shaping = Shaping(
        is_pushed=np.zeros(steps, dtype=bool),
        handle=np.zeros(steps, np.int64),
        anchor=np.zeros(steps, np.int64),
        axis=np.zeros((*steps, 3)),
        is_hinge=np.zeros(steps, dtype=bool),
        start=np.zeros(steps),
        fingers=np.array(scene.qpos_index(scene.config.arm.fingers), np.int64),
    )
    by_body = {scene.bodies[thing.name]: thing for thing in scene.things}
    by_joint = {scene.joints[t.name].qpos_index: t for t in scene.things if t.name in scene.joints}
    at_rest = mujoco.MjData(scene.model)
    mujoco.mj_kinematics(scene.model, at_rest)
    for task, length in enumerate(goals.lengths):
        for k, (op, first, *_) in enumerate(goals.programs[task, :length].tolist()):
            if op in (Op.JOINT_ABOVE, Op.JOINT_BELOW):
                _shape_joint(shaping, (task, k), op, by_joint[first], scene, at_rest)
            elif op > Op.NOT:
                shaping.is_pushed[task, k] = not by_body[first].is_graspable
    return shaping


def _shape_joint(
    shaping: Shaping, step: tuple[int, int], op: int, thing: ThingConfig, scene: Scene,
    at_rest: mujoco.MjData,
) -> None:  # fmt: skip
    model, articulation = scene.model, scene.joints[thing.name]
    joint, sense = model.joint(thing.joint), 1.0 if op == Op.JOINT_ABOVE else -1.0
    shaping.handle[step] = model.site(thing.handle).id
    shaping.anchor[step] = scene.bodies[thing.name]
    shaping.axis[step] = sense * at_rest.xaxis[joint.id]
    shaping.is_hinge[step] = joint.type[0] == mujoco.mjtJoint.mjJNT_HINGE
    ends = sorted((articulation.on_at, articulation.off_at))
    if joint.limited[0]:
        ends = joint.range.tolist()
    shaping.start[step] = ends[0] if op == Op.JOINT_ABOVE else ends[1]
