"""Demonstrations of single tasks while a run trains."""

from dataclasses import replace

from vla_crl.rollout.demonstrations import Demonstrations, collect_demonstrations
from vla_crl.sim.task_suite import TaskSuite


class Demonstrated:
    """Collects the scripted expert's episodes on a task when they are first asked for."""

    def __init__(self, suite: TaskSuite, *, image_size: int, num_threads: int, seed: int) -> None:
        """Collect nothing yet.

        Args:
            suite: What tasks are of.
            image_size: Height and width of each picture.
            num_threads: For physics and rendering.
            seed: Of perturbations and of the order of training states.
        """
        self._suite, self._seed = suite, seed
        self._image_size, self._num_threads = image_size, num_threads
        self._kept: dict[tuple[str, int], Demonstrations] = {}

    def __call__(self, task: str, num_episodes: int) -> Demonstrations:
        """Return so many episodes, on training states; the same ones for the same call.

        Raises:
            ConfigError: The suite has no such task, or no expert.
        """
        key = task, num_episodes
        if key not in self._kept:
            alone = replace(self._suite, tasks=(self._suite.tasks[self._suite.task_index(task)],))
            self._kept[key] = collect_demonstrations(
                alone,
                num_episodes,
                seed=self._seed,
                image_size=self._image_size,
                num_threads=self._num_threads,
            )
        return self._kept[key]
