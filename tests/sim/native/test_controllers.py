"""The three ways to command an arm, each beside something independent."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import gymnasium
import mujoco
import numpy as np
import pytest

from vla_crl.contracts import ARM, POSE_ACTION, POSE_STATE, check_fits
from vla_crl.errors import ConfigError
from vla_crl.sim.backends import expert_of, find_suite, task_horizons
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.gymnasium_envs import TaskEnv
from vla_crl.sim.native.controllers import from_range, holding, in_range
from vla_crl.sim.native.kernel.controller import JOINTS, MAX_JOINT_LEAD_RAD
from vla_crl.sim.native.replay import replay
from vla_crl.sim.native.scene_constants import constants_of
from vla_crl.sim.native.suite import Suite, load_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.packed_state import STATE_SPEC
from vla_crl.sim.variation import VariationConfig
from vla_crl.testing import check_suite

NewSim = Callable[..., VectorSim]
CONTROLLERS = ("eef_pose", "eef_position", "joint_position")
JOINT_NAMES = tuple(f"joint{number}" for number in range(1, 8))
SHIFTED = VariationConfig(base_shift_m=((-0.03, -0.03, 0.0), (0.03, 0.03, 0.01)))


def random_actions(suite: Suite, num_slots: int, num_steps: int) -> np.ndarray:
    shape = (num_slots, num_steps, len(suite.embodiment.action))
    return np.random.default_rng(0).uniform(-1.0, 1.0, shape)


def started(new_sim: NewSim, controller: str, num_slots: int = 3, **settings: Any) -> VectorSim:
    sim = new_sim(num_slots, suite=load_suite(f"tabletop_object@{controller}"), **settings)
    sim.reset(range(num_slots), tasks=[0] * num_slots, state_ids=range(num_slots))
    return sim


# Names.


def test_a_controller_is_a_part_of_the_suites_name(suite: Suite):
    for name in CONTROLLERS:
        other = load_suite(f"tabletop_object@{name}")
        assert other is find_suite(other.name) is suite.with_controller(name)
        assert other.name == f"tabletop_object@{name}"
        assert other.scenes is suite.scenes  # nothing is compiled again
        assert other.with_controller("eef_pose") is not suite
        assert other.with_controller("eef_pose").name == "tabletop_object@eef_pose"
        assert task_horizons(other.name) == task_horizons("tabletop_object")
    assert suite.controllers == CONTROLLERS


def test_each_names_what_it_is_told_and_tells():
    pose, position, joints = (load_suite(f"tabletop_object@{c}").embodiment for c in CONTROLLERS)
    assert pose == ARM
    assert position == replace(ARM, action=("delta_x", "delta_y", "delta_z", "gripper"))
    assert joints.action == (*(f"target_{name}" for name in JOINT_NAMES), "gripper")
    angles = tuple(f"angle_{name}" for name in JOINT_NAMES)
    assert joints.state == (*POSE_STATE[:6], *angles, "finger_left", "finger_right")
    assert [robot.is_binary.sum() for robot in (pose, position, joints)] == [1, 1, 1]


def test_a_policy_of_one_does_not_fit_another():
    suite = load_suite("tabletop_object@joint_position")
    with pytest.raises(ConfigError, match=r"action\[0\] of the suite is 'target_joint1', the pol"):
        check_fits(ARM, suite.embodiment, "evaluate")


@pytest.mark.parametrize("load", [find_suite, load_suite])
def test_an_unknown_controller_names_the_nearest(load: Callable[[str], Suite]):
    with pytest.raises(ConfigError, match="'tabletop_goal': unknown controller 'joint_positions'"):
        load("tabletop_goal@joint_positions")
    with pytest.raises(ConfigError, match="'eef_pos'. Did you mean 'eef_pose'"):
        load("tabletop_goal@eef_pos")
    with pytest.raises(ConfigError, match="unknown controller ''. Known: eef_pose, eef_pos"):
        load("tabletop_goal@")


def test_a_suite_may_have_a_controller_of_its_own(load_changed: Callable[..., Suite]):
    line = "max_step_m = 0.05\n"
    own = load_changed(line, f'{line}controller = "eef_position"\n')
    assert (own.name, own.controller) == (own.scenes[0].file.parent.name, "eef_position")
    assert own.controllers == ("eef_position", "eef_pose", "joint_position")
    assert len(own.embodiment.action) == 4
    assert own.with_controller("eef_pose").embodiment == ARM


def test_a_suite_file_names_a_controller_that_there_is(load_changed: Callable[..., Suite]):
    line = "max_step_m = 0.05\n"
    with pytest.raises(ConfigError, match="controller = 'eef_pos', expected 'eef_pose' or 'eef_po"):
        load_changed(line, f'{line}controller = "eef_pos"\n')


def test_joints_of_the_arm_have_a_range(load_changed: Callable[..., Suite]):
    ranged = '<joint class="arm" name="joint5" range="-2.8973 2.8973"/>'
    with pytest.raises(ConfigError, match="arm.joints: 'joint5' has no range, expected one that"):
        load_changed(ranged, '<joint class="arm" name="joint5"/>', "../robots/arm7.xml")


# What they do.


def test_eef_position_is_eef_pose_without_rotations(new_sim: NewSim):
    pose, position = (
        started(new_sim, controller, variation=SHIFTED) for controller in CONTROLLERS[:2]
    )
    actions = random_actions(position.suite, 3, 12)
    turned = np.insert(actions, [3, 3, 3], 0.0, axis=2)
    for start in (0, 4, 8):
        position.step_chunk(actions[:, start : start + 4])
        pose.step_chunk(turned[:, start : start + 4])
    expected = pose.get_states()
    for name, values in position.get_states().items():
        if name != "pending":
            assert np.array_equal(values, expected[name]), name
    one, other = pose.observe(), position.observe()
    assert np.array_equal(one.state, other.state)
    assert np.array_equal(one.images, other.images)


def test_joints_go_where_they_are_told_through_plain_mj_step(suite: Suite, new_sim: NewSim):
    """Beside MuJoCo alone: a ramp to the target, at most 0.2175 rad a step, fingers 2 cm a step."""
    sim, model = started(new_sim, "joint_position", 1), suite.scenes[0].model
    low, high = model.jnt_range[[model.joint(name).id for name in JOINT_NAMES]].T
    arm = [model.actuator(name).id for name in JOINT_NAMES]
    fingers = [model.actuator(name).id for name in ("finger1", "finger2")]
    data = mujoco.MjData(model)
    physics = sim.get_states()["physics"][0].copy()
    mujoco.mj_setState(model, data, physics, STATE_SPEC)
    joints, finger = data.ctrl[arm].copy(), data.ctrl[fingers[0]]
    actions = 0.4 * random_actions(sim.suite, 1, 14)
    actions[..., :7] += 2.0 * (joints - low) / (high - low) - 1.0  # about where they are
    actions = np.clip(actions, -1.0, 1.0)
    actions[0, 6:] = actions[0, 6]  # is reached
    target = joints
    for step, action in enumerate(actions[0]):
        data = mujoco.MjData(model)  # nothing sleeps in it
        data.tree_asleep[:] = sim.get_states()["tree_asleep"][0]
        mujoco.mj_setState(model, data, physics, STATE_SPEC)
        target = low + 0.5 * (action[:7] + 1.0) * (high - low)
        fastest = max(0.2175, np.abs(target - joints).max())
        moved = joints + 0.2175 / fastest * (target - joints)
        closed = np.clip(finger - 0.02 * np.sign(action[7]), 0.0, 0.04)
        for substep in range(20):
            part = (substep + 1) / 20
            ahead = data.qpos[:7] - MAX_JOINT_LEAD_RAD, data.qpos[:7] + MAX_JOINT_LEAD_RAD
            data.ctrl[arm] = np.clip(joints + part * (moved - joints), *ahead)
            data.ctrl[fingers] = finger + part * (closed - finger)
            mujoco.mj_step(model, data)
        joints, finger = moved, closed
        mujoco.mj_getState(model, data, physics, STATE_SPEC)
        sim.step_chunk(actions[:, step : step + 1])
        assert np.array_equal(physics, sim.get_states()["physics"][0]), step
    assert np.allclose(joints, target, atol=1e-12)
    felt = sim.observe().state[0]
    assert np.allclose(felt[:3], sim.grip_pose()[0][0], atol=1e-6)
    assert np.allclose(felt[6:13], data.qpos[:7], atol=1e-6)
    assert np.allclose(felt[13:], sim.finger_positions()[0], atol=1e-6)
    assert np.abs(felt[6:13] - target).max() < 0.1  # the arm has followed


def test_the_range_of_a_joint_is_from_minus_one_to_one(suite: Suite):
    controller = constants_of(suite, 0).controller
    chain = controller.chain
    ends = np.array([chain.low_rad, (chain.low_rad + chain.high_rad) / 2, chain.high_rad])
    parts = np.array([-1.0, 0.0, 1.0])[:, None] * np.ones(7)
    assert np.allclose(in_range(controller, ends), parts, atol=1e-15)
    assert np.allclose(from_range(controller, parts), ends, atol=1e-15)


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_latency_shifts_the_actions_after_standing_still(new_sim: NewSim, controller: str):
    late_by = VariationConfig(action_latency=(3, 3))
    late, nominal = started(new_sim, controller, variation=late_by), started(new_sim, controller)
    actions, states = random_actions(late.suite, 3, 9), nominal.get_states()["controller"]
    held = holding(constants_of(late.suite, 0).controller, states)
    shifted = np.concatenate([np.repeat(held[:, None], 3, axis=1), actions[:, :-3]], axis=1)
    for chunk in (slice(0, 5), slice(5, 9)):
        late.step_chunk(actions[:, chunk])
        nominal.step_chunk(shifted[:, chunk])
    expected = nominal.get_states()
    for name, values in late.get_states().items():
        if name != "pending":
            assert np.array_equal(values, expected[name]), name


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_standing_still_moves_nothing(new_sim: NewSim, controller: str):
    sim = started(new_sim, controller, variation=SHIFTED)
    before = sim.get_states()["controller"]
    held = holding(constants_of(sim.suite, 0).controller, before)
    sim.step_chunk(np.repeat(held[:, None], 5, axis=1))
    assert np.abs(sim.get_states()["controller"] - before).max() < 1e-3  # the posture relaxes
    if controller == "joint_position":
        assert np.abs(sim.get_states()["controller"] - before).max() < 1e-12


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_saved_state_continues_bit_for_bit(new_sim: NewSim, controller: str):
    varied = replace(SHIFTED, action_latency=(0, 3), state_noise=(0.0, 0.01))
    sim, other = (started(new_sim, controller, 6, variation=varied) for _ in range(2))
    actions = random_actions(sim.suite, 6, 8)
    sim.step_chunk(actions[:, :5])
    other.set_states(sim.get_states())
    assert np.array_equal(sim.observe().state, other.observe().state)
    for each in (sim, other):
        each.step_chunk(actions[:, 5:])
    expected = sim.get_states()
    for name, values in other.get_states().items():
        assert np.array_equal(values, expected[name]), name


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_what_blew_up_is_replayed(
    new_sim: NewSim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, controller: str
):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings to a file there
    sim = started(new_sim, controller, variation=replace(SHIFTED, action_latency=(2, 2)))
    actions = random_actions(sim.suite, 3, 4)
    sim.step_chunk(actions)
    states, model = sim.get_states(), sim.suite.scenes[0].model
    states["physics"][1, 1 + model.nq + model.body("red_cube").dofadr[0]] = 1e5
    sim.set_states(states)
    assert sim.step_chunk(actions).diverged.tolist() == [False, True, False]
    loaded = Divergence.load(sim.divergences[0].save(tmp_path))
    assert loaded.suite == f"tabletop_object@{controller}"
    assert replay(loaded, new_sim(1, suite=load_suite(loaded.suite), variation=loaded.variation))


# The expert.


@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("name", ["tabletop_spatial", "tabletop_goal"])
def test_the_expert_knows_every_controller(name: str, controller: str):
    check_suite(load_suite(f"{name}@{controller}"), num_states=1)


@pytest.mark.parametrize("task", ["robot_base", "latency"])
def test_the_expert_of_joints_allows_for_what_varies(new_sim: NewSim, task: str):
    suite = load_suite("tabletop_perturbed@joint_position")
    sim, slots = new_sim(10, suite=suite), np.arange(10)
    sim.reset(slots, tasks=[suite.task_index(task)] * 10, state_ids=suite.test_ids[:10])
    expert, running, success = expert_of(sim), slots, np.zeros(10, bool)
    while len(running):
        actions = expert.act(running)
        assert np.abs(actions).max() <= 1.0
        result = sim.step_chunk(actions[:, None], running)
        success[running] = result.success
        running = running[~(result.terminated | result.truncated)]
    assert success.mean() >= 0.9


def test_the_expert_commands_joints_as_its_pose_would(new_sim: NewSim):
    """The first step of both: the same joints, but for what inverse kinematics leaves over."""
    pose, joints = (started(new_sim, controller) for controller in ("eef_pose", "joint_position"))
    for sim in (pose, joints):
        sim.step_chunk(expert_of(sim).act(np.arange(3))[:, None])
    one, other = (sim.get_states()["controller"] for sim in (pose, joints))
    assert np.abs(one[:, JOINTS] - other[:, JOINTS]).max() < 5e-3
    assert np.array_equal(one[:, -1], other[:, -1])


# Gymnasium.


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_spaces_of_an_environment_follow_the_controller(controller: str):
    task, name = "red_cube_in_basket", f"tabletop_object@{controller}"
    env = TaskEnv(name, task, image_size=16)
    robot, spaces = load_suite(name).embodiment, cast(Any, env.observation_space)
    assert env.action_space.shape == (len(robot.action),)
    seen, _ = env.reset(seed=0)
    for _ in range(3):
        assert env.observation_space.contains(seen)
        seen, *_ = env.step(env.action_space.sample())
    assert np.isfinite(spaces["state"].high).all()
    assert spaces["state"].high[robot.state.index("rz")] == pytest.approx(2 * np.pi)
    env.close()


def test_a_registered_environment_takes_another_controller():
    name = "vla_crl/tabletop_object.red_cube_in_basket-v0"
    env = gymnasium.make(name, suite="tabletop_object@joint_position", image_size=16)
    assert env.action_space.shape == (8,)
    assert POSE_ACTION[-1] == "gripper"
    env.close()


# Cameras.


@pytest.mark.parametrize("cameras", [("overview",), ("eye_in_hand", "agentview", "overview")])
@pytest.mark.parametrize("size", [20, 47])
def test_any_cameras_in_any_size_are_seen(
    suite: Suite, new_sim: NewSim, cameras: tuple[str, ...], size: int
):
    configs = [replace(scene.config, cameras=cameras) for scene in suite.scenes]
    pairs = zip(suite.scenes, configs, strict=True)
    other = replace(suite, scenes=tuple(replace(s, config=config) for s, config in pairs))
    sim = new_sim(2, suite=other, image_size=size)
    sim.reset([0, 1], tasks=[0, 1], state_ids=[0, 0])
    seen = sim.observe().validate(other.embodiment)
    assert seen.images.shape == (2, len(cameras), size, size, 3)
    for place, camera in enumerate(cameras):
        assert np.array_equal(seen.images[:, place], sim.frames(camera, size))
    assert sim.camera_poses().position.shape == (2, len(cameras), 3)
