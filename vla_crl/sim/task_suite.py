"""What all suites are, whatever simulates them: tasks, a robot, initial states."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Interval

from vla_crl.contracts import Embodiment, Split
from vla_crl.errors import ConfigError, unknown_name

Horizon = Annotated[int, Interval(ge=1, le=100_000)]
"""Control steps of an episode."""
NumStates = Annotated[int, Interval(ge=1, le=100_000)]
"""Initial states of a kind: they may be computed together, when one of them is first needed."""
ControlRate = Annotated[float, Interval(ge=0.1, le=10_000)]
"""Control steps per second."""
MAX_INSTRUCTION_LENGTH = 200
"""Characters; the same for all suites, so that their observation spaces agree."""


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
    """Tasks of one robot that share control rate and the numbers of their initial states."""

    backend: ClassVar[str]
    """What simulates it: a name in `vla_crl.sim.backends.BACKENDS`, or "package.module:attribute"
    of a `Backend`."""

    name: str
    description: str
    tasks: tuple[SuiteTask, ...]
    """Elsewhere a task index is a position in this tuple."""

    @property
    @abstractmethod
    def embodiment(self) -> Embodiment:
        """What policies see, feel and do."""

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

    @property
    def things(self) -> tuple[str, ...]:
        """What instructions talk about, where the backend can tell where it is."""
        return ()

    @property
    def controllers(self) -> tuple[str, ...]:
        """Ways to command the robot, the suite's own first; each has an embodiment."""
        return ()

    def with_controller(self, name: str) -> "TaskSuite":
        """Return the suite with another way to command its robot; its name tells which.

        Raises:
            ConfigError: It has no such controller.
        """
        raise unknown_name(f"suite '{self.name}'", "controller", name, self.controllers)

    @property
    def trials(self) -> int:
        """Episodes a task that an evaluation runs unless told otherwise."""
        return 100

    @property
    def executed_chunk(self) -> int | None:
        """Actions of a chunk that an evaluation executes; None: as the policy says."""
        return None

    @property
    def conditions(self) -> dict[str, Any]:
        """What a result depends on beside tasks, initial states and horizon; as JSON."""
        return {}

    @property
    def pictures(self) -> str:
        """What is peculiar to the pictures: policies fail on those of another kind; "": nothing."""
        return ""

    @property
    def options(self) -> tuple[str, ...]:
        """What may follow an @ in the suite's name."""
        return self.controllers

    def with_option(self, name: str) -> "TaskSuite":
        """Return the suite with something other than usual; its name tells what.

        Raises:
            ConfigError: It has no such option.
        """
        return self.with_controller(name)

    @property
    def protocols(self) -> tuple[str, ...]:
        """How others measure on it: those of its options that an evaluation may name."""
        return ()

    def with_protocol(self, name: str) -> "TaskSuite":
        """Return the suite as others measure on it; its name tells how.

        Raises:
            ConfigError: It has no protocols, no such one, or has one already.
        """
        if not self.protocols:
            raise ConfigError(
                f"suite '{self.name}' has no protocols, got '{name}'; those of LIBERO have some "
                "(envs/libero_spatial/README.md)"
            )
        if name in self.options and name not in self.protocols:
            raise ConfigError(
                f"'{name}' is no protocol but another option of the suite, expected one of "
                f"{', '.join(self.protocols)}; name it as --suite {self.name}@{name}"
            )
        if name not in self.protocols:
            raise unknown_name(f"suite '{self.name}'", "protocol", name, self.protocols)
        return self.with_option(name)

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
