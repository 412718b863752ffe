"""Is a suite ready to be trained and evaluated on?"""

from typing import Any, cast

import numpy as np

from vla_crl.errors import SpecError
from vla_crl.sim.backends import expert_of, simulate
from vla_crl.sim.simulation import Grounded, Simulation, require
from vla_crl.sim.task_suite import TaskSuite


def check_suite(suite: TaskSuite, *, num_states: int = 5, min_success: float = 0.95) -> None:
    """Check initial states, repeatability, goals and the scripted expert of every task.

    Args:
        suite: What to check.
        num_states: Initial states of each task that the expert tries, of training and test each;
            at most as many as there are.
        min_success: Least success of the expert over all tasks.

    Raises:
        SpecError: The first violation.
    """
    if not isinstance(cast(Any, suite), TaskSuite):
        raise SpecError(f"check_suite: got {suite!r}, expected what find_suite(name) returns")
    if num_states < 1:
        raise SpecError(f"check_suite: num_states is {num_states}, expected at least 1")
    num_states = min(num_states, len(suite.train_ids), len(suite.test_ids))
    tasks = len(suite.tasks)
    sim = simulate(suite, 2 * tasks * num_states)
    labels = require(sim, Grounded, "checked")
    slots, task = np.arange(sim.num_slots), np.repeat(np.arange(tasks), 2 * num_states)
    ids = np.tile([*suite.train_ids[:num_states], *suite.test_ids[:num_states]], tasks)
    sim.reset(slots, tasks=task, state_ids=ids)
    first = sim.observe().validate(suite.embodiment)
    positions = np.nan_to_num(labels.thing_positions())  # NaN: not there
    images = first.images.copy()
    sim.reset(slots, tasks=task, state_ids=ids)
    if not np.array_equal(images, sim.observe().images):
        raise SpecError(f"check_suite: '{suite.name}' does not repeat its initial states")
    if len(np.unique(positions[: 2 * num_states], axis=0)) != 2 * num_states:
        raise SpecError(f"check_suite: '{suite.name}' has two initial states with one layout")
    done = sim.step_chunk(np.zeros((sim.num_slots, 1, len(suite.embodiment.action)))).success
    if done.any():
        raise SpecError(
            f"check_suite: task '{suite.tasks[task[done][0]].name}' of '{suite.name}' succeeds "
            f"before anything is done, in {done.sum()} of its initial states; change goal or start"
        )
    sim.reset(slots, tasks=task, state_ids=ids)
    success = _run_expert(sim)
    if not success.mean() >= min_success:
        worst = min(range(tasks), key=lambda index: success[task == index].mean())
        raise SpecError(
            f"check_suite: the expert of '{suite.name}' succeeds in {100 * success.mean():.0f} % "
            f"of episodes, expected {100 * min_success:.0f} %; "
            f"worst task '{suite.tasks[worst].name}'"
        )
    sim.close()


def _run_expert(sim: Simulation) -> np.ndarray:
    expert, running = expert_of(sim), np.arange(sim.num_slots)
    success = np.zeros(sim.num_slots, dtype=bool)
    while len(running):
        result = sim.step_chunk(expert.act(running)[:, None], running)
        success[running] = result.success
        running = running[~(result.terminated | result.truncated)]
    return success
