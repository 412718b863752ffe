import numpy as np
import pytest

from vla_crl.sim.native.kernel.controller import (
    FINGER,
    JOINTS,
    POSITION,
    ROTATION,
    Controller,
    command,
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
    return Controller(scene.chain, arm.max_step_m, arm.max_step_rad, low, high)


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
        assert np.abs(state[JOINTS] - before).max() <= 0.3 + 1e-12
