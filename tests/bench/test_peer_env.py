"""The peers' environment does what `VectorSim` does: what is timed is the same work."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from vla_crl.bench.peer_env import PlainEnv
from vla_crl.bench.sim import record_expert
from vla_crl.sim.native.suite import load_suite
from vla_crl.sim.native.vector_sim import VectorSim

SUITE = "tabletop_object"


@pytest.fixture(scope="module")
def sim():
    sim = VectorSim(load_suite(SUITE), 1, num_threads=1)
    yield sim
    sim.close()


def assert_same_episode(sim: VectorSim, actions: np.ndarray) -> tuple[bool, bool]:
    """Play actions [T, 7] in both until the end, task 0 from state 0; return how it ended."""
    env = PlainEnv(SUITE, 0, 0)
    sim.reset([0], tasks=[0], state_ids=[0])
    observation, _ = env.reset()
    terminated = truncated = False
    for count, action in enumerate(actions, start=1):
        # Not bit for bit: here things fall asleep, and wake, when MuJoCo alone decides.
        np.testing.assert_allclose(observation["state"], sim.observe().state[0], atol=1e-4)
        result = sim.step_chunk(action[None, None])
        observation, reward, terminated, truncated, _ = env.step(action)
        assert reward == result.reward[0]
        assert (terminated, truncated) == (result.terminated[0], result.truncated[0])
        assert env.num_control_steps == count
        if terminated or truncated:
            break
    np.testing.assert_allclose(observation["state"], sim.observe().state[0], atol=1e-4)
    env.close()
    return terminated, truncated


def test_the_experts_episode_succeeds_in_both_at_the_same_step(sim: VectorSim):
    actions, _, _ = record_expert(sim, 40)
    assert assert_same_episode(sim, actions[0]) == (True, False)


def test_an_episode_reaches_the_time_limit_in_both_at_the_same_step(sim: VectorSim):
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (60, 7))
    assert assert_same_episode(sim, actions) == (False, True)


def test_a_chunk_is_as_many_single_steps_and_stops_at_the_end():
    single, chunked = PlainEnv(SUITE, 1, 3), PlainEnv(SUITE, 1, 3)
    single.reset()
    chunked.reset()
    actions = np.random.default_rng(1).uniform(-1.0, 1.0, (4, 7))
    expected = [single.step(action)[0] for action in actions]
    observation, *_ = chunked.step(actions)
    np.testing.assert_array_equal(observation["state"], expected[-1]["state"])
    *_, truncated, _ = chunked.step(np.tile(actions, (20, 1)))
    assert truncated
    assert chunked.num_control_steps == load_suite(SUITE).horizon


def test_gymnasiums_checker_accepts_it():
    check_env(PlainEnv(SUITE, 0, 0), skip_render_check=True)


@pytest.mark.render
def test_the_images_are_those_of_the_suites_cameras(sim: VectorSim):
    env = PlainEnv(SUITE, 0, 0, image_size=64)
    sim.reset([0], tasks=[0], state_ids=[0])
    images = env.reset()[0]["images"]
    own = sim.observe().images[0]
    assert images.shape == own.shape
    assert np.abs(images.astype(float) - own).mean() < 5.0  # edges differ by anti-aliasing
    env.close()
