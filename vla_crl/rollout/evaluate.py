"""Success of a policy, or of the scripted expert, on the fixed test states of a suite."""

from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Literal

import numpy as np

from vla_crl.errors import ForeignError, StoppedEvaluationError
from vla_crl.progress import track
from vla_crl.rollout.agents import Agent
from vla_crl.rollout.episodes import evaluated
from vla_crl.rollout.lanes import check_lanes, lane_sizes, run_lanes
from vla_crl.rollout.results import PlayedEpisode, TaskResult
from vla_crl.sim.divergence import DIVERGENCES, save_divergences
from vla_crl.sim.simulation import Simulation


def evaluate(
    agent: Agent,
    sims: Sequence[Simulation],
    tasks: Sequence[str] | None = None,
    *,
    num_episodes: int = 100,
    states: Literal["test", "train"] = "test",
    divergences: Path = DIVERGENCES,
) -> list[TaskResult]:
    """Run one episode on each of the first test (or training) states of each task.

    Every episode has its own initial state, so fast (successful) episodes are not over-represented
    however the slots are refilled. All tasks in which the same adapters act share one batch; where
    adapters are chosen by task, such groups are played one after another. Matrix products round by
    the size of the batch and contacts are chaotic: other tasks, another number of environments or
    threads or another processor move a success rate by some points, the same call on the same
    machine never does. Of more environments than there are episodes some stay idle, which changes
    nothing.

    Args:
        agent: Who acts.
        sims: From `simulate_lanes`, with images of the agent's size; they may be used again.
        tasks: Task names; all tasks of the suite by default.
        num_episodes: Episodes a task, at most the suite's number of such states.
        states: Which initial states; results are reported on "test".
        divergences: Folder for states in which physics blew up; such an episode is a failure.

    Returns:
        One result a task, in the order asked for.

    Raises:
        ConfigError: An unknown task or kind of states, no task, a number out of range, or a task
            for which the policy has no adapters.
        StoppedEvaluationError: An environment of another package failed for good.
    """
    check_lanes("evaluate", sims)
    suite = sims[0].suite
    indices, ids = evaluated(suite, tasks, num_episodes, states)
    names = [suite.tasks[index].name for index in indices]
    found: dict[str, TaskResult] = {}
    for group in agent.groups(names):
        chosen = [index for index, name in zip(indices, names, strict=True) if name in group.tasks]
        try:
            with group.acting:
                results = _evaluate_together(agent, sims, chosen, ids, divergences)
        except StoppedEvaluationError as error:
            found |= {result.task: result for result in error.results}
            kept = [found[name] for name in names if name in found]
            raise StoppedEvaluationError(str(error), kept) from error
        found |= {result.task: result for result in results}
    return [found[name] for name in names]


def _evaluate_together(
    agent: Agent,
    sims: Sequence[Simulation],
    indices: Sequence[int],
    ids: Sequence[int],
    divergences: Path,
) -> list[TaskResult]:
    """Run the episodes of tasks in which the same acts, in one batch.

    Args:
        agent: As of `evaluate`.
        sims: Likewise.
        indices: Of the tasks.
        ids: Initial states of each.
        divergences: As of `evaluate`.
    """
    suite, num_episodes = sims[0].suite, len(ids)
    queue_tasks = np.repeat(indices, num_episodes)
    queue_ids = np.tile(ids, len(indices))
    success, has_ended = np.zeros((2, len(queue_tasks)), dtype=bool)
    num_steps = np.zeros(len(queue_tasks), dtype=np.int64)
    # As many slots as a simulation made for these episodes alone would have.
    num_envs = min(sum(sim.num_slots for sim in sims), len(queue_tasks))
    sizes = lane_sizes(num_envs, len(sims))

    def play(lane: int) -> Iterator[None]:
        """Run every episode whose number is the lane's."""
        sim = sims[lane]
        act, running = agent(sim, lane), np.arange(min(sizes[lane], sim.num_slots))
        queue = np.arange(lane, len(queue_tasks), len(sizes))
        episode, queue = queue[: len(running)].copy(), queue[len(running) :]
        sim.reset(running, tasks=queue_tasks[episode], state_ids=queue_ids[episode])
        while len(running):
            result = sim.step_chunk(act(running), running)
            success[episode[running]] = result.success
            num_steps[episode[running]] += result.num_steps
            is_over = result.terminated | result.truncated
            has_ended[episode[running[is_over]]] = True
            refill = running[is_over][: len(queue)]
            episode[refill], queue = queue[: len(refill)], queue[len(refill) :]
            sim.reset(
                refill, tasks=queue_tasks[episode[refill]], state_ids=queue_ids[episode[refill]]
            )
            running = np.concatenate([running[~is_over], refill])
            progress.advance(int(is_over.sum()))
            for line in save_divergences(sim.divergences, divergences):
                progress.print(line)
            yield

    def results() -> list[TaskResult]:
        columns = (queue_ids.tolist(), success.tolist(), num_steps.tolist())
        played = [PlayedEpisode(*episode) for episode in zip(*columns, strict=True)]
        ended = has_ended.tolist()
        found = []
        for number, index in enumerate(indices):
            own = slice(number * num_episodes, (number + 1) * num_episodes)
            task = suite.tasks[index]
            found.append(
                TaskResult(task.name, task.split, tuple(compress(played[own], ended[own])))
            )
        return found

    with track("evaluation", len(queue_tasks)) as progress:
        try:
            run_lanes(play, range(len(sizes)))
        except ForeignError as error:
            raise StoppedEvaluationError(str(error), results()) from error
    return results()
