"""Chunks of successful episodes, also of those that go on over the end of a rollout."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from vla_crl.algos.protocols import Rollout
from vla_crl.continual.records import Records
from vla_crl.files.state_dicts import join_states, part_of
from vla_crl.rows import Rows


class SuccessfulChunks:
    """Holds chunks of episodes that are not over until it is known how they end.

    Without it the first chunks of most episodes were lost: a rollout is shorter than an episode, or
    ends in the middle of one.
    """

    def __init__(self) -> None:
        """Begin with no open episode."""
        self._open: Records | None = None
        self._episodes, self._tasks = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def begin(self) -> None:
        """Forget open episodes: those of a new stage have their numbers."""
        self.__init__()

    def of(self, rollout: Rollout, rows: Rows) -> Iterator[tuple[int, Records]]:
        """Yield chunks whose episodes are now known to have succeeded, task by task.

        Args:
            rollout: Finished.
            rows: [T N] what is wanted of its chunks.
        """
        valid = rollout.valid.reshape(-1).cpu()
        episodes, success = rollout.episodes.reshape(-1).cpu(), rollout.successes.reshape(-1).cpu()
        wanted = valid & ~(success == 0.0)  # succeeded, or not over
        index = wanted.nonzero()[:, 0].to(rollout.valid.device)
        fresh = Records.of(rows[index])
        tasks = rollout.steps.task.cpu()
        ended = valid & ~success.isnan()
        outcome = dict(zip(episodes[ended].tolist(), success[ended].tolist(), strict=True))
        data = [*(self._open.data if self._open else ()), *fresh.data]
        of_episode = np.concatenate([self._episodes, episodes[wanted].numpy()])
        of_task = np.concatenate([self._tasks, tasks[wanted].numpy()])
        ends = np.array([outcome.get(episode, np.nan) for episode in of_episode.tolist()])
        still_open = np.flatnonzero(np.isnan(ends))
        self._open = Records(fresh.layout, [data[row] for row in still_open])
        self._episodes, self._tasks = of_episode[still_open], of_task[still_open]
        for task in np.unique(of_task[ends == 1.0]).tolist():
            chosen = np.flatnonzero((ends == 1.0) & (of_task == task))
            yield task, Records(fresh.layout, [data[row] for row in chosen])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the chunks of open episodes; empty before the first rollout."""
        if self._open is None:
            return {}
        places = {
            "episodes": torch.from_numpy(self._episodes),
            "tasks": torch.from_numpy(self._tasks),
        }
        return join_states({"records": self._open.as_tensors()}) | places

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            CheckpointError: It is something else.
        """
        self.begin()
        if state:
            self._open = Records.from_tensors(part_of(state, "records"), "successful chunks")
            self._episodes, self._tasks = state["episodes"].numpy(), state["tasks"].numpy()
