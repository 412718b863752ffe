"""The episodes that a simulation and its peers play, so that all do the same work."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from vla_crl.sim.simulation import Simulation
from vla_crl.sim.task_suite import TaskSuite

CHUNK_STEPS = 4
"""Control steps between two observations, unless a workload says otherwise."""
IMAGE_SIZE = 64

Turn = Callable[[], float]
"""Plays a workload once and returns control steps per second, or another rate."""


@dataclass(frozen=True, eq=False)
class Workload:
    """Slot i plays actions i from an initial state of its own; what has ended begins again.

    Attributes:
        suite: Name in the catalogue.
        tasks: [N] task indices.
        state_ids: [N] initial states.
        actions: [N, T, A], T a multiple of `chunk_steps`.
        chunk_steps: Control steps between two observations.
    """

    suite: str
    tasks: np.ndarray
    state_ids: np.ndarray
    actions: np.ndarray
    chunk_steps: int = CHUNK_STEPS


def random_workload(
    suite: TaskSuite, tasks: Sequence[int], num_slots: int, num_steps: int, *, chunk_steps: int
) -> Workload:
    """Return random actions from test states: slot i plays the same, however many there are.

    Args:
        suite: Whose tasks.
        tasks: Indices of tasks, taken in turn.
        num_slots: N.
        num_steps: T, a multiple of `chunk_steps`.
        chunk_steps: Control steps between two observations.
    """
    num_actions = len(suite.embodiment.action)
    rounds = np.arange(num_slots) // len(tasks)
    return Workload(
        suite.name,
        np.resize(tasks, num_slots),
        np.array(suite.test_ids)[rounds % len(suite.test_ids)],
        np.array(
            [
                np.random.default_rng(slot).uniform(-1.0, 1.0, (num_steps, num_actions))
                for slot in range(num_slots)
            ]
        ),
        chunk_steps,
    )


def play(workload: Workload, sim: Simulation, *, is_seen: bool) -> float:
    """Play a workload in chunks and return control steps per second.

    Args:
        workload: With as many slots as `sim`.
        sim: Where; its episodes are lost.
        is_seen: Whether the cameras are observed before every chunk, or only the robot's state.
    """
    slots, num_steps, chunk_steps = np.arange(sim.num_slots), 0, workload.chunk_steps
    sim.reset(slots, tasks=workload.tasks, state_ids=workload.state_ids)
    start = time.perf_counter()
    for step in range(0, workload.actions.shape[1], chunk_steps):
        sim.observe(images=is_seen)
        result = sim.step_chunk(workload.actions[:, step : step + chunk_steps])
        num_steps += int(result.num_steps.sum())
        over = slots[result.terminated | result.truncated]
        sim.reset(over, tasks=workload.tasks[over], state_ids=workload.state_ids[over])
    return num_steps / (time.perf_counter() - start)


def alternate(turns: Sequence[Turn], num_repeats: int) -> list[float]:
    """Return the median rate of each; all take their turns one after the other, again and again.

    Each has an untimed turn first, which compiles, or loads from the disk, and fills the caches.
    """
    for turn in turns:
        turn()
    rates = [[turn() for turn in turns] for _ in range(num_repeats)]
    return [median(column) for column in zip(*rates, strict=True)]
