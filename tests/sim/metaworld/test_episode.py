"""Initial states and physics beside Meta-World's own environments."""

import warnings

import mujoco
import numpy as np
import pytest

pytest.importorskip("metaworld", reason="pip install 'vla-crl[metaworld]'")
pytest.importorskip("imageio", reason="pip install 'vla-crl[metaworld]'")

from metaworld.env_dict import ENV_CLS_MAP
from metaworld.policies import ENV_POLICY_MAP

from vla_crl.sim.metaworld.episode import MetaWorldEpisode
from vla_crl.sim.metaworld.models import env_class, simulated_model

KEEPS_VALUES = ("door-open-v3", "lever-pull-v3", "peg-unplug-side-v3", "window-close-v3")
"""Their environments carry something from one episode to the next."""
REJECTS = ("coffee-pull-v3", "push-v3", "stick-pull-v3", "hand-insert-v3")
"""They draw again until goal and object are far enough apart."""
SAME = (
    "body_mass", "body_inertia", "body_ipos", "body_iquat", "body_pos", "body_quat", "dof_M0",
    "geom_bodyid", "geom_pos", "geom_quat", "geom_friction", "geom_contype", "geom_conaffinity",
    "geom_solref", "geom_condim", "geom_margin", "body_invweight0", "dof_invweight0", "eq_data",
)  # fmt: skip


def act(task: str, observation: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.clip(ENV_POLICY_MAP[task]().get_action(observation), -1.0, 1.0).astype(float)


def begin(task: str, state_id: int) -> MetaWorldEpisode:
    """Begin an episode whose actions are Meta-World's four numbers."""
    return MetaWorldEpisode(task, state_id, range(4))


@pytest.mark.parametrize("task", KEEPS_VALUES + REJECTS)
def test_a_state_id_is_a_state_whatever_came_before(task: str):
    first = begin(task, 7)
    for _ in range(5):
        first.step_chunk(act(task, first.observation)[None], 500)
    np.random.default_rng(0)
    np.random.seed(3)
    again, other = begin(task, 7), begin(task, 8)
    assert np.array_equal(begin(task, 7).observation, again.observation)
    assert not np.array_equal(again.observation, other.observation)


def test_numpys_global_generator_is_left_alone():
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    begin("coffee-pull-v3", 0)
    assert np.array_equal(before, np.random.get_state(legacy=False)["state"]["key"])


def test_two_tasks_with_one_state_id_draw_different_numbers():
    vectors = [begin(task, 0)._env._last_rand_vec for task in ("push-v3", "pick-place-v3")]
    assert not np.array_equal(*vectors)


def test_what_is_drawn_lies_in_meta_worlds_ranges():
    env = begin("push-v3", 0)._env
    assert env._random_reset_space.contains(env._last_rand_vec)


@pytest.mark.parametrize("task", ["door-open-v3", "lever-pull-v3", "push-v3", "hammer-v3"])
def test_an_episode_is_bit_for_bit_meta_worlds(task: str):
    world = begin(task, 4000)
    env = ENV_CLS_MAP[task]()
    env._set_task_called, env._partially_observable = True, False
    vars(env).pop("sawyer_observation_space", None)
    env._freeze_rand_vec, env._last_rand_vec = True, world._env._last_rand_vec.copy()
    observation, _ = env.reset()
    assert np.array_equal(observation, world.observation)
    for _ in range(40):
        action = act(task, observation)
        observation, _, _, _, info = env.step(action)
        success, num_steps = world.step_chunk(action[None], 500)
        assert (success, num_steps) == (bool(info["success"]), 1)
        assert np.array_equal(observation, world.observation)


def test_whether_the_pads_touch_something_is_meta_worlds_answer():
    task, answers = "pick-place-v3", set()
    world = begin(task, 4000)
    env, theirs = world._env, env_class(task).touching_object
    for _ in range(60):
        world.step_chunk(act(task, world.observation)[None], 500)
        answer = env.touching_object(env._get_id_main_object())
        assert answer == theirs(env, env._get_id_main_object())
        answers.add(answer)
    assert answers == {True, False}


@pytest.mark.parametrize("task", ["door-open-v3", "window-open-v3", "coffee-push-v3"])
def test_the_lean_model_has_the_dynamics_of_the_full_one(task: str):
    full = mujoco.MjModel.from_xml_path(env_class(task).model_name.fget(None))
    lean = simulated_model(task)
    for name in SAME:
        assert np.array_equal(getattr(full, name), getattr(lean, name)), name
    assert mujoco.mj_sizeModel(lean) < 0.25 * mujoco.mj_sizeModel(full)


def test_a_chunk_ends_with_the_first_success():
    task = "reach-v3"
    world, actions = begin(task, 4000), []
    probe = begin(task, 4000)
    for _ in range(100):
        actions.append(act(task, probe.observation))
        if probe.step_chunk(actions[-1][None], 500)[0]:
            break
    chunk = np.array(actions + actions[-1:] * 10)
    assert world.step_chunk(chunk, 500) == (True, len(actions))
    assert np.array_equal(world.observation, probe.observation)


def test_meta_worlds_four_numbers_may_stand_anywhere_in_an_action():
    one, other = begin("push-v3", 1), MetaWorldEpisode("push-v3", 1, [4, 3, 1, 0])
    one.step_chunk(np.array([[0.5, -0.2, 0.3, 1.0]]), 500)
    other.step_chunk(np.array([[1.0, 0.3, 0.9, -0.2, 0.5]]), 500)
    assert np.array_equal(one.observation, other.observation)


def test_the_grip_follows_the_position_numbers_and_closes_at_plus_one():
    world = begin("push-v3", 1)
    start = world.look
    world.step_chunk(np.tile([0.0, 0.0, 1.0, -1.0], (10, 1)), 500)
    open_fingers = world.look.fingers
    rise = world.look.grip_pos - start.grip_pos
    assert 0.02 < rise[2] < 0.11  # up to 1 cm a step, behind which the arm lags
    assert np.abs(rise[:2]).max() < 0.01
    world.step_chunk(np.tile([0.0, 0.0, 0.0, 1.0], (30, 1)), 500)
    assert (world.look.fingers < open_fingers - 0.01).all()
    assert world.look.fingers.sum() < 0.06
