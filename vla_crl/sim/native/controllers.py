"""The ways to command the arm of a scene, by name: what their numbers are called and mean."""

import numpy as np

from vla_crl.contracts import (
    JOINT_ANGLE,
    JOINT_TARGET,
    POSE_ACTION,
    POSE_STATE,
    Embodiment,
)
from vla_crl.sim.native.kernel.controller import (
    EEF_POSE,
    EEF_POSITION,
    JOINT_POSITION,
    JOINTS,
    Controller,
    action_size,
)
from vla_crl.sim.native.scene_config import SceneConfig

KINDS = {"eef_pose": EEF_POSE, "eef_position": EEF_POSITION, "joint_position": JOINT_POSITION}
"""What the kernel calls each."""
GRIPPER = POSE_ACTION[-1]


def embodiment_of(controller: str, config: SceneConfig) -> Embodiment:
    """Name the channels of a scene's robot.

    "eef_pose" moves and turns the end effector; "eef_position" moves it, with its orientation as it
    was; "joint_position" says where each joint of the arm is to go, from one end of its range (-1)
    to the other (1), and so also tells where the joints are.
    """
    action, state, joints = POSE_ACTION, POSE_STATE, config.arm.joints
    if controller == "eef_position":
        action = (*POSE_ACTION[:3], GRIPPER)
    if controller == "joint_position":
        action = (*(JOINT_TARGET + joint for joint in joints), GRIPPER)
        state = (*POSE_STATE[:6], *(JOINT_ANGLE + joint for joint in joints), *POSE_STATE[6:])
    return Embodiment(action=action, state=state, cameras=config.cameras)


def holding(controller: Controller, states: np.ndarray) -> np.ndarray:
    """Return actions [B, A] that leave arm and gripper where controller states [B, R] have them."""
    actions = np.zeros((len(states), action_size(controller)))
    if controller.kind == JOINT_POSITION:
        actions[:, :-1] = in_range(controller, states[:, JOINTS])
    return actions


def from_range(controller: Controller, parts: np.ndarray) -> np.ndarray:
    """Return joints [B, J] (rad), given where they are in their ranges: from -1 to 1."""
    low, high = controller.chain.low_rad, controller.chain.high_rad
    return low + 0.5 * (parts + 1.0) * (high - low)


def in_range(controller: Controller, joints: np.ndarray) -> np.ndarray:
    """Return where joints [B, J] (rad) are in their ranges: from -1 to 1."""
    low, high = controller.chain.low_rad, controller.chain.high_rad
    return 2.0 * (joints - low) / (high - low) - 1.0
