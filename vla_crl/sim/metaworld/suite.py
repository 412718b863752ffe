"""A suite of Meta-World tasks as data; read without the package `metaworld`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from vla_crl.config import from_mapping, read_toml
from vla_crl.contracts import POSE_STATE, Embodiment
from vla_crl.errors import unknown_name
from vla_crl.sim.metaworld.config import (
    CONTROL_HZ,
    CONTROLLERS,
    HAND_CAMERA,
    OWN_ACTION,
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
    """Some of Meta-World's tasks, each in a scene of its own.

    Attributes:
        config: What its suite.toml says.
        controller: How the robot is commanded, one of `CONTROLLERS`.
    """

    backend: ClassVar[str] = "metaworld"

    config: MetaWorldConfig
    tasks: tuple[MetaWorldTask, ...]
    controller: str = "eef_pose"

    @property
    def embodiment(self) -> Embodiment:
        """Meta-World's arm, which feels what that of the tabletop suites does."""
        cameras = (WORKSPACE_CAMERA, HAND_CAMERA)
        return Embodiment(action=CONTROLLERS[self.controller], state=POSE_STATE, cameras=cameras)

    @property
    def own_numbers(self) -> list[int]:
        """Which numbers of an action are Meta-World's four; the others are without effect."""
        return [self.embodiment.action.index(name) for name in OWN_ACTION]

    @property
    def controllers(self) -> tuple[str, ...]:
        """The pose that all arm suites share, and Meta-World's own four numbers."""
        return tuple(CONTROLLERS)

    def with_controller(self, name: str) -> "MetaWorldSuite":
        """Return the suite with another way to command its robot.

        Raises:
            ConfigError: It has no such controller.
        """
        base = self.name.partition("@")[0]
        if name not in CONTROLLERS:
            raise unknown_name(f"suite '{base}'", "controller", name, CONTROLLERS)
        return replace(self, name=f"{base}@{name}", controller=name)

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
