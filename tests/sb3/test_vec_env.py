"""The VecEnv beside stable-baselines3's own over single environments, and under its wrappers."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="pip install --editable '.[sb3]'")

from gymnasium import spaces
from gymnasium.utils.env_checker import data_equivalence
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecMonitor,
    VecNormalize,
)

from vla_crl.errors import ConfigError, SpecError
from vla_crl.sb3.vec_env import SuiteVecEnv
from vla_crl.sim.gymnasium_envs import TaskEnv
from vla_crl.sim.native.experts import ScriptedExpert
from vla_crl.sim.native.suite import load_suite
from vla_crl.sim.native.vector_sim import VectorSim

TASK = "red_cube_in_basket"
SENSES: dict[str, Any] = {"image_size": None, "privileged": True, "instruction": "one_hot"}


@pytest.fixture
def env() -> Iterator[SuiteVecEnv]:
    env = SuiteVecEnv("tabletop_object", 3, tasks=[TASK], privileged=True, num_threads=1)
    yield env
    env.close()


def actions_of(num_steps: int, num_envs: int = 3) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (num_steps, num_envs, 7))


def throw_the_first_thing(sim: Any) -> None:
    """Give joint velocities of the first slot that no step survives."""
    states = sim.get_states()
    states["physics"][0, 1 + sim.scene_model(0).nq] = 1e4
    sim.set_states(states)


@pytest.mark.parametrize("reward", ["sparse", "dense"])
def test_stable_baselines3s_checker_finds_nothing_in_a_single_environment(reward: Any) -> None:
    env = TaskEnv("tabletop_object", TASK, reward=reward, **SENSES)
    check_env(env)
    env.close()


@pytest.mark.parametrize("reward", ["sparse", "dense"])
def test_episodes_equal_those_of_stable_baselines3s_own_vec_env(reward: Any) -> None:
    """Through the end of an episode by time (48 steps) and one by diverged physics."""
    env = SuiteVecEnv("tabletop_object", 3, tasks=[TASK], privileged=True, reward=reward)
    peer = DummyVecEnv(
        [lambda: TaskEnv("tabletop_object", TASK, reward=reward, **SENSES) for _ in range(3)]
    )
    assert env.observation_space == peer.observation_space
    assert env.action_space == peer.action_space
    for each in (env, peer):
        each.seed(3)
    first: Any = peer.reset()
    assert data_equivalence(env.reset(), dict(first), exact=True)
    for step, actions in enumerate(actions_of(50)):
        if step == 20:
            single: Any = peer.envs[0].unwrapped
            for robots in (env._robots, single._robots):
                throw_the_first_thing(robots.sim)
            with pytest.warns(UserWarning, match="blew up"):
                own, other = env.step(actions), peer.step(actions)
            assert own[3][0]["diverged"]
        else:
            own, other = env.step(actions), peer.step(actions)
        others: Any = other[0]
        assert data_equivalence(own[0], dict(others), exact=True)
        assert np.array_equal(own[1], other[1])
        assert own[1].dtype == other[1].dtype
        assert own[2].tolist() == other[2].tolist() == [step == 20, step == 47, step == 47]
        for info, expected in zip(own[3], other[3], strict=True):
            seen = {name: info[name] for name in expected}
            assert data_equivalence(seen, expected, exact=True)
            assert info["is_success"] is info["success"]
    for info, expected in zip(env.reset_infos, peer.reset_infos, strict=True):
        assert {name: info[name] for name in expected} == expected
    env.close()
    peer.close()


def test_success_ends_an_episode_and_is_no_time_limit() -> None:
    suite = load_suite("tabletop_object")
    env = SuiteVecEnv("tabletop_object", 1, tasks=[TASK], privileged=True)
    env.set_options({"state_id": suite.test_ids[0]})
    env.reset()
    sim = env._robots.sim
    assert isinstance(sim, VectorSim)
    expert = ScriptedExpert(sim)
    while True:
        before = env.reset_infos[0]["state_id"]
        result: Any = env.step(expert.act(np.array([0])))
        seen, rewards, dones, infos = result
        if dones[0]:
            break
    assert rewards.tolist() == [1.0]
    assert infos[0]["success"]
    assert not infos[0]["TimeLimit.truncated"]
    assert before == infos[0]["state_id"] == suite.test_ids[0]
    # What is returned is the next episode's first observation, what ended is in the info.
    assert env.reset_infos[0]["state_id"] in suite.train_ids
    last, cube = infos[0]["terminal_observation"], env.privileged_names.index("red cube.z")
    assert not np.array_equal(last["state"], seen["state"][0])
    assert not np.array_equal(last["privileged"][cube], seen["privileged"][0, cube])
    env.close()


def test_time_limits_bootstrap_and_other_ends_do_not(env: SuiteVecEnv) -> None:
    """The value of the last observation is added to the reward by PPO exactly at a time limit."""
    model = PPO("MultiInputPolicy", env, n_steps=60, batch_size=180, n_epochs=1, gamma=0.5, seed=0)
    model.learn(180)
    rewards = model.rollout_buffer.rewards  # [60, 3], none of them earned
    assert np.flatnonzero(rewards.any(axis=1)).tolist() == [47]
    assert np.all(rewards[47] != 0.0)


def test_wrappers_of_stable_baselines3_fit(env: SuiteVecEnv) -> None:
    wrapped = VecNormalize(
        VecCheckNan(VecMonitor(env), raise_exception=True), norm_obs_keys=["state", "privileged"]
    )
    wrapped.seed(0)
    wrapped.reset()
    results: list[Any] = [wrapped.step(actions) for actions in actions_of(48)]
    seen, _, dones, infos = results[-1]
    assert np.all(dones)
    assert [info["episode"]["l"] for info in infos] == [48] * 3
    assert np.abs(seen["privileged"]).max() <= 10.0  # clipped, so it was normalised
    assert wrapped.env_is_wrapped(gymnasium.wrappers.TimeLimit) == [False] * 3


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_identically(env: SuiteVecEnv, make_copy: Callable[[Any], Any]) -> None:
    env.seed(0)
    env.reset()
    for actions in actions_of(40):
        env.step(actions)
    other = make_copy(env)
    for actions in actions_of(12):  # into the next episode
        for one, two in zip(env.step(actions), other.step(actions), strict=True):
            assert data_equivalence(one, two, exact=True)
    other.close()


def test_an_instruction_is_an_index_a_one_hot_code_or_a_vector_of_ones_own() -> None:
    tasks = ["purple_ball_in_basket", TASK]
    kinds: list[tuple[Any, Any, Any]] = [
        ("index", spaces.Discrete(2), [0, 1, 0]),
        ("one_hot", spaces.Box(0.0, 1.0, (2,)), [[1, 0], [0, 1], [1, 0]]),
        (
            lambda sentence: np.array([len(sentence.split()), "ball" in sentence]),
            spaces.Box(-np.inf, np.inf, (2,)),
            # "pick up the purple ball and place it in the basket", "... the red cube ..."
            [[11, 1], [11, 0], [11, 1]],
        ),
    ]
    for kind, space, expected in kinds:
        env = SuiteVecEnv("tabletop_object", 3, tasks=tasks, instruction=kind)
        seen: Any = env.reset()
        assert seen["instruction"].tolist() == expected
        spaces_of: Any = env.observation_space
        assert spaces_of["instruction"] == space
        env.close()


def test_every_camera_is_an_image_that_the_convolutions_take() -> None:
    env = SuiteVecEnv("tabletop_object", 2, tasks=[TASK], image_size=36, render_mode="rgb_array")
    space: Any = env.observation_space
    assert [name for name in space if is_image_space(space[name])] == ["agentview", "eye_in_hand"]
    seen = env.reset()
    sim = env._robots.sim
    assert isinstance(seen, dict)
    assert np.array_equal(seen["eye_in_hand"], sim.observe().images[:, 1])
    PPO("MultiInputPolicy", env, n_steps=4, batch_size=8, n_epochs=1).learn(8)
    tiled = env.render()
    assert tiled is not None
    assert tiled.shape == (512, 256, 3)
    env.close()


def test_environments_have_no_attributes_of_their_own(env: SuiteVecEnv) -> None:
    assert env.get_attr("render_mode") == [None] * 3
    assert env.get_attr("num_envs", indices=[1]) == [3]
    assert env.env_method("get_images") == [[None] * 3] * 3
    env.set_attr("note", "seen")
    assert env.get_attr("note", indices=2) == ["seen"]
    for call in (
        lambda: env.set_attr("note", 1, indices=[0]),
        lambda: env.env_method("x", indices=0),
    ):
        with pytest.raises(SpecError, match="the environments are one batch"):
            call()


def test_what_does_not_fit_is_refused(env: SuiteVecEnv) -> None:
    with pytest.raises(SpecError, match="instruction is 'text', which stable-baselines3 does not"):
        SuiteVecEnv("tabletop_object", 2, instruction="text")
    odd: Any = "onehot"
    with pytest.raises(ConfigError, match="unknown instruction 'onehot'. Did you mean 'one_hot'"):
        SuiteVecEnv("tabletop_object", 2, instruction=odd)
    with pytest.raises(ConfigError, match=r"it makes .* of shape \(\), expected a vector"):
        SuiteVecEnv("tabletop_object", 2, instruction=lambda sentence: np.array(len(sentence)))
    with pytest.raises(ConfigError, match=r"it makes \d+ numbers, expected \d+ as of the first"):
        SuiteVecEnv("tabletop_object", 2, instruction=lambda sentence: np.ones(len(sentence)))
    with pytest.raises(ConfigError, match=r"it makes nan at \[1\], expected .* finite in float32"):
        SuiteVecEnv("tabletop_object", 2, instruction=lambda sentence: np.array([0.0, np.nan]))
    with pytest.raises(ConfigError, match="cannot be rewarded densely: .* lacks goal_progress"):
        SuiteVecEnv("metaworld_mt10", 1, tasks=["reach-v3"], reward="dense")
    with pytest.raises(ConfigError, match="cannot be seen through: .* lacks privileged_names"):
        SuiteVecEnv("metaworld_mt10", 1, tasks=["reach-v3"], privileged=True)
    env.reset()
    with pytest.raises(SpecError, match="actions: got shape"):
        env.step(np.zeros((3, 6)))
