"""A suite of Meta-World tasks as data; read without the package `metaworld`."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import mujoco
import numpy as np

from vla_crl.config import from_mapping, read_toml
from vla_crl.errors import ConfigError
from vla_crl.sim.scene_config import Split
from vla_crl.sim.task_suite import SuiteTask, TaskSuite
from vla_crl.sim.variation import VariationConfig

if TYPE_CHECKING:
    from vla_crl.sim.metaworld.metaworld_sim import MetaWorldSim

Thing = Literal["object", "goal"]
THINGS: tuple[Thing, ...] = ("object", "goal")
"""What every task has: something to be moved, and where to."""
CONTROL_HZ = 80.0
"""Five physics steps of 2.5 ms, fixed by Meta-World."""
MAX_HORIZON = 500
"""Meta-World's own horizon; its environments refuse more steps."""
WORKSPACE_CAMERA, HAND_CAMERA = "agentview", "gripperPOV"


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """Where the camera `agentview` stands; the other one, on the hand, is Meta-World's."""

    position_m: tuple[float, float, float]
    target_m: tuple[float, float, float]
    """The point in the middle of the picture; up is up."""
    fovy_deg: float
    """Vertical field of view."""


@dataclass(frozen=True, kw_only=True)
class MetaWorldTaskConfig:
    """One of Meta-World's tasks."""

    name: str
    """Its name in Meta-World, e.g. "reach-v3"."""
    instruction: str
    split: Split = "train"
    things: tuple[Thing, ...] = THINGS
    """What the instruction names, one or two."""

    def __post_init__(self) -> None:
        """Check the number of things."""
        if not 1 <= len(self.things) <= 2:
            raise ConfigError(f"task '{self.name}': things has {len(self.things)}, expected 1 or 2")


@dataclass(frozen=True, kw_only=True)
class MetaWorldConfig:
    """Content of a suite.toml with `backend = "metaworld"`."""

    description: str
    backend: Literal["metaworld"]
    horizon: int
    """Control steps after which an unsuccessful episode is truncated, at most 500."""
    num_train_states: int
    num_test_states: int
    goal_radius_m: float
    """Size of the ball that marks the goal in pictures; it touches nothing."""
    camera: CameraConfig
    tasks: tuple[MetaWorldTaskConfig, ...]

    def __post_init__(self) -> None:
        """Check the ranges and that names are unique."""
        if not 1 <= self.horizon <= MAX_HORIZON:
            raise ConfigError(f"horizon = {self.horizon}, expected 1 to {MAX_HORIZON}")
        for name in ("num_train_states", "num_test_states"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}, expected at least 1")
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) < len(names):
            raise ConfigError("tasks: expected at least one task, and each name once")


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

    config: MetaWorldConfig
    tasks: tuple[MetaWorldTask, ...]
    _models: dict[int, mujoco.MjModel] = field(default_factory=dict, init=False)

    @property
    def cameras(self) -> tuple[str, ...]:
        """What policies see, in this order."""
        return (WORKSPACE_CAMERA, HAND_CAMERA)

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

    @cached_property
    def things(self) -> tuple[str, ...]:
        """The object to be moved and the goal."""
        return THINGS

    @cached_property
    def scene_of_task(self) -> np.ndarray:
        """[tasks] number of the scene of each task: its own."""
        return np.arange(len(self.tasks))

    def model(self, scene: int) -> mujoco.MjModel:
        """Return what is drawn of a task, compiled when first asked for.

        Raises:
            ConfigError: The package is missing, or has no such task.
        """
        from vla_crl.sim.metaworld.models import drawn_model

        if scene not in self._models:
            self._models[scene] = drawn_model(self.tasks[scene].name, self.config)
        return self._models[scene]

    def simulate(
        self, num_slots: int, *, num_threads: int = 2, image_size: int = 64,
        variation: VariationConfig | None = None,
    ) -> "MetaWorldSim":  # fmt: skip
        """Allocate slots, see `TaskSuite.simulate`."""
        from vla_crl.sim.metaworld.metaworld_sim import MetaWorldSim

        if variation is not None and variation.varies:
            raise ConfigError(
                f"suite '{self.name}': the backend 'metaworld' has no variations; remove them"
            )
        return MetaWorldSim(self, num_slots, num_threads=num_threads, image_size=image_size)


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
