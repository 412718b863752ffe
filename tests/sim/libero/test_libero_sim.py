"""The simulation behind the contract: slots, states, pictures, ends."""

import numpy as np
import pytest

from vla_crl.contracts import ARM
from vla_crl.errors import ConfigError, SpecError
from vla_crl.sim.backends import simulate
from vla_crl.sim.grounding import ground
from vla_crl.sim.libero.baked import load_train_states
from vla_crl.sim.outcomes import DIVERGED
from vla_crl.sim.simulation import Filmed, Grounded, MujocoScenes, Resumable, Simulation
from vla_crl.sim.variation import VariationConfig

STOVE, DRAWER = 7, 0
"""Tasks of libero_goal: turn on the stove, open the middle drawer."""
BURNING_RAD = 0.6


@pytest.fixture
def goal(read_small):
    return read_small("libero_goal")


def act(num: int, steps: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (num, steps, len(ARM.action)))


def test_it_is_a_simulation_with_all_extras(new_sim, goal):
    sim = new_sim(goal, 1)
    for protocol in (Simulation, Grounded, Filmed, MujocoScenes, Resumable):
        assert isinstance(sim, protocol)


@pytest.mark.slow
@pytest.mark.parametrize("option", [None, "fast"])
def test_an_episode_is_the_same_in_any_slot_batch_and_thread(new_sim, goal, option):
    suite = goal.with_option(option) if option else goal
    alone, many = new_sim(suite, 1, num_threads=1), new_sim(suite, 9, num_threads=2)
    tasks, ids = [STOVE, DRAWER] * 4 + [STOVE], [0, 1, 2, 3, 4, 5, 6, 7, 8]
    many.reset(range(9), tasks=tasks, state_ids=ids)
    actions = act(9, steps=6)
    for part in (slice(0, 2), slice(2, 6)):
        many.step_chunk(actions[:, part])
    seen = many.observe()
    for slot in (8, 5):
        alone.reset([0], tasks=[tasks[slot]], state_ids=[ids[slot]])
        alone.step_chunk(actions[slot : slot + 1, :4])  # chunks are cut elsewhere
        alone.step_chunk(actions[slot : slot + 1, 4:])
        again = alone.observe()
        np.testing.assert_array_equal(again.images[0], seen.images[slot])
        np.testing.assert_array_equal(again.state[0], seen.state[slot])


@pytest.mark.slow
def test_fast_physics_is_close_to_exact(new_sim, goal):
    exact, fast = new_sim(goal, 4), new_sim(goal.with_option("fast"), 4)
    for sim in (exact, fast):
        sim.reset(range(4), tasks=[STOVE] * 4, state_ids=range(3, 7))
        sim.step_chunk(act(4, steps=10))
    difference = np.abs(exact.slots.qpos - fast.slots.qpos).max(axis=0)
    knob = exact.baked(STOVE).scene(horizon=1, wait_steps=0, sleeps=False).burner
    assert difference[:9].max() < 1e-12  # the arm
    assert 0.0 < np.delete(difference, knob).max() < 5e-3  # what settles more slowly than it may
    assert difference[knob] < 0.02  # it creeps, unless it sleeps


def test_fixtures_stand_where_the_episode_has_them_also_where_things_sleep(new_sim, goal):
    exact, fast = new_sim(goal, 2), new_sim(goal.with_option("fast"), 2)
    fixtures = ["wooden_cabinet_1", "flat_stove_1", "wine_rack_1"]
    for sim in (exact, fast):
        sim.reset([0, 1], tasks=[STOVE, STOVE], state_ids=[3, 7])
    expected = exact.body_positions(fixtures)
    assert np.ptp(expected, axis=0).max() > 1e-3  # another place in each of the two episodes
    np.testing.assert_array_equal(fast.body_positions(fixtures), expected)
    fast.step_chunk(act(2))
    np.testing.assert_array_equal(fast.body_positions(fixtures), expected)


def test_a_beginning_is_remembered(new_sim, goal):
    sim, fresh = new_sim(goal, 2), new_sim(goal, 1)
    sim.reset([0], tasks=[DRAWER], state_ids=[4])
    sim.step_chunk(act(1), [0])
    sim.reset([1], tasks=[DRAWER], state_ids=[4])  # remembered
    fresh.reset([0], tasks=[DRAWER], state_ids=[4])
    for name, field in sim.slots._asdict().items():
        np.testing.assert_array_equal(field[1], getattr(fresh.slots, name)[0], err_msg=name)


def test_a_simulation_goes_on_where_another_stopped(new_sim, goal):
    sim, other = new_sim(goal, 2), new_sim(goal, 2)
    sim.reset([0, 1], tasks=[STOVE, DRAWER], state_ids=[0, 5])
    sim.step_chunk(act(2))
    other.set_states(sim.get_states())
    np.testing.assert_array_equal(other.observe().images, sim.observe().images)
    for each in (sim, other):
        each.step_chunk(act(2, seed=1))
    np.testing.assert_array_equal(other.observe().state, sim.observe().state)
    with pytest.raises(SpecError, match="use a simulation of the same suite with as many slots"):
        new_sim(goal, 1).set_states(sim.get_states())


