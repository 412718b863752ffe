from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from vla_crl.errors import ConfigError, SpecError
from vla_crl.sim import gymnasium_envs
from vla_crl.sim.backends import task_horizons
from vla_crl.sim.gymnasium_envs import SuiteVectorEnv, TaskEnv
from vla_crl.sim.native.experts import ScriptedExpert
from vla_crl.sim.native.suite import Suite, load_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.variation import VariationConfig

TASK = "vla_crl/tabletop_object.red_cube_in_basket-v0"
SUITE = "vla_crl/tabletop_object-v0"


@pytest.fixture
def env() -> Iterator[TaskEnv]:
    env = TaskEnv("tabletop_object", "red_cube_in_basket", image_size=16)
    yield env
    env.close()


@pytest.fixture
def envs() -> Iterator[SuiteVectorEnv]:
    envs = SuiteVectorEnv("tabletop_object", num_envs=3, image_size=16)
    yield envs
    envs.close()


def expert_actions(suite: Suite, task: str, state_id: int) -> list[np.ndarray]:
    sim, actions = VectorSim(suite, 1, num_threads=1), []
    sim.reset([0], tasks=[suite.task_index(task)], state_ids=[state_id])
    expert, is_over = ScriptedExpert(sim), False
    while not is_over:
        actions.append(expert.act(np.array([0]))[0])
        result = sim.step_chunk(actions[-1][None, None])
        is_over = bool(result.terminated[0] or result.truncated[0])
    sim.close()
    return actions


def test_every_task_and_every_suite_is_registered(suite: Suite):
    names = {name for name in gymnasium.registry if name.startswith("vla_crl/tabletop_object")}
    tasks = {f"vla_crl/tabletop_object.{task.name}-v0" for task in suite.tasks}
    assert names == tasks | {SUITE}


def test_naming_the_module_is_all_it_takes(suite: Suite):
    env = gymnasium.make(f"vla_crl.sim.gymnasium_envs:{TASK}")
    observation, _ = env.reset(seed=0)
    assert observation["instruction"] == suite.tasks[0].instruction
    assert observation["images"].shape == (2, 64, 64, 3)
    env.close()


