"""How episodes of training ended: columns that lanes and workers can join, and what they say."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vla_crl.rows import Rows


@dataclass(frozen=True)
class Outcomes(Rows):
    """E episodes that ended, on the CPU.

    Attributes:
        begun: [E] int64 number of the chunk, of the whole stage, with which it began.
        episode: [E] int64 its number in the stage.
        task: [E] int64 index of the task in the suite.
        state_id: [E] int64 initial state.
        group: [E] int64, see `Batch`.
        num_steps: [E] int64 control steps it took.
        success: [E] bool.
    """

    begun: Tensor
    episode: Tensor
    task: Tensor
    state_id: Tensor
    group: Tensor
    num_steps: Tensor
    success: Tensor

    @classmethod
    def none(cls) -> "Outcomes":
        """Return no episode."""
        number = torch.zeros(0, dtype=torch.int64)
        return cls(number, number, number, number, number, number, number.bool())


class RecentSuccess:
    """Fraction of successes among the latest episodes that have had the time to fail.

    These are at least one a slot, begun an episode's greatest length ago or earlier. Among whatever
    ended lately successes would be too many, as they end early.

    Attributes:
        outcomes: Of those that may still count.
    """

    def __init__(self, num_slots: int, max_chunks: int) -> None:
        """Begin without any.

        Args:
            num_slots: N.
            max_chunks: Of an episode.
        """
        self.outcomes = Outcomes.none()
        self._num_slots, self._max_chunks = num_slots, max_chunks

    def update(self, ended: Outcomes, clock: int) -> float:
        """Take episodes in and return the fraction; NaN until enough must be over.

        Args:
            ended: Since the last call.
            clock: Chunks so far.
        """
        self.outcomes = Outcomes.cat([self.outcomes, ended])
        begun = self.outcomes.begun
        over = begun[begun <= clock - self._max_chunks].sort().values
        if len(over) < self._num_slots:
            return float("nan")
        self.outcomes = self.outcomes[begun >= over[-self._num_slots]]
        latest = self.outcomes.success[self.outcomes.begun <= over[-1]]
        return int(latest.sum()) / len(latest)
