from dataclasses import replace
from typing import NamedTuple

import mujoco
import numpy as np
import pytest

from vla_crl.contracts import ARM
from vla_crl.errors import ConfigError
from vla_crl.sim.native.experts import ScriptedExpert
from vla_crl.sim.native.goals import Goal
from vla_crl.sim.native.kernel.controller import FINGER
from vla_crl.sim.native.kernel.progress import HELD_M
from vla_crl.sim.native.suite import Suite, load_suite
from vla_crl.sim.native.vector_sim import VectorSim
from vla_crl.sim.outcomes import RUNNING
from vla_crl.sim.packed_state import STATE_SPEC

NUM_TRAIN, NUM_TEST = 10, 10
"""Episodes of each task on training and on test states."""


class Episodes(NamedTuple):
    """What the expert did, [T, N, ...]; what has ended stays as it is."""

    sim: VectorSim
    success: np.ndarray
    num_steps: np.ndarray
    thing: np.ndarray
    grip: np.ndarray
    rotation: np.ndarray
    finger_command: np.ndarray
    physics: np.ndarray


@pytest.fixture(scope="module")
def episodes(suite: Suite) -> Episodes:
    ids = [*suite.train_ids[:: len(suite.train_ids) // NUM_TRAIN], *suite.test_ids[:NUM_TEST]]
    num_slots = len(ids) * len(suite.tasks)
    sim, slots = VectorSim(suite, num_slots), np.arange(num_slots)
    sim.reset(slots, tasks=slots % 10, state_ids=np.repeat(ids, 10))
    expert, running = ScriptedExpert(sim), slots
    success, num_steps, frames = np.zeros(num_slots, bool), np.zeros(num_slots, int), []
    while len(running):
        result = sim.step_chunk(expert.act(running)[:, None], running)
        success[running] = result.success
        num_steps[running] += 1
        running = running[~(result.terminated | result.truncated)]
        grip, rotation = sim.grip_pose()
        things = sim.thing_positions()[slots, expert.named(slots)[:, 0]]
        states = sim.get_states()
        frames.append((things, grip, rotation, states["controller"][:, FINGER], states["physics"]))
    sim.close()
    return Episodes(sim, success, num_steps, *map(np.stack, zip(*frames, strict=True)))


def things_of(suite: Suite, tasks: np.ndarray) -> np.ndarray:
    """Index of the thing that each of `tasks` moves."""
    return np.array([suite.thing_index(task.goal.arguments[0]) for task in suite.tasks])[tasks]


def is_held(episodes: Episodes) -> np.ndarray:
    """Whether the thing is lifted and between fingers that are told to close, [T, N]."""
    is_near = np.linalg.norm(episodes.thing - episodes.grip, axis=-1) < HELD_M
    return is_near & (episodes.finger_command == 0.0) & (episodes.thing[..., 2] > 0.05)


def test_the_expert_succeeds_on_train_and_test_states(episodes: Episodes):
    by_task = episodes.success.reshape(-1, 10)
    assert by_task.mean() >= 0.95
    assert by_task.mean(axis=0).min() >= 0.9
    assert by_task[:NUM_TRAIN].mean() >= 0.95
    assert by_task[NUM_TRAIN:].mean() >= 0.95


def test_the_expert_leaves_a_learner_time(suite: Suite, episodes: Episodes):
    assert np.median(episodes.num_steps) <= suite.horizon / 2


def test_a_held_thing_does_not_slip(episodes: Episodes):
    held = is_held(episodes)
    assert (held.sum(axis=0) >= 3).mean() > 0.95
    offset = np.einsum("tnji,tnj->tni", episodes.rotation, episodes.thing - episodes.grip)
    for slot in np.flatnonzero(held.any(axis=0)):
        steps = np.flatnonzero(held[: episodes.num_steps[slot], slot])
        slip = np.linalg.norm(offset[steps, slot] - offset[steps[0], slot], axis=1)
        assert slip.max() < 0.012


def test_a_handled_thing_does_not_sink_into_the_table(suite: Suite, episodes: Episodes):
    datas = [mujoco.MjData(scene.model) for scene in suite.scenes]
    tasks, deepest = episodes.sim.tasks, 0.0
    bodies = suite.thing_bodies[suite.scene_of_task[tasks], things_of(suite, tasks)]
    for step, states in enumerate(episodes.physics):
        for slot in np.flatnonzero(step < episodes.num_steps)[::2]:
            scene = suite.scene_of_task[tasks[slot]]
            model, data = suite.scenes[scene].model, datas[scene]
            state = states[slot, : mujoco.mj_stateSize(model, STATE_SPEC)]
            mujoco.mj_setState(model, data, state, STATE_SPEC)
            mujoco.mj_fwdPosition(model, data)
            pairs = model.geom_bodyid[data.contact.geom]
            touches = np.any(pairs == 0, axis=1) & np.any(pairs == bodies[slot], axis=1)
            deepest = min(deepest, data.contact.dist[touches].min(initial=0.0))
    assert deepest > -0.002


def test_a_released_thing_is_at_rest_after_one_and_a_half_seconds(suite: Suite, episodes: Episodes):
    won = np.flatnonzero(episodes.success)[::4]
    sim = VectorSim(suite, len(won))
    last = {name: values[won] for name, values in episodes.sim.get_states().items()}
    things = things_of(suite, last["task"])
    last["outcome"][:], last["num_steps"][:] = RUNNING, 0
    other = [  # a task of the same scene with another thing, so that the episode goes on
        next(i for i, other in enumerate(suite.tasks) if i != k and other.scene == task.scene)
        for k, task in enumerate(suite.tasks)
    ]
    last["task"] = np.array(other)[last["task"]]
    sim.set_states(last)
    idle = np.zeros((len(won), 14, len(ARM.action)))
    idle[:, :, 6] = -1.0
    sim.step_chunk(idle)
    after_1400_ms = sim.thing_positions()[np.arange(len(won)), things]
    sim.step_chunk(idle[:, :1])
    after_1500_ms = sim.thing_positions()[np.arange(len(won)), things]
    sim.close()
    speed = np.linalg.norm(after_1500_ms - after_1400_ms, axis=1) / 0.1
    assert speed.max() < 0.005


def test_the_action_depends_on_the_current_state_alone(suite: Suite):
    sim = VectorSim(suite, 10)
    sim.reset(range(10), tasks=range(10), state_ids=range(10))
    expert = ScriptedExpert(sim)
    for _ in range(8):
        sim.step_chunk(expert.act(np.arange(10))[:, None])
    copy = VectorSim(suite, 10)
    copy.set_states(sim.get_states())
    newcomer = ScriptedExpert(copy)
    assert np.array_equal(newcomer.act(np.arange(10)), expert.act(np.arange(10)))
    assert np.array_equal(newcomer.act(np.array([7, 3])), expert.act(np.arange(10))[[7, 3]])
    assert np.abs(newcomer.act(np.arange(10))).max() <= 1.0
    for each in (sim, copy):
        each.close()


def test_the_expert_knows_what_each_task_is_about(suite: Suite):
    sim = VectorSim(suite, 10)
    sim.reset(range(10), tasks=range(10), state_ids=range(10))
    named = [
        tuple(suite.things[thing] for thing in pair)
        for pair in ScriptedExpert(sim).named(np.arange(10))
    ]
    sim.close()
    goals = [task.goal.arguments for task in suite.tasks]
    assert named == goals  # a region is called as its thing


def test_a_goal_that_forbids_says_not_what_to_do():
    suite = load_suite("tabletop_goal")
    goal = Goal("not", parts=(Goal("open", ("drawer",)),))
    sim = VectorSim(replace(suite, tasks=(replace(suite.tasks[0], goal=goal),)), 1)
    with pytest.raises(ConfigError, match="'open_drawer': the scripted expert cannot make 'not'"):
        ScriptedExpert(sim)
    sim.close()


def test_what_a_goal_forbids_is_left_and_what_cannot_be_made_is_passed_over():
    suite = load_suite("tabletop_goal")
    shut = Goal("not", parts=(Goal("open", ("drawer",)),))
    wanted = suite.tasks[1].goal
    goals = Goal("and", parts=(shut, wanted)), Goal("or", parts=(shut, wanted)), wanted
    actions = []
    for goal in goals:
        sim = VectorSim(replace(suite, tasks=(replace(suite.tasks[1], goal=goal),)), 1)
        sim.reset([0], tasks=[0], state_ids=[0])
        actions.append(ScriptedExpert(sim).act(np.array([0])))
        sim.close()
    assert np.array_equal(actions[0], actions[2])
    assert np.array_equal(actions[1], actions[2])


def test_a_goal_that_only_a_grasp_makes_true_is_refused_for_what_is_pushed():
    suite = load_suite("tabletop_goal")
    task = suite.tasks[0]
    goal = Goal("stacked", ("plate", "red cube"))
    sim = VectorSim(replace(suite, tasks=(replace(task, goal=goal),)), 1)
    message = r"only pushes 'plate' \(is_graspable = false\).* cannot make 'stacked' true"
    with pytest.raises(ConfigError, match=message):
        ScriptedExpert(sim)
    sim.close()
