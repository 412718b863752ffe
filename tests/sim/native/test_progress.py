"""How far goals have come: by hand, by brute force, and along the experts' episodes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vla_crl.errors import ConfigError
from vla_crl.sim.native.experts import ScriptedExpert
from vla_crl.sim.native.goals import parse_goal
from vla_crl.sim.native.kernel.progress import measure_progress
from vla_crl.sim.native.shaping import shape
from vla_crl.sim.native.suite import Suite, load_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.rewards import check_reward, step_rewarded
from vla_crl.testing.limited import Limited

SUITES = ["tabletop_object", "tabletop_spatial", "tabletop_goal", "tabletop_long"]


@pytest.fixture(scope="module")
def goal_suite() -> Suite:
    return load_suite("tabletop_goal")


@pytest.fixture
def sim(goal_suite: Suite) -> Iterator[VectorSim]:
    sim = VectorSim(goal_suite, 1, num_threads=1)
    yield sim
    sim.close()


def begin(sim: VectorSim, task: str, state_id: int = 7) -> None:
    sim.reset([0], tasks=[sim.suite.task_index(task)], state_ids=[state_id])


def progress_of(sim: VectorSim, *goal: Any) -> float:
    """Return how far any goal has come in slot 0."""
    scene, progress = sim.suite.scenes[0], np.empty(1)
    goals = scene.compile([parse_goal(list(goal), "test", scene.known)])
    one, grip = np.zeros(1, np.int64), sim.suite.grip_sites[0]
    measure_progress(goals, shape(goals, scene), sim._slots.poses, grip, one, one, progress)
    return float(progress[0])


def way(start: np.ndarray, end: np.ndarray) -> float:
    """From 1.2 cm to 3.7 cm aside a way rises to 8 cm over its end."""
    aside = float(np.hypot(*(start - end)[:2]))
    height = 0.08 * np.clip((aside - 0.012) / 0.025, 0, 1)
    return aside + abs(start[2] - end[2] - height)


def near(length: float) -> float:
    return 0.1 / (0.1 + length)


def behind(grip: np.ndarray, contact: np.ndarray, direction: np.ndarray) -> float:
    """The best place to push from is 1.2 to 3 cm behind the contact."""
    along = np.clip((grip - contact) @ direction, -0.03, -0.012)
    return near(way(grip, contact + along * direction))


@pytest.mark.parametrize("name", SUITES)
def test_progress_is_1_where_and_only_where_the_goal_is_reached(name: str) -> None:
    suite = load_suite(name)
    num = len(suite.tasks)
    sim = VectorSim(suite, num)
    sim.reset(range(num), tasks=range(num), state_ids=[11] * num)
    expert, running = ScriptedExpert(sim), np.arange(num)
    first = sim.goal_progress()
    success = np.zeros(num, dtype=bool)
    while len(running):
        result = sim.step_chunk(expert.act(running)[:, None], running)
        success[running] = result.success
        progress = sim.goal_progress()
        assert np.array_equal(progress == 1.0, success)
        assert np.all((progress >= 0.0) & (progress <= 1.0))
        running = running[~(result.terminated | result.truncated)]
    assert success.sum() >= num - 1  # experts succeed in nearly all
    assert np.all(first < 0.8)
    sim.close()


def test_progress_of_a_drawer_by_hand(sim: VectorSim) -> None:
    begin(sim, "open_drawer")
    grip = sim.grip_pose()[0][0]
    handle = sim.site_positions(sim.suite.scenes[0].model.site("drawer_handle").id)[0]
    pull = np.array([-1.0, 0.0, 0.0])  # the drawer comes towards the robot
    assert sim.goal_progress()[0] == pytest.approx(0.4 * behind(grip, handle, pull))
    begin(sim, "close_drawer")  # starts 8.5 cm open, counts as closed from 1 cm on, of 0 to 9 cm
    grip = sim.grip_pose()[0][0]
    handle = sim.site_positions(sim.suite.scenes[0].model.site("drawer_handle").id)[0]
    moved = (0.085 - 0.09) / (0.01 - 0.09)
    expected = 0.4 * behind(grip, handle, -pull) + 0.6 * moved
    assert sim.goal_progress()[0] == pytest.approx(expected)


def test_progress_of_a_knob_by_hand(sim: VectorSim) -> None:
    begin(sim, "turn_off_stove")  # starts at 1.1 rad of 0 to 1.2, counts as off from 0.1 on
    grip, model = sim.grip_pose()[0][0], sim.suite.scenes[0].model
    handle = sim.site_positions(model.site("knob_handle").id)[0]
    knob = sim.thing_positions()[0, sim.suite.thing_index("knob")]
    direction = np.cross([0.0, 0.0, -1.0], handle - knob)  # it turns on about the vertical
    direction /= np.linalg.norm(direction)
    expected = 0.4 * behind(grip, handle, direction) + 0.6 * (1.1 - 1.2) / (0.1 - 1.2)
    assert sim.goal_progress()[0] == pytest.approx(expected)


def test_progress_of_what_is_grasped_by_hand(sim: VectorSim) -> None:
    begin(sim, "red_cube_in_drawer")
    grip = sim.grip_pose()[0][0]
    cube = sim.thing_positions()[0, sim.suite.thing_index("red cube")]
    place = sim.site_positions(sim.suite.scenes[0].model.site("drawer").id)[0]
    expected = 0.4 * near(way(grip, cube)) + 0.5 * near(way(cube, place))
    assert sim.goal_progress()[0] == pytest.approx(expected)
    expert = ScriptedExpert(sim)
    while sim.finger_positions().mean() > 0.025 or cube[2] < 0.05:
        sim.step_chunk(expert.act(np.array([0]))[:, None])
        cube = sim.thing_positions()[0, sim.suite.thing_index("red cube")]
    grip = sim.grip_pose()[0][0]  # it carries the cube, and so holds it
    expected = 0.4 * near(way(grip, cube)) + 0.1 + 0.5 * near(way(cube, place))
    assert sim.goal_progress()[0] == pytest.approx(expected)


def test_progress_of_what_is_pushed_by_hand(sim: VectorSim) -> None:
    begin(sim, "push_plate_to_front")
    grip = sim.grip_pose()[0][0]
    plate = sim.thing_positions()[0, sim.suite.thing_index("plate")]
    place = sim.site_positions(sim.suite.scenes[0].model.site("front").id)[0]
    along = np.append((place - plate)[:2], 0.0)
    direction = along / np.linalg.norm(along)
    expected = 0.4 * behind(grip, plate - 0.045 * direction, direction)  # its radius
    expected += 0.6 * near(float(np.linalg.norm(along)))
    assert sim.goal_progress()[0] == pytest.approx(expected)


def test_of_all_that_is_wanted_what_lacks_first_counts(sim: VectorSim) -> None:
    open_it, on = ["open", "drawer"], ["on", "red cube", "blue cube"]
    begin(sim, "open_drawer")  # closed
    opening, stacking = progress_of(sim, *open_it), progress_of(sim, *on)
    assert 0.0 < opening < 1.0
    assert 0.0 < stacking < 1.0
    assert progress_of(sim, "and", open_it, on) == pytest.approx(opening / 2)
    assert progress_of(sim, "and", on, open_it) == pytest.approx(stacking / 2)
    assert progress_of(sim, "or", on, open_it) == pytest.approx(max(opening, stacking))
    assert progress_of(sim, "not", open_it) == 1.0
    assert progress_of(sim, "and", ["not", open_it], on) == pytest.approx((1 + stacking) / 2)
    begin(sim, "close_drawer")  # open
    stacking = progress_of(sim, *on)
    assert progress_of(sim, *open_it) == 1.0
    assert progress_of(sim, "and", open_it, on) == pytest.approx((1 + stacking) / 2)
    assert progress_of(sim, "and", on, open_it) == pytest.approx(stacking / 2)
    assert progress_of(sim, "or", on, open_it) == 1.0
    assert progress_of(sim, "not", open_it) == 0.0
    nested = ["and", ["and", open_it, on], ["or", on, ["not", open_it]]]
    assert progress_of(sim, *nested) == pytest.approx((1 + stacking) / 3)


def test_progress_of_letting_go_by_hand(sim: VectorSim) -> None:
    begin(sim, "open_drawer")
    assert progress_of(sim, "released", "red cube") == 1.0  # far away
    expert, begun = ScriptedExpert(sim), sim.suite.task_index("red_cube_on_plate")
    sim.reset([0], tasks=[begun], state_ids=[7])
    while sim.finger_positions().mean() > 0.025:
        sim.step_chunk(expert.act(np.array([0]))[:, None])
    cube = sim.thing_positions()[0, sim.suite.thing_index("red cube")]
    apart = np.linalg.norm(cube - sim.grip_pose()[0][0])
    opening = sim.finger_positions().mean() / 0.04
    expected = 0.5 * opening + 0.5 * apart / 0.04
    assert progress_of(sim, "released", "red cube") == pytest.approx(expected)


def test_dense_rewards_add_up_to_success_and_the_progress_made(sim: VectorSim) -> None:
    begin(sim, "open_drawer")
    expert, first, total = ScriptedExpert(sim), sim.goal_progress()[0], 0.0
    while True:
        result = step_rewarded(sim, expert.act(np.array([0]))[:, None], None, "dense")
        total += float(result.reward[0])
        if result.terminated[0]:
            break
    assert result.success[0]
    assert total == pytest.approx(2.0 - first, abs=1e-5)


def test_asking_for_progress_changes_nothing(goal_suite: Suite) -> None:
    sims = [VectorSim(goal_suite, 3, num_threads=1) for _ in range(2)]
    rng = np.random.default_rng(0)
    for sim in sims:
        sim.reset(range(3), tasks=[0, 1, 2], state_ids=[1, 2, 3])
    for _ in range(5):
        actions = rng.uniform(-1, 1, (3, 2, 7))
        sparse = sims[0].step_chunk(actions)
        dense = step_rewarded(sims[1], actions, None, "dense")
        assert np.array_equal(sparse.success, dense.success)
        assert np.array_equal(sparse.reward, np.zeros(3, np.float32))
        assert dense.reward.dtype == sparse.reward.dtype
    one, other = (sim.get_states() for sim in sims)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    for sim in sims:
        sim.close()


def test_a_world_that_blew_up_has_come_no_further(sim: VectorSim) -> None:
    begin(sim, "open_drawer")
    states = sim.get_states()
    states["physics"][0, 1] = np.nan
    sim.set_states(states)
    result = step_rewarded(sim, np.zeros((1, 1, 7)), None, "dense")
    assert result.diverged[0]
    assert not result.success[0]


def test_rewards_that_there_are_not_are_refused(sim: VectorSim) -> None:
    with pytest.raises(ConfigError, match="unknown reward 'dens'. Did you mean 'dense'"):
        check_reward(sim, "dens")
    check_reward(Limited(sim, []), "sparse")
    with pytest.raises(ConfigError, match="cannot be rewarded densely: .* lacks goal_progress"):
        check_reward(Limited(sim, []), "dense")
