"""Who may act in a simulation: a policy, or the scripted expert."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from vla_crl.errors import ConfigError
from vla_crl.models.adapters import acting_alike, adapters_merged
from vla_crl.models.policy import ActionChunk, VLAPolicy
from vla_crl.models.weights import weights_fingerprint
from vla_crl.rollout.lanes import lane_generator
from vla_crl.sim.backends import expert_of
from vla_crl.sim.simulation import Simulation
from vla_crl.sim.task_suite import TaskSuite

Act = Callable[[np.ndarray], np.ndarray]
"""From slots [B] to their next actions [B, K, A]."""


class TaskGroup(NamedTuple):
    """Tasks that may share a batch.

    Attributes:
        tasks: Names.
        acting: Context in which the agent acts as it does in them; to be entered once.
    """

    tasks: tuple[str, ...]
    acting: AbstractContextManager[None]


class Agent(Protocol):
    """Takes its place in a simulation; what it draws there is the lane's own."""

    @property
    def image_size(self) -> int:
        """Height and width, in pixels, of the camera images that it has to be shown."""
        ...

    def description(self, suite: TaskSuite) -> dict[str, Any]:
        """Return what of it a result in the suite depends on, for `fingerprint`."""
        ...

    def groups(self, tasks: Sequence[str]) -> list[TaskGroup]:
        """Divide tasks into those in which it acts as the same one, on all lanes at once."""
        ...

    def __call__(self, sim: Simulation, lane: int = 0) -> Act:
        """Return what acts in `sim`."""
        ...


class SameInAllTasks:
    """Base of agents that do not look at the task."""

    def groups(self, tasks: Sequence[str]) -> list[TaskGroup]:
        """Return all tasks as one group."""
        return [TaskGroup(tuple(tasks), nullcontext())]


@dataclass(frozen=True)
class PolicyAgent:
    """Lets a policy act."""

    policy: VLAPolicy
    deterministic: bool
    """Take the head's mode, as of a flow its ODE's end; otherwise sample as in training."""
    seed: int = 0
    """Of sampling; without effect on deterministic actions."""

    @property
    def image_size(self) -> int:
        """What the policy was built for."""
        return self.policy.config.image_size

    def description(self, suite: TaskSuite) -> dict[str, Any]:
        """Return its weights, what it sees, how it acts."""
        return {
            "weights": weights_fingerprint(self.policy),
            "actions": "deterministic" if self.deterministic else f"sampled, seed {self.seed}",
            "image_size": self.image_size,
            "executed_actions": suite.executed_chunk or self.policy.config.execution_horizon,
        }

    def groups(self, tasks: Sequence[str]) -> list[TaskGroup]:
        """Divide tasks by the adapters that act in them.

        Raises:
            ConfigError: The policy's route says nothing of one.
        """
        groups = acting_alike(self.policy, tasks)
        return [TaskGroup(tuple(group), self._acting(group[0])) for group in groups]

    @contextmanager
    def _acting(self, task: str) -> Iterator[None]:
        with self.policy.adapters.routed(task), adapters_merged(self.policy):
            yield

    def __call__(self, sim: Simulation, lane: int = 0) -> Act:
        """Return what acts in `sim`.

        Raises:
            ConfigError: The suite executes more actions of a chunk than the policy gives.
        """
        generator, num_actions = lane_generator(self.seed, lane), sim.suite.executed_chunk
        given = self.policy.config.action_horizon
        if num_actions is not None and num_actions > given:
            raise ConfigError(
                f"suite '{sim.suite.name}': executes {num_actions} actions of a chunk, but the "
                f"policy's action_horizon is {given}; choose another protocol or policy"
            )

        @torch.no_grad()
        def act(slots: np.ndarray) -> np.ndarray:
            context = self.policy.encode(sim.observe(slots))
            chunk = self.policy.act(context, deterministic=self.deterministic, generator=generator)
            return executed(self.policy, chunk, num_actions)

        return act


class ExpertAgent(SameInAllTasks):
    """Lets the scripted expert act, one control step at a time."""

    image_size = 64
    """It looks at no picture."""

    def description(self, suite: TaskSuite) -> dict[str, Any]:
        """Return how it acts."""
        return {"actions": "scripted", "executed_actions": 1}

    def __call__(self, sim: Simulation, lane: int = 0) -> Act:
        """Return what acts in `sim`."""
        expert = expert_of(sim)
        return lambda slots: expert.act(slots)[:, None]


def act_by_task(agent: Agent, sim: Simulation) -> Act:
    """Return what acts in slots of several tasks at once; for a simulation that is the only lane.

    In each task the agent acts as it does there, whatever the other slots play.
    """
    act, names = agent(sim), [task.name for task in sim.suite.tasks]

    def act_in_turn(slots: np.ndarray) -> np.ndarray:
        tasks = np.array(names)[sim.tasks[slots]]
        chunks: dict[int, np.ndarray] = {}
        for group in agent.groups(list(dict.fromkeys(tasks.tolist()))):
            own = slots[np.isin(tasks, group.tasks)]
            with group.acting:
                chunks |= zip(own.tolist(), act(own), strict=True)
        return np.stack([chunks[slot] for slot in slots.tolist()])

    return act_in_turn


def executed(policy: VLAPolicy, chunk: ActionChunk, num_actions: int | None = None) -> np.ndarray:
    """Return the actions [B, K, A] of chunks that are executed, where simulations take them.

    Args:
        policy: Whose chunks they are.
        chunk: What it gave.
        num_actions: K; by default the policy's own.
    """
    return chunk.actions[:, : num_actions or policy.config.execution_horizon].cpu().numpy()
