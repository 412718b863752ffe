"""Initial states, and the model they are simulated with, beside Meta-World's own environments."""

import mujoco
import numpy as np
import pytest

pytest.importorskip("metaworld", reason="pip install --editable '.[metaworld]'")
pytest.importorskip("imageio", reason="pip install --editable '.[metaworld]'")

from metaworld.env_dict import ENV_CLS_MAP

from vla_crl.sim.metaworld.initial_states import InitialState, drawn_env, initial_state
from vla_crl.sim.metaworld.models import env_class, simulated_model
from vla_crl.sim.metaworld.rules import RULES

KEEPS_VALUES = ("door-open-v3", "lever-pull-v3", "peg-unplug-side-v3", "window-close-v3")
"""Their environments carry something from one episode to the next."""
REJECTS = ("coffee-pull-v3", "push-v3", "stick-pull-v3", "hand-insert-v3")
"""They draw again until goal and object are far enough apart."""
SAME = (
    "body_mass", "body_inertia", "body_ipos", "body_iquat", "body_pos", "body_quat", "dof_M0",
    "geom_bodyid", "geom_pos", "geom_quat", "geom_friction", "geom_contype", "geom_conaffinity",
    "geom_solref", "geom_condim", "geom_margin", "body_invweight0", "dof_invweight0", "eq_data",
)  # fmt: skip


def same(one: InitialState, other: InitialState) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("task", KEEPS_VALUES + REJECTS)
def test_a_state_id_is_a_state_whatever_came_before(task: str):
    draw = initial_state.__wrapped__
    first = draw(task, 7)
    np.random.seed(3)
    assert not same(draw(task, 8), first)
    assert same(draw(task, 7), first)


def test_what_was_drawn_once_is_remembered():
    assert initial_state("push-v3", 3) is initial_state("push-v3", 3)


def test_numpys_global_generator_is_left_alone():
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    drawn_env("coffee-pull-v3", 0)
    assert np.array_equal(before, np.random.get_state(legacy=False)["state"]["key"])


def test_two_tasks_with_one_state_id_draw_different_numbers():
    vectors = [drawn_env(task, 0)._last_rand_vec for task in ("push-v3", "pick-place-v3")]
    assert not np.array_equal(*vectors)


def test_what_is_drawn_lies_in_meta_worlds_ranges():
    env = drawn_env("push-v3", 0)
    assert env._random_reset_space.contains(env._last_rand_vec)


@pytest.mark.parametrize("task", ["door-open-v3", "window-open-v3", "coffee-push-v3"])
def test_the_lean_model_has_the_dynamics_of_the_full_one(task: str):
    full = mujoco.MjModel.from_xml_path(env_class(task).model_name.fget(None))
    lean, set_up = simulated_model(task), ENV_CLS_MAP[task]().model
    for name in SAME:
        assert np.array_equal(getattr(set_up, name), getattr(lean, name)), name
    assert mujoco.mj_sizeModel(lean) < 0.25 * mujoco.mj_sizeModel(full)


def test_every_task_of_meta_world_has_a_rule():
    assert RULES.keys() == ENV_CLS_MAP.keys()
