"""Slots that are objects: their books, their ends, and how they go on elsewhere; on fake worlds."""

from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import numpy as np
import pytest

from vla_crl.errors import ConfigError, SpecError
from vla_crl.sim.outcomes import DIVERGED, RUNNING, SUCCESS, TIME_LIMIT
from vla_crl.testing import fake_suite
from vla_crl.testing.fake_sim import FakeEpisode, FakeExpert, FakeSim, layout

NewSim = Callable[..., FakeSim]


@pytest.fixture
def new_sim() -> Iterator[NewSim]:
    sims: list[FakeSim] = []

    def new_sim(num_slots: int, *, horizon: int = 12, **settings: Any) -> FakeSim:
        sims.append(FakeSim(fake_suite(horizon=horizon, **settings), num_slots, image_size=16))
        return sims[-1]

    yield new_sim
    for sim in sims:
        sim.close()


def test_an_episode_tells_where_it_stands(new_sim: NewSim):
    sim = new_sim(3, horizon=5)
    assert sim.state_ids.tolist() == [-1, -1, -1]
    sim.reset([2, 0], tasks=[1, 2], state_ids=[4, 70])
    assert sim.state_ids.tolist() == [70, -1, 4]
    assert sim.tasks[[0, 2]].tolist() == [2, 1]
    assert sim.instructions([0, 2]) == ("reach the blue square", "reach the green square")
    first = sim.step_chunk(np.zeros((2, 3, 3)), [0, 2])
    second = sim.step_chunk(np.zeros((2, 3, 3)), [0, 2])  # the horizon comes after two of three
    assert first.num_steps.tolist() == [3, 3]
    assert second.num_steps.tolist() == [2, 2]
    assert second.truncated.tolist() == [True, True]
    assert not first.truncated.any()
    assert not second.terminated.any()
    with pytest.raises(SpecError, match=r"FakeSim.step_chunk: slots \[0, 2\] have no running"):
        sim.step_chunk(np.zeros((2, 1, 3)), [0, 2])


def test_a_chunk_stops_at_success(new_sim: NewSim):
    sim = new_sim(1)
    sim.reset([0], tasks=[0], state_ids=[0])
    hand, red, *_ = layout(sim.suite, 0)
    steps = int(np.ceil((np.abs(red - hand).max() - 0.18) / 0.2 - 1e-9))  # 0.2 m a step, near: 0.18
    direction = np.clip((red - hand) / np.abs(red - hand).max(), -1.0, 1.0)
    result = sim.step_chunk(np.tile([*direction, 0.0], (1, steps + 2, 1)))
    assert (result.success[0], result.num_steps[0], result.reward[0]) == (True, steps, 1.0)
    assert result.terminated[0]


def test_physics_that_blows_up_leaves_the_slot_as_it_was(new_sim: NewSim, tmp_path):
    sim = new_sim(2, blows_up=(7,))
    sim.reset([0, 1], tasks=[0, 0], state_ids=[7, 8])
    before = sim.observe()
    result = sim.step_chunk(np.ones((2, 2, 3)))
    assert result.diverged.tolist() == result.terminated.tolist() == [True, False]
    assert result.num_steps.tolist() == [0, 2]
    (divergence,) = sim.divergences
    assert (divergence.task, divergence.state_id) == ("reach_red", 7)
    assert divergence.num_steps == 0
    assert divergence.cause == "the table is gone"
    assert np.array_equal(divergence.state["hand"], layout(sim.suite, 7)[0])
    assert divergence.save(tmp_path).exists()
    assert np.array_equal(sim.observe([0]).images[0], before.images[0])


def test_what_blew_up_is_told_in_the_order_of_slots(new_sim: NewSim, monkeypatch):
    sim, later_is_done = new_sim(2, blows_up=(7, 8)), Event()
    sim.reset([0, 1], tasks=[0, 0], state_ids=[7, 8])
    step = FakeEpisode.step_chunk

    def step_chunk(episode: FakeEpisode, actions: np.ndarray, max_steps: int):
        """Let the first slot wait for the second."""
        if episode is sim.episode(0):
            assert later_is_done.wait(60)
        try:
            return step(episode, actions, max_steps)
        finally:
            later_is_done.set()

    monkeypatch.setattr(FakeEpisode, "step_chunk", step_chunk)
    sim.step_chunk(np.ones((2, 2, 3)))
    assert [divergence.state_id for divergence in sim.divergences] == [7, 8]


def test_nothing_is_drawn_unless_asked_for(new_sim: NewSim, monkeypatch: pytest.MonkeyPatch):
    sim = new_sim(2)
    sim.reset([0, 1], tasks=[0, 1], state_ids=[0, 1])
    seen = sim.observe()
    monkeypatch.setattr(sim, "draw", None)
    blind = sim.observe(images=False)
    assert blind.validate(sim.suite.embodiment).images.shape == (2, 1, 0, 0, 3)
    assert np.array_equal(blind.state, seen.state)
    assert blind.instruction == seen.instruction


