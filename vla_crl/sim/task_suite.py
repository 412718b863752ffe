"""What all suites are, whatever simulates them: tasks, initial states, cameras."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import mujoco
import numpy as np

from vla_crl.errors import ConfigError, unknown_name
from vla_crl.sim.renderer import BatchRenderer
from vla_crl.sim.scene_config import Split
from vla_crl.sim.variation import VariationConfig

if TYPE_CHECKING:
    from vla_crl.sim.simulation import ScriptedSimulation


@dataclass(frozen=True, eq=False, kw_only=True)
class SuiteTask:
    """One instruction with its success condition.

    Attributes:
        name: Unique in the suite.
        instruction: What the policy is told.
        split: "train" or "heldout".
        horizon: Control steps after which an unsuccessful episode is truncated.
    """

    name: str
    instruction: str
    split: Split
    horizon: int


@dataclass(frozen=True, eq=False, kw_only=True)
class TaskSuite(ABC):
    """Tasks that share cameras, control rate and the numbers of their initial states.

    Tasks take place in scenes, numbered from 0.
    """

    name: str
    description: str
    tasks: tuple[SuiteTask, ...]
    """Elsewhere a task index is a position in this tuple."""

    @property
    @abstractmethod
    def cameras(self) -> tuple[str, ...]:
        """What policies see, in this order."""

    @property
    @abstractmethod
    def film_camera(self) -> str:
        """What people see in videos."""

    @property
    @abstractmethod
    def control_hz(self) -> float:
        """Control steps per second."""

    @property
    @abstractmethod
    def train_ids(self) -> range:
        """Initial states that training may use; disjoint from `test_ids`."""

    @property
    @abstractmethod
    def test_ids(self) -> range:
        """Initial states kept for evaluation."""

    def require_states(self, **counts: int) -> None:
        """Check before the work that there are as many test states as settings ask for.

        Raises:
            ConfigError: There are fewer; names the setting.
        """
        for name, count in counts.items():
            if count > len(self.test_ids):
                raise ConfigError(
                    f"{name} is {count}, but suite '{self.name}' has {len(self.test_ids)} test "
                    "states"
                )

    @cached_property
    @abstractmethod
    def things(self) -> tuple[str, ...]:
        """What instructions talk about."""

    @cached_property
    @abstractmethod
    def scene_of_task(self) -> np.ndarray:
        """[tasks] number of the scene of each task."""

    @abstractmethod
    def model(self, scene: int) -> mujoco.MjModel:
        """Return what is drawn of a scene."""

    @abstractmethod
    def simulate(
        self, num_slots: int, *, num_threads: int = 2, image_size: int = 64,
        variation: VariationConfig | None = None,
    ) -> "ScriptedSimulation":  # fmt: skip
        """Allocate slots on the CPU; they must be reset before use.

        Args:
            num_slots: N.
            num_threads: Threads for physics and rendering.
            image_size: Height and width of each camera image, pixels.
            variation: Of all tasks that have none of their own.

        Raises:
            ConfigError: A count is not positive, or the backend has no variations or is missing.
        """

    @property
    def horizon(self) -> int:
        """Control steps of the longest task."""
        return max(task.horizon for task in self.tasks)

    def tasks_of(self, split: Split) -> Sequence[SuiteTask]:
        """Return the tasks of one split, in the suite's order."""
        return tuple(task for task in self.tasks if task.split == split)

    def task_index(self, name: str) -> int:
        """Return the position of a task in `tasks`.

        Raises:
            ConfigError: No such task; names the nearest one.
        """
        names = [task.name for task in self.tasks]
        if name not in names:
            raise unknown_name(f"suite '{self.name}'", "task", name, names)
        return names.index(name)


def make_renderers(
    suite: TaskSuite, cameras: Sequence[str], image_size: int, scenes: Iterable[int]
) -> dict[int, BatchRenderer]:
    """Build a renderer of square images for each of the named scenes of a suite."""
    return {
        scene: BatchRenderer(suite.model(scene), cameras, image_size, image_size)
        for scene in map(int, scenes)
    }
