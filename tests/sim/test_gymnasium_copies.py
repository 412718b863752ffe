"""Environments that are copied, and what the copies do."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.utils.env_match import check_environments_match

from vla_crl.errors import ConfigError
from vla_crl.sim.gymnasium_envs import SuiteVectorEnv, TaskEnv
from vla_crl.sim.variation import VariationConfig
from vla_crl.testing.limited import Limited

TASK = "vla_crl/tabletop_object.red_cube_in_basket-v0"
COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
}
VARIATION = VariationConfig(light_gain=(0.2, 0.4), action_latency=(2, 2), state_noise=(0.01, 0.01))


def play(env: Any, num_steps: int, seed: int) -> list[tuple[Any, ...]]:
    rng = np.random.default_rng(seed)
    return [env.step(rng.uniform(-1, 1, env.action_space.shape)) for _ in range(num_steps)]


def assert_same(one: Any, other: Any) -> None:
    for parts in zip(one, other, strict=True):
        for a, b in zip(*parts, strict=True):
            assert data_equivalence(a, b, exact=True)


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize(
    "make",
    [
        lambda: gymnasium.make(TASK, image_size=16, variation=VARIATION, reward="dense"),
        lambda: SuiteVectorEnv("tabletop_object", num_envs=3, image_size=16, variation=VARIATION),
    ],
    ids=["TaskEnv", "SuiteVectorEnv"],
)
def test_a_copy_goes_on_identically_from_the_middle_of_an_episode(
    make: Callable[[], Any], make_copy: Callable[[Any], Any]
) -> None:
    env = make()
    env.reset(seed=3)
    play(env, 7, seed=0)
    other = make_copy(env)
    there = play(env, 41, seed=1)  # to the end of the episode, at 48 steps
    assert_same(there, play(other, 41, seed=1))
    assert np.all(there[-1][3])  # truncated
    assert_same([env.reset()], [other.reset()])  # draw the same next states
    assert_same(play(env, 2, seed=2), play(other, 2, seed=2))
    env.close()
    play(other, 1, seed=3)  # has threads of its own
    other.close()


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_gymnasium_finds_no_difference_between_an_environment_and_its_copy(
    make_copy: Callable[[TaskEnv], TaskEnv],
) -> None:
    env = TaskEnv("tabletop_object", "red_cube_in_basket", image_size=16, render_mode="rgb_array")
    other = make_copy(env)
    check_environments_match(env, other, num_steps=5)
    assert other.spec == env.spec
    env.close()
    other.close()


def test_gymnasium_finds_no_difference_to_an_environment_made_again() -> None:
    envs = [gymnasium.make(TASK, image_size=16, render_mode="rgb_array") for _ in range(2)]
    check_environments_match(*envs, num_steps=50, skip_render=True)
    for env in envs:
        env.close()


def test_worlds_that_cannot_be_stored_cannot_be_copied() -> None:
    env = TaskEnv("tabletop_object", "red_cube_in_basket", image_size=16)
    sim = env._robots.sim
    env._robots.sim = Limited(sim, [])
    with pytest.raises(
        ConfigError, match="'tabletop_object' cannot be copied: its backend .* lacks"
    ):
        copy.deepcopy(env)
    sim.close()
