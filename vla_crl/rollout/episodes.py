"""Which episodes are played, in which order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vla_crl.errors import ConfigError, unknown_name
from vla_crl.rows import Rows
from vla_crl.sim.calls import require_counts
from vla_crl.sim.task_suite import TaskSuite


@dataclass(frozen=True)
class Episodes(Rows):
    """B episodes to be played.

    Attributes:
        task: [B] int64 index of the task in its suite.
        state_id: [B] int64 initial state.
        group: [B] int64; those of one group have one task and one initial state.
    """

    task: Tensor
    state_id: Tensor
    group: Tensor


def evaluated(
    suite: TaskSuite, tasks: Sequence[str] | None, num_episodes: int, states: str
) -> tuple[list[int], range]:
    """Return the indices of the tasks, and the initial states, that an evaluation is asked for.

    Raises:
        ConfigError: An unknown task or kind of states, no task or one twice, or more episodes than
            states.
    """
    require_counts("evaluate", num_episodes=num_episodes)
    if states not in ("test", "train"):
        raise unknown_name("evaluate", "states", states, ("test", "train"))
    if tasks is not None and (isinstance(tasks, str) or not tasks):
        raise ConfigError(
            f"evaluate: tasks is {tasks!r}, expected a list of names, or None for all"
        )
    if tasks and len(set(tasks)) < len(tasks):
        raise ConfigError(f"evaluate: a task is named twice: {', '.join(tasks)}")
    ids = suite.test_ids if states == "test" else suite.train_ids
    if not 1 <= num_episodes <= len(ids):
        raise ConfigError(
            f"evaluate: {num_episodes} episodes a task, but suite '{suite.name}' has {states} "
            f"states for 1 to {len(ids)}"
        )
    names = tasks or [task.name for task in suite.tasks]
    return [suite.task_index(name) for name in names], ids[:num_episodes]


class EpisodeSource(Protocol):
    """An endless sequence of episodes, the same whenever it is begun again.

    Attributes:
        num_drawn: How many were drawn: all of its state. Another number goes on from there.
    """

    num_drawn: int

    def next(self, num: int) -> Episodes:
        """Draw the next `num` episodes."""
        ...


class ShuffledStates:
    """Tasks in turn, each on all initial states in random order, once before any again.

    The tasks meet the states in the same order. So each begins as many episodes as any other,
    however early those of one end.
    """

    def __init__(self, tasks: Sequence[int], ids: Sequence[int], seed: int | Sequence[int]) -> None:
        """Begin the sequence.

        Args:
            tasks: Indices in the suite.
            ids: Initial states.
            seed: Of their order.

        Raises:
            ConfigError: There is no task or no state.
        """
        if not tasks or not ids:
            raise ConfigError(
                f"ShuffledStates: got {len(tasks)} tasks and {len(ids)} initial states, expected "
                "at least one of each"
            )
        self.num_drawn = 0
        self._tasks, self._ids = np.array(tasks, np.int64), np.array(ids, np.int64)
        self._rng = np.random.default_rng(seed)
        self._orders: list[np.ndarray] = []

    def next(self, num: int) -> Episodes:
        """Draw the next `num` episodes, each a group of its own."""
        position = np.arange(self.num_drawn, self.num_drawn + num)
        self.num_drawn += num
        rounds, turn = np.divmod(position, len(self._tasks))
        again, place = np.divmod(rounds, len(self._ids))
        while len(self._orders) <= again.max(initial=-1):
            self._orders.append(self._rng.permutation(self._ids))
        ids = [self._orders[a][p] for a, p in zip(again.tolist(), place.tolist(), strict=True)]
        return Episodes(
            torch.from_numpy(self._tasks[turn]),
            torch.tensor(ids, dtype=torch.int64),
            torch.from_numpy(position),
        )


class Groups:
    """Every episode of a source several times, as one group."""

    def __init__(self, source: EpisodeSource, size: int) -> None:
        """Begin the sequence.

        Args:
            source: At its beginning; nobody else draws from it.
            size: Episodes of a group.

        Raises:
            ConfigError: The size is below 1.
        """
        if size < 1:
            raise ConfigError(f"Groups: size is {size}, expected at least 1")
        self._source, self._size = source, size
        self.num_drawn = 0

    def next(self, num: int) -> Episodes:
        """Draw the next `num` episodes; the last group may be continued by the next call."""
        group = torch.arange(self.num_drawn, self.num_drawn + num) // self._size
        self.num_drawn += num
        first = int(group[0]) if num else 0
        self._source.num_drawn = first
        episodes = self._source.next(int(group[-1]) + 1 - first if num else 0)[group - first]
        return Episodes(episodes.task, episodes.state_id, group)


def shuffled_lanes(
    suite: TaskSuite, tasks: Sequence[int], num_lanes: int, seed: int
) -> list[EpisodeSource]:
    """Return a source for each lane, with a share of the suite's training states.

    Args:
        suite: What the tasks are of.
        tasks: Indices.
        num_lanes: With more lanes than states, each has all of them.
        seed: Of the order.
    """
    ids = suite.train_ids
    return [
        ShuffledStates(tasks, ids[lane::num_lanes] or ids, (seed, lane))
        for lane in range(num_lanes)
    ]