def test_gymnasiums_checker_finds_nothing(suite: Suite):
    env = gymnasium.make(TASK, render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


def test_the_seed_determines_the_training_states(suite: Suite, env: TaskEnv):
    def state_ids(seed: int) -> list[int]:
        return [env.reset(seed=seed)[1]["state_id"], *(env.reset()[1]["state_id"] for _ in "abc")]

    first = state_ids(1)
    assert first == state_ids(1)
    assert first != state_ids(2)
    assert len(set(first)) == 4
    assert set(first) <= set(suite.train_ids)


def test_a_state_can_be_named_also_of_the_test_set(suite: Suite, env: TaskEnv):
    observation, info = env.reset(options={"state_id": suite.test_ids[3]})
    assert info == {
        "success": False, "diverged": False, "state_id": suite.test_ids[3],
        "task": "red_cube_in_basket",
    }  # fmt: skip
    sim = VectorSim(suite, 1, image_size=16)
    sim.reset([0], tasks=[0], state_ids=[suite.test_ids[3]])
    assert np.array_equal(observation["images"], sim.observe().images[0])
    assert np.array_equal(observation["state"], sim.observe().state[0])
    sim.close()


def test_success_terminates_with_reward_one(suite: Suite, env: TaskEnv):
    actions = expert_actions(suite, "red_cube_in_basket", 5)
    env.reset(options={"state_id": 5})
    steps = [env.step(action) for action in actions]
    rewards, terminated, truncated = ([step[i] for step in steps] for i in (1, 2, 3))
    assert rewards == [0.0] * (len(steps) - 1) + [1.0]
    assert terminated == [False] * (len(steps) - 1) + [True]
    assert not any(truncated)
    assert steps[-1][4] == {
        "success": True, "diverged": False, "state_id": 5, "task": "red_cube_in_basket",
    }  # fmt: skip
    with pytest.raises(SpecError, match="no running episode; reset them first"):
        env.step(actions[0])


def test_the_horizon_truncates(env: TaskEnv):
    env.reset(seed=0)
    truncated = [env.step(np.zeros(7))[3] for _ in range(48)]
    assert truncated == [False] * 47 + [True]


def test_faulty_actions_and_options_are_refused(env: TaskEnv, envs: SuiteVectorEnv):
    env.reset(seed=0)
    with pytest.raises(SpecError, match=r"actions\[0, 0, 2\] is nan"):
        env.step(np.array([0, 0, np.nan, 0, 0, 0, 0]))
    with pytest.raises(SpecError, match=r"action: got shape \(6,\), expected \(7,\)"):
        env.step(np.zeros(6))
    with pytest.raises(SpecError, match=r"unknown options \['state'\], expected 'state_id'"):
        env.reset(options={"state": 1})
    with pytest.raises(SpecError, match="state id 1000000 is out of range"):
        env.reset(options={"state_id": 10**6})
    with pytest.raises(
        SpecError, match=r"state_id is int64 \(2,\), expected whole numbers \(\) or"
    ):
        envs.reset(options={"state_id": [1, 2]})
    for odd in (None, "a", 1.7, True, 10**30):
        with pytest.raises(SpecError, match="state_id is .*, expected whole numbers"):
            envs.reset(options={"state_id": odd})
    odd_actions: tuple[Any, ...] = (0.0, np.zeros((2, 7)), "left")
    for odd in odd_actions:
        with pytest.raises(SpecError, match=r"actions: got shape .*, expected \(3, 7\)"):
            envs.step(odd)
    with pytest.raises(SpecError, match="2 seeds, expected 3, one per robot"):
        envs.reset(seed=[1, 2])
    with pytest.raises(SpecError, match="no running episode; reset them first"):
        envs.step(np.zeros((3, 7)))
    envs.reset(seed=0)
    with pytest.raises(SpecError, match=r"actions\[1, 0, 0\] is inf"):
        envs.step(np.array([[0.0] * 7, [np.inf] * 7, [0.0] * 7]))


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="unknown task 'red_cube_in_baskt'. Did you mean"):
        TaskEnv("tabletop_object", "red_cube_in_baskt")
    with pytest.raises(ConfigError, match="unknown suite 'tabletop'. Did you mean"):
        SuiteVectorEnv("tabletop", num_envs=2)
    for odd in ("red_cube_in_basket", []):
        with pytest.raises(ConfigError, match="tasks: got .*, expected task names, or None"):
            SuiteVectorEnv("tabletop_object", num_envs=2, tasks=odd)
    with pytest.raises(ConfigError, match="environment: num_envs is -2, expected a whole num"):
        SuiteVectorEnv("tabletop_object", num_envs=-2)


@pytest.mark.parametrize(
    "make",
    [
        lambda mode: TaskEnv("tabletop_object", "red_cube_in_basket", render_mode=mode),
        lambda mode: SuiteVectorEnv("tabletop_object", num_envs=2, render_mode=mode),
    ],
)
def test_an_unknown_render_mode_is_refused_with_the_nearest_one(make):
    with pytest.raises(ConfigError, match="unknown render_mode 'rgb'. Did you mean 'rgb_array'"):
        make("rgb")


def test_frames_are_drawn_only_in_render_mode(env: TaskEnv):
    env.reset(seed=0)
    assert env.render() is None
    drawn = TaskEnv("tabletop_object", "red_cube_in_basket", render_mode="rgb_array")
    drawn.reset(seed=0)
    frame = drawn.render()
    assert frame is not None
    assert (frame.shape, frame.dtype) == ((256, 256, 3), np.uint8)
    drawn.close()


