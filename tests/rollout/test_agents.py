from contextlib import nullcontext

import numpy as np
import pytest
import torch

from vla_crl.errors import ConfigError, ForeignError, StoppedEvaluationError
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.routes import TaskRoute
from vla_crl.rollout.agents import ExpertAgent, PolicyAgent, TaskGroup, act_by_task
from vla_crl.rollout.evaluate import evaluate
from vla_crl.rollout.replay import RecordingAgent, ReplayingAgent
from vla_crl.sim.native.suite import load_suite

SUITE = "tabletop_object"
TASKS = ["red_cube_in_basket", "white_mug_in_tray", "green_cube_in_tray"]


@pytest.fixture
def routed(untrained_policy):
    """A policy with an adapter for the first task, one for the third, and the base in others."""
    bank = untrained_policy.adapters
    for name in ("a", "b"):
        bank.add(name, LoRAConfig(rank=2), trained=False)
        for _, up in bank.matrices(name).values():
            torch.nn.init.normal_(up, std=0.3)
    bank.route = TaskRoute(tasks={TASKS[0]: {"a": 1.0}, TASKS[2]: {"b": 1.0}}, default={})
    return untrained_policy


def recorded(agent, sims, tasks):
    """Return what the agent does in an evaluation, by task and initial state."""
    recording = RecordingAgent(agent)
    results = evaluate(recording, sims, tasks, num_episodes=2)
    assert [result.task for result in results] == tasks
    return recording.chunks


def test_in_every_task_what_the_route_says_acts(routed, make_lanes):
    suite = load_suite(SUITE)
    sims, agent = make_lanes(suite, 4), PolicyAgent(routed, deterministic=True)
    found = recorded(agent, sims, TASKS)
    assert len(found) == 3 * 2
    for task, scales in zip(TASKS, ({"a": 1.0}, {}, {"b": 1.0}), strict=True):
        with routed.adapters.acting(scales):
            routed.adapters.route, route = (
                TaskRoute(tasks={}, default=scales),
                routed.adapters.route,
            )
            expected = recorded(agent, sims, [task])
            routed.adapters.route = route
        for episode, chunks in expected.items():
            assert all(map(np.array_equal, chunks, found[episode]))
    firsts = {str(found[suite.task_index(task), suite.test_ids[0]][0]) for task in TASKS}
    assert len(firsts) == 3


def test_tasks_in_which_the_same_acts_are_one_group(routed):
    agent = PolicyAgent(routed, deterministic=True)
    groups = [group.tasks for group in agent.groups(["x", TASKS[0], "y", TASKS[2]])]
    assert groups == [("x", "y"), (TASKS[0],), (TASKS[2],)]
    assert [g.tasks for g in RecordingAgent(agent).groups(TASKS)] == [(task,) for task in TASKS]
    for other in (ExpertAgent(), ReplayingAgent({}, 64)):
        assert [group.tasks for group in other.groups(TASKS)] == [tuple(TASKS)]


def test_slots_of_several_tasks_act_each_as_in_its_own(routed, make_lanes):
    suite = load_suite(SUITE)
    (sim,) = make_lanes(suite, 6)[:1]
    tasks, slots = [suite.task_index(task) for task in TASKS], np.arange(sim.num_slots)
    sim.reset(slots, tasks=np.array(tasks), state_ids=np.array([*suite.test_ids[:3]]))
    agent = PolicyAgent(routed, deterministic=True)
    found = act_by_task(agent, sim)(slots)
    for slot, scales in zip(slots, ({"a": 1.0}, {}, {"b": 1.0}), strict=True):
        with routed.adapters.acting(scales):
            assert np.array_equal(agent(sim)(slots[slot : slot + 1])[0], found[slot])
    assert len({str(chunk) for chunk in found}) == 3


def test_a_task_that_the_route_does_not_know_is_told_before_anything_is_played(routed, make_lanes):
    sims = make_lanes(load_suite(SUITE), 2)
    routed.adapters.route = TaskRoute(tasks={TASKS[0]: {"a": 1.0}})
    with pytest.raises(ConfigError, match="for 'white_mug_in_tray' none is; expected one of red_"):
        evaluate(PolicyAgent(routed, deterministic=True), sims, TASKS, num_episodes=1)


class Failing(ExpertAgent):
    """Plays tasks one after another, and fails in the second."""

    def __init__(self):
        self.num_called = 0

    def groups(self, tasks):
        return [TaskGroup((task,), nullcontext()) for task in tasks]

    def __call__(self, sim, lane=0):
        self.num_called += 1
        if self.num_called > 1:
            raise ForeignError("it hung")
        return super().__call__(sim, lane)


def test_results_of_tasks_before_a_failure_are_kept(make_lanes):
    sims = make_lanes(load_suite(SUITE), 1)
    with pytest.raises(StoppedEvaluationError, match="it hung") as caught:
        evaluate(Failing(), sims, TASKS[:2], num_episodes=1)
    assert [(r.task, r.episodes) for r in caught.value.results] == [(TASKS[0], 1), (TASKS[1], 0)]
