"""What an evaluation found, episode by episode."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vla_crl.contracts import Split


class PlayedEpisode(NamedTuple):
    """How one episode ended.

    Attributes:
        state_id: Initial state.
        success: Whether it succeeded.
        num_steps: Control steps it took.
    """

    state_id: int
    success: bool
    num_steps: int


@dataclass(frozen=True)
class TaskResult:
    """How the episodes of one task ended.

    Attributes:
        task: Name.
        split: Its.
        played: One a state, in the order of the states; where an evaluation was stopped, those
            that had ended.
    """

    task: str
    split: Split
    played: tuple[PlayedEpisode, ...]

    @property
    def successes(self) -> int:
        """How many succeeded."""
        return sum(episode.success for episode in self.played)

    @property
    def episodes(self) -> int:
        """How many ended."""
        return len(self.played)


def episode_rows(
    results: Sequence[TaskResult], *, stage: int | str, seed: int
) -> Iterator[tuple[object, ...]]:
    """Yield the lines of `EVALUATION_COLUMNS` on an evaluation.

    Args:
        results: What `evaluate` returned.
        stage: After which it was; "" outside of a run.
        seed: Of the run.
    """
    for result in results:
        for state_id, success, num_steps in result.played:
            yield stage, result.task, state_id, int(success), num_steps, seed