def test_a_suite_gives_its_tasks_to_the_robots_in_turn(suite: Suite):
    envs = gymnasium.make_vec(SUITE, num_envs=12, image_size=16, render_mode="rgb_array")
    observation, info = envs.reset(seed=0)
    assert list(info["task"]) == [suite.tasks[i % 10].name for i in range(12)]
    assert observation in envs.observation_space
    frames: Any = envs.render()
    assert [frame.shape for frame in frames] == [(256, 256, 3)] * 12
    envs.close()


def test_chosen_tasks_are_given_in_turn():
    tasks = ["purple_ball_in_basket", "red_cube_in_basket"]
    envs = gymnasium.make_vec(SUITE, num_envs=3, tasks=tasks, image_size=16)
    assert list(envs.reset()[1]["task"]) == [*tasks, tasks[0]]
    envs.close()


def test_a_single_task_is_batched_too():
    envs = gymnasium.make_vec(TASK, num_envs=2, image_size=16)
    assert isinstance(envs, SuiteVectorEnv)
    assert list(envs.reset()[1]["task"]) == ["red_cube_in_basket"] * 2
    envs.close()


def test_one_state_or_one_per_robot_can_be_named(envs: SuiteVectorEnv):
    assert envs.reset(options={"state_id": 4})[1]["state_id"].tolist() == [4, 4, 4]
    assert envs.reset(options={"state_id": [4, 5, 6]})[1]["state_id"].tolist() == [4, 5, 6]


def test_seeds_none_keep_the_stream_of_states(envs: SuiteVectorEnv):
    seeds: tuple[Any, ...] = (np.int64(7), None, None)
    first = [envs.reset(seed=s)[1]["state_id"].tolist() for s in seeds]
    again = [envs.reset(seed=s)[1]["state_id"].tolist() for s in (7, None, None)]
    assert first == again
    assert first[0] != first[1]


def test_returned_observations_are_not_overwritten(envs: SuiteVectorEnv):
    observation, _ = envs.reset(seed=0)
    images = observation["images"].copy()
    envs.step(np.ones((3, 7)))
    assert np.array_equal(observation["images"], images)


def test_batched_episodes_equal_gymnasiums_own_vector_env(suite: Suite, envs: SuiteVectorEnv):
    tasks = [task.name for task in suite.tasks[:3]]
    peer = SyncVectorEnv(
        [lambda t=t: TaskEnv("tabletop_object", t, image_size=16) for t in tasks],
        autoreset_mode=AutoresetMode.NEXT_STEP,
    )
    assert envs.metadata["autoreset_mode"] == peer.metadata["autoreset_mode"]
    assert envs.observation_space == peer.observation_space
    assert envs.action_space == peer.action_space
    for one, other in zip(envs.reset(seed=3), peer.reset(seed=3), strict=True):
        assert data_equivalence(one, other, exact=True)
    winning = expert_actions(suite, tasks[0], int(envs.reset(seed=3)[1]["state_id"][0]))
    peer.reset(seed=3)
    rng, ends = np.random.default_rng(0), np.zeros(3)
    for step in range(52):  # beyond the horizon of 48
        actions = rng.uniform(-1, 1, (3, 7))
        if step < len(winning):
            actions[0] = winning[step]
        results = envs.step(actions), peer.step(actions)
        for one, other in zip(*results, strict=True):
            assert data_equivalence(one, other, exact=True)
        ends += results[0][2] | results[0][3]
    assert ends.tolist() == [1, 1, 1]
    peer.close()


def test_robots_in_different_scenes_equal_gymnasiums_own_vector_env():
    tasks = [task.name for task in load_suite("tabletop_30").tasks[:4]]  # of four suites
    envs = SuiteVectorEnv("tabletop_30", num_envs=4, tasks=tasks, image_size=16)
    peer = SyncVectorEnv([lambda t=t: TaskEnv("tabletop_30", t, image_size=16) for t in tasks])
    for one, other in zip(envs.reset(seed=1), peer.reset(seed=1), strict=True):
        assert data_equivalence(one, other, exact=True)
    rng = np.random.default_rng(0)
    for _ in range(5):
        actions = rng.uniform(-1, 1, (4, 7))
        for one, other in zip(envs.step(actions), peer.step(actions), strict=True):
            assert data_equivalence(one, other, exact=True)
    envs.close()
    peer.close()


