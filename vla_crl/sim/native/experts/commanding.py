"""What the expert wants of the end effector, as an action of the suite's controller."""

import numpy as np

from vla_crl.contracts import POSE_ACTION
from vla_crl.sim.native.controllers import from_range, in_range
from vla_crl.sim.native.kernel.controller import JOINTS, follow_poses, state_size
from vla_crl.sim.native.scene_constants import constants_of
from vla_crl.sim.native.vector_sim import VectorSim


def commanding(sim: VectorSim, slots: np.ndarray, pose_actions: np.ndarray) -> np.ndarray:
    """Return actions [B, A] of the suite's controller that do what those of "eef_pose" would do.

    Args:
        sim: Where.
        slots: [B].
        pose_actions: [B, 7] in [-1, 1].
    """
    names = sim.suite.embodiment.action
    if sim.suite.controller != "joint_position":
        return pose_actions[:, [POSE_ACTION.index(name) for name in names]]
    scenes, grips = sim.suite.scene_of_task[sim.tasks[slots]], sim.grip_pose(slots)[0]
    states, shifts = sim.controller_states(slots), sim.base_shift(slots)
    is_late, latest = sim.action_latency(slots) > 0, sim.latest_actions(slots)
    actions = np.empty((len(slots), len(names)))
    for scene in np.unique(scenes).tolist():
        there, controller = scenes == scene, constants_of(sim.suite, scene).controller
        moved = states[there, : state_size(len(names) - 1)]
        sent = from_range(controller, latest[there, :-1])  # to go on from, where it waits
        moved[is_late[there], JOINTS] = sent[is_late[there]]
        follow_poses(
            controller, moved, pose_actions[there], grips[there], is_late[there], shifts[there]
        )
        actions[there, :-1] = in_range(controller, moved[:, JOINTS])
    actions[:, -1] = pose_actions[:, -1]
    return np.clip(actions, -1.0, 1.0)
