import numpy as np
import pytest

from vla_crl.sim.native.kernel.controller import (
    EEF_POSE,
    EEF_POSITION,
    FINGER,
    JOINT_POSITION,
    JOINTS,
    POSITION,
    ROTATION,
    Controller,
    action_size,
    command,
    follow_poses,
    state_size,
)
from vla_crl.sim.native.kernel.kinematics import rotation_about
from vla_crl.sim.native.layout import initial_states
from vla_crl.sim.native.scene import Scene

NOWHERE = np.zeros(3)
"""The base stands where the scene says."""


@pytest.fixture(scope="module")
def controller(scene: Scene) -> Controller:
    arm = scene.config.arm
    low, high = np.array(arm.workspace_low_m), np.array(arm.workspace_high_m)
    return Controller(EEF_POSE, scene.chain, arm.max_step_m, arm.max_step_rad, low, high)


@pytest.fixture
def state(scene: Scene) -> np.ndarray:
    return initial_states(scene).controller[0].copy()


def action(**numbers: float) -> np.ndarray:
    names = ("x", "y", "z", "turn_x", "turn_y", "turn_z", "gripper")
    return np.array([numbers.get(name, 0.0) for name in names])


def test_a_state_holds_position_rotation_joints_and_finger(
    controller: Controller, state: np.ndarray
):
    assert state_size(7) == len(state) == 3 + 9 + 7 + 1


def test_deltas_accumulate_on_the_commanded_pose(controller: Controller, state: np.ndarray):
    start = state[POSITION].copy()
    for _ in range(3):  # the arm lags: what is measured never moves
        command(controller, state, action(x=0.1, z=-0.2), start, NOWHERE)
    assert np.allclose(state[POSITION] - start, [3 * 0.1 * 0.05, 0.0, -3 * 0.2 * 0.05], atol=1e-12)


def test_the_command_runs_ahead_of_the_arm_by_six_centimetres_at_most(
    controller: Controller, state: np.ndarray
):
    start = state[POSITION].copy()
    for _ in range(4):
        command(controller, state, action(y=1.0), start, NOWHERE)
    assert np.allclose(state[POSITION] - start, [0.0, 0.06, 0.0], atol=1e-12)
    command(controller, state, action(y=-0.4), start, NOWHERE)  # turning back is felt at once
    assert np.allclose(state[POSITION] - start, [0.0, 0.04, 0.0], atol=1e-12)


def test_the_commanded_position_stays_in_the_workspace(controller: Controller, state: np.ndarray):
    for direction, bound in ((-1.0, controller.low_m), (1.0, controller.high_m)):
        for _ in range(20):
            full = action(x=direction, y=direction, z=direction)
            command(controller, state, full, state[POSITION].copy(), NOWHERE)
        assert np.array_equal(state[POSITION], bound)


def test_rotations_turn_about_world_axes(controller: Controller, state: np.ndarray):
    turn, before = np.empty((3, 3)), state[ROTATION].reshape(3, 3).copy()
    command(controller, state, action(turn_x=0.6), state[POSITION].copy(), NOWHERE)
    rotation_about(np.array([0.6 * 0.5, 0.0, 0.0]), turn)
    tilted = turn @ before
    assert np.allclose(state[ROTATION].reshape(3, 3), tilted, atol=1e-12)
    command(controller, state, action(turn_z=-1.0), state[POSITION].copy(), NOWHERE)
    rotation_about(np.array([0.0, 0.0, -0.5]), turn)
    assert np.allclose(state[ROTATION].reshape(3, 3), turn @ tilted, atol=1e-12)


def test_the_gripper_closes_in_two_steps_and_holds_on_zero(
    controller: Controller, state: np.ndarray
):
    fingers = []
    for gripper in (0.3, 0.0, 1.0, 1.0, -0.1, -1.0, -1.0):
        command(controller, state, action(gripper=gripper), state[POSITION].copy(), NOWHERE)
        fingers.append(state[FINGER])
    assert np.allclose(fingers, [0.02, 0.02, 0.0, 0.0, 0.02, 0.04, 0.04])


