"""The order in which tasks are learnt, and what is only ever tested."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vla_crl.continual.success_matrix import Split
from vla_crl.errors import ConfigError, unknown_name


@dataclass(frozen=True, kw_only=True)
class TaskStream:
    """Training tasks in order, held-out tasks, and the budget of each stage.

    Stage `k` (1, 2, ..., T) trains `train_tasks[k - 1]`; stage 0 is the policy before training.
    """

    train_tasks: tuple[str, ...]
    """Tasks trained one after another, in this order."""
    heldout_tasks: tuple[str, ...] = ()
    """Tasks that are evaluated after every stage and never trained."""
    episodes_per_task: int
    """Budget of one stage: training episodes on its task."""

    def __post_init__(self) -> None:
        if not self.train_tasks:
            raise ConfigError("stream.train_tasks is empty; name at least one task to train")
        for field in ("train_tasks", "heldout_tasks"):
            names = getattr(self, field)
            for name in dict.fromkeys(names):
                if names.count(name) > 1:
                    raise ConfigError(
                        f"stream.{field}: '{name}' is listed {names.count(name)} times; "
                        "every task may stand in a stream once"
                    )
        for name in self.heldout_tasks:
            if name in self.train_tasks:
                raise ConfigError(
                    f"stream: '{name}' is both a training and a held-out task; "
                    "remove it from one of train_tasks and heldout_tasks"
                )
        if self.episodes_per_task < 1:
            raise ConfigError(
                f"stream.episodes_per_task is {self.episodes_per_task}; it must be at least 1"
            )

    @property
    def num_stages(self) -> int:
        """The number of training stages T, stage 0 not counted."""
        return len(self.train_tasks)

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks, in the order of the success matrix' columns."""
        return self.train_tasks + self.heldout_tasks

    def stages(self) -> Iterator[tuple[int, str]]:
        """Yield (stage, task to train), from stage 1 on."""
        return enumerate(self.train_tasks, start=1)

    def split(self, task: str) -> Split:
        """Tell whether a task of the stream is trained or held out.

        Raises:
            ConfigError: The stream has no such task.
        """
        self._check_known(task, self.tasks)
        return "train" if task in self.train_tasks else "heldout"

    def permuted(self, seed: int) -> "TaskStream":
        """Return the stream with its training tasks in a random order fixed by `seed`.

        The order is the same on every platform and Python version: it relies only on
        `random.Random.random`, whose sequence Python guarantees.
        """
        generator = random.Random(seed)
        draws = {task: generator.random() for task in self.train_tasks}
        return replace(self, train_tasks=tuple(sorted(self.train_tasks, key=draws.__getitem__)))

    def single(self, task: str) -> "TaskStream":
        """Return the reference stream that trains one task only.

        The other training tasks become held-out, so that the same columns are evaluated.

        Raises:
            ConfigError: `task` is not a training task of the stream.
        """
        self._check_known(task, self.train_tasks)
        others = tuple(name for name in self.train_tasks if name != task)
        return replace(self, train_tasks=(task,), heldout_tasks=others + self.heldout_tasks)

    @staticmethod
    def _check_known(task: str, known: tuple[str, ...]) -> None:
        if task not in known:
            raise unknown_name("stream", "task", task, known)
