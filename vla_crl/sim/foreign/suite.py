"""A suite of somebody else's environments as data; read without their package."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from vla_crl.config import from_mapping, read_toml
from vla_crl.contracts import ARM, Embodiment, Split
from vla_crl.errors import ConfigError
from vla_crl.sim.foreign.foreign_episode import DEFAULT_TIMEOUT_S, EpisodeSpec
from vla_crl.sim.task_suite import SuiteTask, TaskSuite


@dataclass(frozen=True, kw_only=True)
class ForeignTaskConfig:
    """A task of the environment."""

    name: str
    instruction: str
    split: Split = "train"
    horizon: int | None = None
    """Control steps after which an unsuccessful episode is truncated; None: the suite's."""
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    """What the class of episodes is told of the task when one begins."""


@dataclass(frozen=True, kw_only=True)
class ForeignConfig:
    """Content of a suite.toml with `backend = "foreign"`."""

    description: str
    backend: Literal["foreign"]
    episode: str
    """ "package.module:Class" of a `ForeignEpisode`; the package must be importable."""
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keywords of the class."""
    packages: dict[str, str] = field(default_factory=dict[str, str])
    """Packages that must be there, each with the line that installs it."""
    embodiment: Embodiment = ARM
    """The robot's channels; of action and state in the order of the environment's numbers."""
    film_camera: str | None = None
    """What people see in videos; None: the first camera of the embodiment."""
    control_hz: float
    """Control steps per second."""
    horizon: int
    """Control steps after which an unsuccessful episode is truncated."""
    num_train_states: int
    num_test_states: int
    timeout_s: float = DEFAULT_TIMEOUT_S
    """Longest time that one call of the environment may take."""
    tasks: tuple[ForeignTaskConfig, ...]

    def __post_init__(self) -> None:
        """Check the ranges and that names are unique."""
        horizons = {f"horizon of task '{task.name}'": task.horizon for task in self.tasks}
        counts = {"horizon": self.horizon, **horizons}
        for name in ("num_train_states", "num_test_states"):
            counts[name] = getattr(self, name)
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ConfigError(f"{name} = {count}, expected at least 1")
        for name in ("control_hz", "timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} = {getattr(self, name)}, expected a number above 0")
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) < len(names):
            raise ConfigError("tasks: expected at least one task, and each name once")


@dataclass(frozen=True, eq=False, kw_only=True)
class ForeignSuite(TaskSuite):
    """Tasks of somebody else's environments.

    Attributes:
        config: What its suite.toml says.
    """

    backend: ClassVar[str] = "foreign"

    config: ForeignConfig

    @property
    def embodiment(self) -> Embodiment:
        """The robot's channels."""
        return self.config.embodiment

    @property
    def film_camera(self) -> str:
        """What people see in videos."""
        return self.config.film_camera or self.embodiment.cameras[0]

    @property
    def control_hz(self) -> float:
        """Control steps per second."""
        return self.config.control_hz

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
    def spec(self) -> EpisodeSpec:
        """How workers make episodes."""
        return EpisodeSpec(
            episode=self.config.episode,
            arguments=self.config.arguments,
            task_arguments=tuple(task.arguments for task in self.config.tasks),
            timeout_s=self.config.timeout_s,
        )


def read_foreign(file: Path) -> ForeignSuite:
    """Read a suite.toml with `backend = "foreign"`.

    Raises:
        ConfigError: The file is not as it should be.
    """
    config = from_mapping(ForeignConfig, read_toml(file), str(file))
    return ForeignSuite(
        name=file.parent.name,
        description=config.description,
        config=config,
        tasks=tuple(
            SuiteTask(
                name=task.name,
                instruction=task.instruction,
                split=task.split,
                horizon=task.horizon or config.horizon,
            )
            for task in config.tasks
        ),
    )