def test_a_kind_has_its_numbers(controller: Controller):
    kinds = [controller._replace(kind=kind) for kind in (EEF_POSE, EEF_POSITION, JOINT_POSITION)]
    assert [action_size(kind) for kind in kinds] == [7, 4, 8]


def test_without_rotations_the_orientation_stays(controller: Controller, state: np.ndarray):
    expected, start = state.copy(), state.copy()
    for _ in range(3):
        grip, four = state[POSITION].copy(), np.array([0.4, 0.0, -0.7, 1.0])
        command(controller, expected, action(x=0.4, z=-0.7, gripper=1.0), grip, NOWHERE)
        command(controller._replace(kind=EEF_POSITION), state, four, grip, NOWHERE)
    assert np.array_equal(state, expected)
    assert np.array_equal(state[ROTATION], start[ROTATION])


def test_joints_go_to_their_targets_a_bounded_angle_at_a_time(
    controller: Controller, state: np.ndarray
):
    joints, pose = state[JOINTS].copy(), state[:12].copy()
    controller = controller._replace(kind=JOINT_POSITION)
    low, high = controller.chain.low_rad, controller.chain.high_rad
    target = joints + np.array([0.1, -0.1, 0.7, 0.0, 0.2, 0.3, -0.5])
    told = np.append(2.0 * (target - low) / (high - low) - 1.0, 0.0)
    command(controller, state, told, state[POSITION].copy(), NOWHERE)
    part = 0.2175 / 0.7  # of the way, for all joints alike: the third has the farthest to go
    assert np.allclose(state[JOINTS] - joints, part * (target - joints), atol=1e-12)
    for _ in range(3):
        command(controller, state, told, state[POSITION].copy(), NOWHERE)
    assert np.allclose(state[JOINTS], target, atol=1e-12)
    assert np.array_equal(state[:12], pose)
    for end, limit in ((-1.0, low), (1.0, high)):
        for _ in range(30):
            command(controller, state, np.full(8, end), state[POSITION].copy(), NOWHERE)
        assert np.allclose(state[JOINTS], limit, atol=1e-12)


def test_following_a_pose_begins_where_the_joints_are(controller: Controller, state: np.ndarray):
    """What the pose controller would command, though the states hold another pose."""
    shift = np.array([0.01, -0.02, 0.0])
    expected, lost = state.copy(), state.copy()
    expected[POSITION] += shift
    lost[:12] = 7.0
    turned = action(x=0.5, z=-0.5, turn_z=0.2)
    command(controller, expected, turned, expected[POSITION].copy(), shift)
    grip = state[POSITION] + shift
    follow_poses(
        controller._replace(kind=JOINT_POSITION), lost[None], turned[None], grip[None],
        np.array([False]), shift[None],
    )  # fmt: skip
    assert np.abs(lost[JOINTS] - expected[JOINTS]).max() < 2e-3
    assert lost[FINGER] == state[FINGER]


@pytest.mark.parametrize(("is_late", "reach_m"), [(False, 0.06), (True, 0.1)])
def test_a_pose_runs_ahead_of_the_grip_only_where_actions_take_effect_late(
    controller: Controller, state: np.ndarray, is_late: bool, reach_m: float
):
    start, states = state[POSITION].copy(), state[None].copy()
    for _ in range(2):  # 5 cm each, the grip stays
        follow_poses(
            controller, states, action(y=1.0)[None], start[None], np.array([is_late]), NOWHERE[None]
        )
    assert states[0, POSITION] - start == pytest.approx([0.0, reach_m, 0.0], abs=2e-3)


def test_joints_turn_by_a_bounded_angle_in_one_step(controller: Controller, state: np.ndarray):
    for _ in range(10):
        before = state[JOINTS].copy()
        command(
            controller,
            state,
            action(x=1, y=-1, turn_x=1, turn_z=1),
            state[POSITION].copy(),
            NOWHERE,
        )
        assert np.abs(state[JOINTS] - before).max() <= 0.2175 + 1e-12