def test_episodes_vary_alike_in_every_environment_with_a_variation():
    variation = VariationConfig(light_gain=(0.2, 0.4), state_noise=(0.1, 0.1), paraphrase=True)
    env = gymnasium.make(TASK, variation=variation)
    check_env(env.unwrapped, skip_render_check=True)
    single, _ = env.reset(options={"state_id": 3})
    envs = gymnasium.make_vec(TASK, num_envs=2, variation=variation)
    batch, _ = envs.reset(options={"state_id": 3})
    plain = gymnasium.make(TASK)
    bright, _ = plain.reset(options={"state_id": 3})
    for seen in (single, bright):
        is_same = [np.array_equal(batch[key][1], seen[key]) for key in ("images", "state")]
        assert is_same == [seen is single] * 2
    assert batch["instruction"][0] == single["instruction"]
    for each in (env, envs, plain):
        each.close()


def test_gymnasiums_checker_finds_nothing_in_a_perturbed_task():
    env = gymnasium.make("vla_crl/tabletop_perturbed.noise-v0")
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("action", [np.zeros(6), 0.0, np.zeros((1, 7)), "up"])
def test_an_action_of_the_wrong_shape_is_called_by_its_own_shape(env: TaskEnv, action: Any) -> None:
    env.reset(seed=0)
    with pytest.raises(SpecError, match=r"action: got shape \(.*\), expected \(7,\)"):
        env.step(action)


def test_a_suite_that_cannot_be_read_leaves_the_others_registered(monkeypatch: pytest.MonkeyPatch):
    def horizons(suite: str) -> dict[str, int]:
        if suite == "tabletop_goal":
            raise ConfigError("suite.toml: it is broken")
        return task_horizons(suite)

    registered: list[str] = []
    monkeypatch.setattr(gymnasium_envs, "task_horizons", horizons)
    monkeypatch.setattr(gymnasium, "register", lambda name, **_: registered.append(name))
    with pytest.warns(UserWarning, match="suite 'tabletop_goal' is not registered: suite.toml: it"):
        gymnasium_envs.register_envs()
    assert "vla_crl/tabletop_object-v0" in registered
    assert not any("tabletop_goal" in name.split(".")[0] for name in registered)


def test_physics_that_blows_up_is_told_and_ends_the_episode(env: TaskEnv):
    env.reset(seed=0)
    sim = env._robots.sim
    assert isinstance(sim, VectorSim)
    states = sim.get_states()
    states["physics"][0, 1] = np.nan
    sim.set_states(states)
    with pytest.warns(UserWarning, match="blew up in task 'red_cube_in_basket', initial state"):
        _, reward, terminated, truncated, info = env.step(np.zeros(7))
    assert (reward, terminated, truncated, info["diverged"]) == (0.0, True, False, True)
    assert [divergence.task for divergence in env.divergences] == ["red_cube_in_basket"]
    assert not env.reset(seed=0)[1]["diverged"]


def test_a_batch_tells_whose_physics_blew_up(envs: SuiteVectorEnv):
    envs.reset(seed=0)
    sim = envs._robots.sim
    assert isinstance(sim, VectorSim)
    states = sim.get_states()
    states["physics"][1, 1] = np.nan
    sim.set_states(states)
    with pytest.warns(UserWarning, match="blew up in task 'green_cube_in_tray', initial state"):
        _, _, terminated, _, infos = envs.step(np.zeros((3, 7)))
    assert infos["diverged"].tolist() == terminated.tolist() == [False, True, False]
    assert len(envs.divergences) == 1
