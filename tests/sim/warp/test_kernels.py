"""Warp's kernels beside the functions that numba compiles, on random inputs."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco_warp", reason="pip install --editable '.[warp]'")

import warp as wp

from vla_crl.errors import ConfigError
from vla_crl.sim.native.goals import DIRECTIONS, parse_goal
from vla_crl.sim.native.kernel import controller, predicates, senses
from vla_crl.sim.native.kernel.controller import (
    FINGER,
    JOINTS,
    MAX_JOINT_LEAD_RAD,
    POSITION,
    state_size,
)
from vla_crl.sim.native.kernel.kinematics import Chain
from vla_crl.sim.native.kernel.slots import SceneConstants
from vla_crl.sim.native.layout import initial_states
from vla_crl.sim.native.scene_constants import constants_of
from vla_crl.sim.native.suite import Suite, load_suite
from vla_crl.sim.rotations import axis_angle_from_matrix, matrix_from_axis_angle
from vla_crl.sim.variation import MAX_LATENCY
from vla_crl.sim.warp.kernels.controller import command, delay, put_controller, ramp
from vla_crl.sim.warp.kernels.kinematics import MAX_JOINTS, put_chain
from vla_crl.sim.warp.kernels.predicates import Poses, evaluate_goals, put_goals
from vla_crl.sim.warp.kernels.senses import add_image_noise, add_state_noise, feel

CPU = "cpu"
NUM_WORLDS = 200
GOALS = (
    ["in", "red cube", "drawer"],
    ["on", "red cube", "plate"],
    ["stacked", "red cube", "plate"],
    ["released", "red cube"],
    ["open", "drawer"],
    ["closed", "drawer"],
    ["turned_on", "knob"],
    ["turned_off", "knob"],
    *([direction, "red cube", "plate"] for direction in DIRECTIONS),
    ["between", "red cube", "plate", "stove"],
    ["and", ["released", "red cube"], ["open", "drawer"], ["not", ["turned_on", "knob"]]],
    ["or", ["in", "red cube", "drawer"], ["not", ["open", "drawer"]]],
)


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite("tabletop_goal")


@pytest.fixture(scope="module")
def constants(suite: Suite) -> SceneConstants:
    return constants_of(suite, 0)


def random_rotations(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=(int(np.prod(shape)), 3)) * rng.choice([0.01, 1.0])
    turned = [matrix_from_axis_angle(vector) for vector in vectors]
    return np.array(turned).reshape(*shape, 3, 3).astype(np.float32)


def array(values: np.ndarray, dtype: type) -> Any:
    return wp.array(values, dtype=dtype, device=CPU)


@pytest.mark.parametrize("name", ["eef_pose", "eef_position", "joint_position"])
def test_the_controller_moves_as_the_compiled_one(suite: Suite, name: str):
    rng, constants = np.random.default_rng(0), constants_of(suite.with_controller(name), 0)
    num_numbers = controller.action_size(constants.controller)
    expected = initial_states(suite.scenes[0]).controller[:NUM_WORLDS].copy()
    arm, acting = put_controller(constants, CPU), np.ones(NUM_WORLDS)
    acting[-20:] = 0
    shifts = rng.uniform(-0.04, 0.04, (NUM_WORLDS, 3))
    states = array(expected, wp.float64)
    previous, idle = wp.zeros_like(states), expected[-20:].copy()
    for _ in range(6):
        actions = rng.uniform(-1.0, 1.0, (NUM_WORLDS, num_numbers))
        actions[::10, -1] = 0.0
        sites = np.zeros((NUM_WORLDS, constants.sizes.nsite, 3), np.float32)
        sites[:, constants.grip_site] = expected[:, POSITION] + rng.normal(
            0.0, 0.04, (NUM_WORLDS, 3)
        )
        inputs = [array(acting, int), array(actions, wp.float64), array(sites, wp.vec3)]
        inputs.append(array(shifts, wp.vec3d))
        wp.launch(command, NUM_WORLDS, [arm, *inputs, states, previous], device=CPU)
        for state, *inputs in zip(expected[:-20], actions, sites, shifts, strict=False):
            action, site, shift = inputs
            measured = site[constants.grip_site].astype(np.float64)
            controller.command(constants.controller, state, action, measured, shift)
    assert np.abs(states.numpy() - expected).max() < 1e-11
    assert np.array_equal(states.numpy()[-20:], idle)


def test_commands_move_linearly_from_the_state_before_to_the_state_now(constants: SceneConstants):
    rng = np.random.default_rng(1)
    before, now = rng.normal(size=(2, 3, state_size(7)))
    ctrl = wp.zeros((3, constants.sizes.nu), dtype=float, device=CPU)
    states = [array(values, wp.float64) for values in (now, before)]
    expected = before + 0.25 * (now - before)
    qpos = np.zeros((3, constants.sizes.nq), np.float32)
    qpos[:, constants.arm_qpos] = expected[:, JOINTS] + rng.uniform(-0.2, 0.2, (3, 7))
    inputs = [put_controller(constants, CPU), 0.25, *states, array(qpos, float), ctrl]
    wp.launch(ramp, 3, inputs, device=CPU)
    measured = qpos[:, constants.arm_qpos]
    told = np.clip(
        expected[:, JOINTS], measured - MAX_JOINT_LEAD_RAD, measured + MAX_JOINT_LEAD_RAD
    )
    assert (told != expected[:, JOINTS]).any()
    assert (told == expected[:, JOINTS]).any()
    assert np.allclose(ctrl.numpy()[:, constants.arm_actuators], told, atol=1e-6)
    for finger in constants.finger_actuators:
        assert np.allclose(ctrl.numpy()[:, finger], expected[:, FINGER], atol=1e-6)


def test_goals_hold_where_the_compiled_ones_do(suite: Suite, constants: SceneConstants):
    scene, size = suite.scenes[0], constants.sizes
    goals = scene.compile([parse_goal(goal, "test", scene.known) for goal in GOALS])
    rng, num_worlds = np.random.default_rng(2), 1000
    low, high = [-0.06, -0.06, 0.0], [0.06, 0.06, 0.06]
    places = {
        name: rng.uniform(low, high, (num_worlds, count, 3)).astype(np.float32)
        for name, count in (("body", size.nbody), ("site", size.nsite), ("geom", size.ngeom))
    }
    turns = {n: random_rotations(rng, num_worlds, places[n].shape[1]) for n in ("site", "geom")}
    qpos = rng.uniform(-0.2, 2.0, (num_worlds, size.nq)).astype(np.float32)
    poses = Poses()
    for name, values in places.items():
        setattr(poses, f"{name}_pos", array(values, wp.vec3))
    for name, values in turns.items():
        setattr(poses, f"{name}_mat", array(values, wp.mat33))
    poses.qpos, poses.grip_site = array(qpos, float), constants.grip_site
    holds = wp.zeros(num_worlds, dtype=bool, device=CPU)
    compiled = put_goals(goals, CPU)
    for index, goal in enumerate(GOALS):
        inputs = [compiled, array(np.full(num_worlds, index), int), poses, holds]
        wp.launch(evaluate_goals, num_worlds, inputs, device=CPU)
        expected = [
            predicates.goal_reached(
                goals, index,
                predicates.Poses(
                    body.astype(np.float64), site.astype(np.float64),
                    site_turn.reshape(-1, 9).astype(np.float64), geom.astype(np.float64),
                    geom_turn.reshape(-1, 9).astype(np.float64), joints.astype(np.float64),
                    site[constants.grip_site].astype(np.float64),
                ),
            )
            for body, site, geom, site_turn, geom_turn, joints in zip(
                *places.values(), *turns.values(), qpos, strict=True
            )
        ]  # fmt: skip
        assert np.array_equal(holds.numpy(), expected), goal
        assert 0 < np.sum(expected) < num_worlds, goal


def test_the_state_is_position_axis_angle_and_fingers():
    rng = np.random.default_rng(3)
    position = rng.normal(size=(NUM_WORLDS, 2, 3)).astype(np.float32)
    rotation, qpos = random_rotations(rng, NUM_WORLDS, 2), rng.normal(size=(NUM_WORLDS, 5))
    felt = np.ones(NUM_WORLDS)
    felt[0] = 0
    state = wp.zeros((NUM_WORLDS, 8), dtype=float, device=CPU)
    poses = [array(position, wp.vec3), array(rotation, wp.mat33), array(qpos, float)]
    fingers = array(np.array([3, 4]), int)
    wp.launch(feel, NUM_WORLDS, [array(felt, int), *poses, 1, fingers, state], device=CPU)
    turn = axis_angle_from_matrix(rotation[:, 1].astype(np.float64))
    expected = np.concatenate([position[:, 1], turn, qpos[:, 3:]], axis=1)
    expected[0] = 0.0
    assert np.abs(state.numpy() - expected).max() < 1e-5


def test_an_arm_with_too_many_joints_is_refused():
    num_joints = MAX_JOINTS + 1
    frames = np.zeros((num_joints + 1, 3)), np.zeros((num_joints + 1, 3, 3))
    chain = Chain(*frames, np.zeros((num_joints, 3)), *np.zeros((3, num_joints)))
    with pytest.raises(ConfigError, match="the arm has 9 joints, expected at most 8; .* VectorSim"):
        put_chain(chain, CPU)


def test_actions_take_effect_late():
    latency = np.array([0, 1, 3, 3])
    pending = wp.zeros((4, MAX_LATENCY, 7), dtype=wp.float64, device=CPU)
    sent, done = np.random.default_rng(6).normal(size=(8, 4, 7)), []
    for step, actions in enumerate(sent):
        late = array(actions, wp.float64)
        inputs = [np.array([1, 1, 1, 0]), latency, np.full(4, step)]
        late_inputs = [*(array(values, int) for values in inputs), pending, late]
        wp.launch(delay, 4, late_inputs, device=CPU)
        done.append(late.numpy().copy())
    done = np.array(done)
    for world in range(3):
        begin = latency[world]
        assert np.all(done[:begin, world] == 0.0)
        assert np.array_equal(done[begin:, world], sent[: len(sent) - begin, world])
    assert np.array_equal(done[:, 3], sent[:, 3])  # does not act


def test_noise_is_that_of_the_compiled_functions():
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, (3, 2, 5, 4, 3), dtype=np.uint8)
    state = rng.normal(size=(3, 8)).astype(np.float32)
    sigma, key = np.array([0.1, 0.0, 0.3]), np.array([2**63 - 5, 7, 1 << 32])
    num_steps = np.array([0, 3, 59])
    inputs = [array(sigma, wp.float64), array(key.view(np.uint64), wp.uint64)]
    inputs.append(array(num_steps, int))
    seen, felt = array(images, wp.vec3ub), array(state, float)
    wp.launch(add_image_noise, (3, 40), [seen, *inputs], device=CPU)
    wp.launch(add_state_noise, (3, 8), [felt, *inputs], device=CPU)
    before = images.copy()
    senses.add_image_noise(images, sigma, key, num_steps)
    senses.add_state_noise(state, sigma, key, num_steps)
    assert np.array_equal(seen.numpy(), images)
    assert np.allclose(felt.numpy(), state, atol=1e-7)
    assert np.array_equal(images[1], before[1])
    assert np.abs(images[2].astype(float) - before[2]).mean() > 20.0
