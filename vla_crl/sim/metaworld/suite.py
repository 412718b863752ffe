"""A suite of Meta-World tasks as data; read without the package `metaworld`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from vla_crl.config import from_mapping, read_toml
from vla_crl.contracts import ARM, Embodiment
from vla_crl.sim.metaworld.config import (
    CONTROL_HZ,
    HAND_CAMERA,
    THINGS,
    WORKSPACE_CAMERA,
    MetaWorldConfig,
    Thing,
)
from vla_crl.sim.task_suite import SuiteTask, TaskSuite


@dataclass(frozen=True, eq=False, kw_only=True)
class MetaWorldTask(SuiteTask):
    """One of Meta-World's tasks; an episode succeeds in the first step that is a success.

    Attributes:
        things: What the instruction names.
    """

    things: tuple[Thing, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class MetaWorldSuite(TaskSuite):
    """Some of Meta-World's tasks, each in a scene of its own."""

    backend: ClassVar[str] = "metaworld"

    config: MetaWorldConfig
    tasks: tuple[MetaWorldTask, ...]

    @property
    def embodiment(self) -> Embodiment:
        """The arm as in the tabletop suites; its hand does not turn."""
        return replace(ARM, cameras=(WORKSPACE_CAMERA, HAND_CAMERA))

    @property
    def film_camera(self) -> str:
        """What people see in videos."""
        return WORKSPACE_CAMERA

    @property
    def control_hz(self) -> float:
        """Control steps per second."""
        return CONTROL_HZ

    @property
    def train_ids(self) -> range:
        """Initial states that training may use; disjoint from `test_ids`."""
        return range(self.config.num_train_states)

    @property
    def test_ids(self) -> range:
        """Initial states kept for evaluation."""
        first = self.config.num_train_states
        return range(first, first + self.config.num_test_states)

    @property
    def things(self) -> tuple[str, ...]:
        """The object to be moved and the goal."""
        return THINGS


def read_metaworld(file: Path) -> MetaWorldSuite:
    """Read a suite.toml with `backend = "metaworld"`.

    Raises:
        ConfigError: The file is not as it should be.
    """
    config = from_mapping(MetaWorldConfig, read_toml(file), str(file))
    return MetaWorldSuite(
        name=file.parent.name,
        description=config.description,
        config=config,
        tasks=tuple(
            MetaWorldTask(
                name=task.name,
                instruction=task.instruction,
                split=task.split,
                horizon=config.horizon,
                things=task.things,
            )
            for task in config.tasks
        ),
    )