def test_no_slots_is_nothing_to_do(new_sim: NewSim):
    sim = new_sim(2)
    sim.reset([], tasks=[], state_ids=[])
    assert len(sim.step_chunk(np.zeros((0, 2, 3)), []).success) == 0
    sim.observe([]).validate(sim.suite.embodiment)
    assert sim.frames("top", 8, []).shape == (0, 8, 8, 3)


def test_wrong_calls_are_refused(new_sim: NewSim):
    sim = new_sim(1)
    with pytest.raises(SpecError, match=r"FakeSim: slots \[0\] have no episode; reset them first"):
        sim.observe()
    with pytest.raises(SpecError, match="FakeSim: slot 0 has no episode; reset it first"):
        sim.episode(0)
    with pytest.raises(ConfigError, match="FakeSim: num_slots is 0, expected a whole number"):
        new_sim(0)
    sim.close()
    with pytest.raises(SpecError, match="the simulation is closed; make a new one"):
        sim.reset([0], tasks=[0], state_ids=[0])


def all_ends(new_sim: NewSim) -> FakeSim:
    """Return five slots: solved, out of time, blown up, running, never begun."""
    sim = new_sim(5, blows_up=(2,))
    sim.reset(range(4), tasks=[0, 1, 2, 1], state_ids=[0, 1, 2, 3])
    expert = FakeExpert(sim)
    for _ in range(9):
        row = np.array([0])
        if sim.step_chunk(expert.act(row)[:, None], row).success[0]:
            break
    sim.step_chunk(np.zeros((2, 12, 3)), [1, 2])
    sim.step_chunk(np.full((1, 2, 3), 0.5), [3])
    ends = [SUCCESS, TIME_LIMIT, DIVERGED, RUNNING, RUNNING]
    assert sim.get_states()["outcome"].tolist() == ends
    return sim


def test_episodes_go_on_in_another_simulation(new_sim: NewSim):
    sim, other = all_ends(new_sim), new_sim(5, blows_up=(2,))
    other.reset(range(5), tasks=[0] * 5, state_ids=range(10, 15))  # to be forgotten
    states = sim.get_states()
    other.set_states(states)
    assert states["actions"].shape == (5, 12, 3)
    assert all(np.array_equal(other.get_states()[name], array) for name, array in states.items())
    for _ in range(2):
        one, same = sim.observe(range(4)), other.observe(range(4))
        assert np.array_equal(one.images, same.images)
        assert np.array_equal(one.state, same.state)
        results = [each.step_chunk(np.full((1, 2, 3), -0.3), [3]) for each in (sim, other)]
        assert results[0].num_steps[0] == results[1].num_steps[0] == 2
    with pytest.raises(SpecError, match=r"slots \[4\] have no episode"):
        other.observe([4])


def test_copied_states_do_not_change_with_the_simulation(new_sim: NewSim):
    sim = all_ends(new_sim)
    states = sim.get_states()
    kept = {name: array.copy() for name, array in states.items()}
    sim.step_chunk(np.ones((1, 2, 3)), [3])
    sim.reset([0], tasks=[2], state_ids=[9])
    assert all(np.array_equal(states[name], array) for name, array in kept.items())


@pytest.mark.parametrize(
    ("name", "slot", "value", "message"),
    [
        ("actions", 3, np.nan, "FakeSim.set_states: 'actions' has numbers that are not finite"),
        ("actions", 0, 0.0, "task 'reach_red' does not stand where its . steps are said"),
        ("state_id", 0, 5, "task 'reach_red' does not stand where"),
        ("state_id", 3, 2, "task 'reach_green' does not stand where"),  # there it blows up
        ("outcome", 3, TIME_LIMIT, "task 'reach_green' does not stand where its 2 steps are"),
        ("outcome", 1, RUNNING, "task 'reach_green' does not stand where its 12 steps are"),
        ("num_steps", 0, 1, "task 'reach_red' does not stand where its 1 steps"),
        ("task", 3, 3, "FakeSim.set_states: task 3 is out of range, expected 0 .. 2"),
        ("num_steps", 3, 13, "FakeSim.set_states: num_steps 13 is out of range"),
    ],
)
def test_states_that_cannot_be_are_refused_and_nothing_changes(
    new_sim: NewSim, name: str, slot: int, value: float, message: str
):
    sim = all_ends(new_sim)
    states, before = sim.get_states(), sim.get_states()
    states[name][slot] = value
    with pytest.raises(SpecError, match=message):
        sim.set_states(states)
    assert all(np.array_equal(sim.get_states()[name], array) for name, array in before.items())
    assert sim.step_chunk(np.zeros((1, 1, 3)), [3]).num_steps[0] == 1


def test_states_of_another_simulation_are_refused(new_sim: NewSim):
    sim = all_ends(new_sim)
    with pytest.raises(
        SpecError, match=r"'task' is int64 \(5,\), expected int64 \(4,\); use a sim"
    ):
        new_sim(4).set_states(sim.get_states())
    states = sim.get_states()
    del states["actions"]
    with pytest.raises(SpecError, match=r"got \['num_steps', .* expected \['actions', 'num_steps'"):
        sim.set_states(states)
