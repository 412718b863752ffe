"""The order in which tasks are learnt, and what is only ever tested."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Interval

from vla_crl.config import Count, Names, Settings
from vla_crl.continual.success_matrix import MAX_STAGES
from vla_crl.contracts import Split
from vla_crl.errors import ConfigError, unknown_name


@dataclass(frozen=True, kw_only=True)
class TaskStream(Settings):
    """Training tasks in order, held-out tasks, and the budget of each stage.

    Stage `k` (1, 2, ..., T) trains `train_tasks[k - 1]`; stage 0 is the policy before training.
    Where the stream is run through again, stage `T + k` trains that task once more. Of a joint
    stream stage `T` trains all tasks at once, stage `2 T` once more; there are no others.
    """

    train_tasks: Names
    """Tasks trained one after another, in this order."""
    heldout_tasks: tuple[str, ...] = ()
    """Tasks that are evaluated after every stage and never trained."""
    episodes_per_task: Count
    """Budget of one stage: training episodes on its task."""
    rounds: Annotated[int, Interval(ge=1, le=MAX_STAGES)] = 1
    """How often the training tasks are run through, in the same order."""
    joint: bool = False
    """Whether the training tasks are trained at once, with the budgets of all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("train_tasks", "heldout_tasks"):
            names = getattr(self, field)
            for name in dict.fromkeys(names):
                if names.count(name) > 1:
                    raise ConfigError(
                        f"{field}: '{name}' is listed {names.count(name)} times; "
                        "every task may stand in a stream once (rounds repeats the whole stream)"
                    )
        for name in self.heldout_tasks:
            if name in self.train_tasks:
                raise ConfigError(
                    f"stream: '{name}' is both a training and a held-out task; "
                    "remove it from one of train_tasks and heldout_tasks"
                )
        if self.num_stages > MAX_STAGES:
            raise ConfigError(
                f"rounds is {self.rounds}, which makes {self.num_stages} stages of "
                f"{len(self.train_tasks)} tasks; expected at most {MAX_STAGES} stages"
            )

    @property
    def num_stages(self) -> int:
        """The number of the last stage."""
        return self.rounds * len(self.train_tasks)

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks, in the order of the success matrix' columns."""
        return self.train_tasks + self.heldout_tasks

    def stages(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Yield (stage, tasks to train) in order, stage 0 left out."""
        size = len(self.train_tasks) if self.joint else 1
        for number in range(size, self.num_stages + 1, size):
            column = (number - size) % len(self.train_tasks)
            yield number, self.train_tasks[column : column + size]

    def joined(self) -> "TaskStream":
        """Return the stream with all training tasks trained at once."""
        return replace(self, joint=True)

    def split(self, task: str) -> Split:
        """Tell whether a task of the stream is trained or held out.

        Raises:
            ConfigError: The stream has no such task.
        """
        if task not in self.tasks:
            raise unknown_name("stream", "task", task, self.tasks)
        return "train" if task in self.train_tasks else "heldout"
