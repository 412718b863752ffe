"""An adapter for each task: the others stay as they are, so nothing is forgotten.

Dynamic weight expansion as compared in Hu et al. 2026, arXiv 2603.11653; per-task adapters with the
task given are TAIL, Liu et al. 2024, arXiv 2310.05905. Which adapter acts in which task is part of
the policy (`TaskRoute`), so a stage's checkpoint acts as it was measured. Forgetting is exactly 0
as long as nothing but adapters and the value head is trained; transfer between tasks is 0 too. What
a head learns to explore with, as those named "gaussian" and "noise" do, is in no adapter and shared
by all tasks: that changes the sampled actions of earlier tasks, never the deterministic ones.
"""

from dataclasses import dataclass
from typing import Any, Literal

from vla_crl.algos.learner import Learner
from vla_crl.config import Settings
from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.method_stage import Stage
from vla_crl.density import Evaluation
from vla_crl.errors import ConfigError

PREFIX = "task_"
"""Of the names of adapters that belong to tasks; the task's number in the suite follows."""


@dataclass(frozen=True, kw_only=True)
class TaskAdaptersConfig(Settings):
    """Settings of `TaskAdapters`."""

    unseen: Literal["base", "last"] = "base"
    """What acts in tasks that were not trained: no adapter of a task, or that of the last one."""


class TaskAdapters(ContinualMethod):
    """Train a new adapter in every stage and let each act in its own task alone."""

    config_class = TaskAdaptersConfig
    config: TaskAdaptersConfig
    paper = "arXiv 2603.11653, arXiv 2310.05905"
    stores = "an adapter a task"
    needs_task_id = True
    owns_adapters = True
    isolates_tasks = True

    def check(self, policy: Any, learner: Learner, evaluation: Evaluation) -> None:
        """Refuse a policy without adapters.

        Raises:
            ConfigError: The recipe makes none.
        """
        if not policy.adapters.names:
            raise ConfigError(
                "method 'task_adapters': the policy has no adapters, of which those of tasks would "
                "be like; give the recipe a section lora"
            )

    def before_task(self, policy: Any, stage: Stage) -> None:
        """Add the adapter of the stage's tasks and train it alone."""
        from vla_crl.models.routes import TaskRoute

        bank = policy.adapters
        common, route = self._common(policy), bank.route
        indices = [stage.suite.task_index(task) for task in stage.tasks]
        name = PREFIX + "_".join(map(str, indices))
        if name not in bank.names:
            bank.add(name, next(iter(bank.layouts.values())))
        scales = {**common, name: 1.0}
        bank.activate(scales, train=(name,))
        told = route.tasks if isinstance(route, TaskRoute) else {}
        default = common if self.config.unseen == "base" else scales
        tasks = {**told, **dict.fromkeys(stage.tasks, scales)}
        bank.route = TaskRoute(tasks=tasks, default=default)
        for unused in [n for n in bank.names if not n.startswith(PREFIX) and n not in common]:
            bank.remove(unused)

    def _common(self, policy: Any) -> dict[str, float]:
        """Return what acts in all tasks: adapters that the policy began with and that are not 0."""
        bank = policy.adapters
        norms = bank.norms()
        return {
            name: scale
            for name, scale in bank.scales.items()
            if not name.startswith(PREFIX) and norms[name] > 0.0
        }
