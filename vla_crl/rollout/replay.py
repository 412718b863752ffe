"""To see an episode again exactly as it went: what an agent did, and doing it once more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_crl.rollout.agents import Act, Agent, SameInAllTasks, TaskGroup
from vla_crl.sim.simulation import Simulation
from vla_crl.sim.task_suite import TaskSuite

Recording = Mapping[tuple[int, int], list[np.ndarray]]
"""From task index and initial state to the chunks of actions [K, A] of an episode."""


@dataclass(frozen=True)
class RecordingAgent:
    """Remembers what another agent does, in one episode of each task and initial state."""

    agent: Agent
    chunks: dict[tuple[int, int], list[np.ndarray]] = field(default_factory=dict)

    @property
    def image_size(self) -> int:
        """That of the other agent."""
        return self.agent.image_size

    def description(self, suite: TaskSuite) -> dict[str, Any]:
        """Return that of the other agent."""
        return self.agent.description(suite)

    def groups(self, tasks: Sequence[str]) -> list[TaskGroup]:
        """Return those of the other agent."""
        return self.agent.groups(tasks)

    def __call__(self, sim: Simulation, lane: int = 0) -> Act:
        """Return what acts in `sim`."""
        act = self.agent(sim, lane)

        def remember(slots: np.ndarray) -> np.ndarray:
            chunks = act(slots)
            episodes = zip(sim.tasks[slots].tolist(), sim.state_ids[slots].tolist(), strict=True)
            for episode, chunk in zip(episodes, chunks, strict=True):
                self.chunks.setdefault(episode, []).append(chunk.copy())
            return chunks

        return remember


@dataclass(frozen=True)
class ReplayingAgent(SameInAllTasks):
    """Does what was recorded; all episodes begin when it begins to act."""

    recording: Recording
    image_size: int
    """Height and width of what it is shown, pixels; it does not look."""

    def description(self, suite: TaskSuite) -> dict[str, Any]:
        """Return how it acts."""
        return {"actions": "recorded"}

    def __call__(self, sim: Simulation, lane: int = 0) -> Act:
        """Return what acts in `sim`."""
        num_acted = np.zeros(sim.num_slots, dtype=int)

        def act(slots: np.ndarray) -> np.ndarray:
            episodes = zip(sim.tasks[slots].tolist(), sim.state_ids[slots].tolist(), strict=True)
            places = zip(episodes, num_acted[slots].tolist(), strict=True)
            num_acted[slots] += 1
            return np.stack([self.recording[episode][number] for episode, number in places])

        return act