def test_sampled_states_are_at_rest_and_unsolved(new_sim, goal):
    sim = new_sim(goal, 3)
    sim.reset(range(3), tasks=[STOVE] * 3, state_ids=goal.train_ids)
    states = load_train_states("libero_goal", goal.tasks[STOVE].name, 3)["states"]
    num = sim.baked(STOVE).physics.nq
    moved = np.abs(sim.slots.physics[:, 1 + 9 : 1 + num] - states[:, 1 + 9 : 1 + num]).max()
    assert moved < 1e-3
    assert len(np.unique(states, axis=0)) == 3
    assert np.ptp(states[:, 1:8], axis=0).min() > 0.001  # the arm's noise
    result = sim.step_chunk(np.zeros((3, 1, 7)))
    assert not result.success.any()


def test_an_episode_ends_at_its_horizon_or_with_success(new_sim, goal):
    sim = new_sim(goal, 2)
    sim.reset([0, 1], tasks=[STOVE, DRAWER], state_ids=[3, 3])
    knob = sim.baked(STOVE).scene(horizon=1, wait_steps=0, sleeps=False).burner
    sim.slots.physics[0, 1 + knob] = BURNING_RAD
    sim.slots.num_steps[1] = goal.tasks[DRAWER].horizon - 2
    result = sim.step_chunk(act(2))
    assert result.success.tolist() == [True, False]
    assert result.truncated.tolist() == [False, True]
    assert result.num_steps.tolist() == [1, 2]
    with pytest.raises(SpecError, match="have no running episode"):
        sim.step_chunk(act(2))


def test_physics_that_blows_up_is_a_failure_and_leaves_what_was_seen(new_sim, goal):
    sim = new_sim(goal, 1)
    sim.reset([0], tasks=[DRAWER], state_ids=[3])
    before = sim.observe()
    num = sim.baked(DRAWER).physics.nq
    sim.slots.physics[0, 1 + num + 12] = 1e6
    result = sim.step_chunk(act(1))
    assert (result.diverged[0], result.success[0]) == (True, False)
    assert sim.slots.outcome[0] == DIVERGED
    np.testing.assert_array_equal(sim.observe().images, before.images)
    (divergence,) = sim.divergences
    assert (divergence.task, divergence.state_id) == (goal.tasks[DRAWER].name, 3)
    assert np.isfinite(divergence.state["body_pos"]).all()


def test_pictures_of_a_published_protocol_are_mirrored(new_sim, goal):
    upright = new_sim(goal.with_option("mujoco_3_2"), 1, image_size=256)
    turned = new_sim(goal.with_option("openvla_oft"), 1, image_size=256)  # both of seed 0
    for sim in (upright, turned):
        sim.reset([0], tasks=[STOVE], state_ids=[3])
    expected = upright.observe().images[:, :, :, ::-1]
    np.testing.assert_array_equal(turned.observe().images, expected)
    labels, mirrored = (ground(sim, np.array([0])) for sim in (upright, turned))
    seen = labels.visible & mirrored.visible
    assert seen.sum() > 4
    np.testing.assert_allclose(mirrored.uv[seen][:, 0], 1.0 - labels.uv[seen][:, 0], atol=1e-6)


def test_a_protocol_renders_in_its_own_size_and_makes_the_policys_of_it(new_sim, goal):
    suite = goal.with_option("openpi")
    large, small = new_sim(suite, 1, image_size=256), new_sim(suite, 1, image_size=64)
    for sim in (large, small):
        sim.reset([0], tasks=[STOVE], state_ids=[3])
    mean = large.observe().images[0].reshape(2, 64, 4, 64, 4, 3).mean(axis=(2, 4))
    difference = np.abs(small.observe().images[0] - mean)
    assert difference.mean() < 3.0  # a triangle of twice the width, not a box


def test_a_burner_is_drawn_while_it_burns(new_sim, goal):
    sim = new_sim(goal, 1, image_size=128)
    sim.reset([0], tasks=[STOVE], state_ids=[3])
    knob = sim.baked(STOVE).scene(horizon=1, wait_steps=0, sleeps=False).burner
    cold = sim.observe().images[0, 0].astype(int)
    sim.slots.physics[0, 1 + knob] = BURNING_RAD
    sim.slots.is_lit[0] = True
    hot = sim.observe().images[0, 0].astype(int)
    reddened = (hot - cold)[..., 0] - (hot - cold)[..., 1] > 60
    assert reddened.sum() > 5


def test_things_are_where_the_bodies_are(new_sim, goal):
    sim = new_sim(goal, 1)
    sim.reset([0], tasks=[STOVE], state_ids=[3])
    positions = sim.thing_positions()[0]
    model = sim.baked(STOVE).physics
    for (name, instance), position in zip(goal.instances.items(), positions, strict=True):
        body = model.body(f"{instance}_main").id
        np.testing.assert_array_equal(position, sim.slots.body_pos[0, body], err_msg=name)
    grip, state = sim.slots.grip_pos[0], sim.observe(images=False).state[0]
    np.testing.assert_allclose(state[:3], grip, rtol=1e-6)
    assert state[6] > 0.03
    assert state[7] < -0.03  # LIBERO's fingers have opposite signs


def test_nothing_varies(goal):
    with pytest.raises(ConfigError, match="the backend 'libero' has no variations"):
        simulate(goal, 1, variation=VariationConfig(light_gain=(0.5, 1.0)))


def test_counts_are_whole_numbers(goal):
    with pytest.raises(ConfigError, match="LiberoSim: num_slots is 0, expected a whole number"):
        simulate(goal, 0)
