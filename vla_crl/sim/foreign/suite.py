"""A suite of somebody else's environments as data; read without their package."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from vla_crl.config import Settings, from_mapping, read_toml
from vla_crl.contracts import ARM, Embodiment, Split
from vla_crl.errors import ConfigError
from vla_crl.sim.foreign.foreign_episode import DEFAULT_TIMEOUT_S, EpisodeSpec
from vla_crl.sim.task_suite import ControlRate, Horizon, NumStates, SuiteTask, TaskSuite


@dataclass(frozen=True, kw_only=True)
class ForeignTaskConfig(Settings):
    """A task of the environment."""

    name: str
    instruction: str
    split: Split = "train"
    horizon: Horizon | None = None
    """Control steps after which an unsuccessful episode is truncated; None: the suite's."""
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    """What the class of episodes is told of the task when one begins."""


@dataclass(frozen=True, kw_only=True)
class ForeignConfig(Settings):
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
    control_hz: ControlRate
    """Control steps per second."""
    horizon: Horizon
    """Control steps after which an unsuccessful episode is truncated."""
    num_train_states: NumStates
    num_test_states: NumStates
    timeout_s: Annotated[float, Interval(gt=0, le=1e6)] = DEFAULT_TIMEOUT_S
    """Longest time that one call of the environment may take."""
    tasks: tuple[ForeignTaskConfig, ...]

    def __post_init__(self) -> None:
        """Check that names are unique."""
        super().__post_init__()
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
