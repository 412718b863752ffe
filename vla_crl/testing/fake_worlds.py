"""A toy backend in numpy alone, for robots of any channels: an example, and a suite for fast tests.

A hand slides over a square table with a few coloured squares on it; a task is to reach the square
of one colour. A suite.toml needs this, and may say whatever else `FakeConfig` knows:

    description = "Squares to be reached."
    backend = "vla_crl.testing.fake_worlds:BACKEND"

    [embodiment]
    action = ["delta_x", "delta_y", "gripper"]
    state = ["x", "y"]
    cameras = ["top", "side"]
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from vla_crl.config import Settings, from_mapping, read_toml
from vla_crl.contracts import Embodiment
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.sim.backends import Backend
from vla_crl.sim.task_suite import Horizon, NumStates, SuiteTask, TaskSuite

Colour = Literal["red", "green", "blue", "yellow"]
Extra = Literal["Grounded", "Filmed", "Resumable"]

BACKEND = Backend(
    read="vla_crl.testing.fake_worlds:read_fake",
    simulators={"cpu": "vla_crl.testing.fake_sim:make_sim"},
    expert="vla_crl.testing.fake_sim:FakeExpert",
)
"""What `backend` in a suite.toml names."""
WITHOUT_EXPERT = replace(BACKEND, expert=None)
"""The same without a scripted expert."""


@dataclass(frozen=True, kw_only=True)
class FakeConfig(Settings):
    """Content of a suite.toml with `backend = "vla_crl.testing.fake_worlds:BACKEND"`."""

    description: str = "A hand that slides over a table, to the square of one colour."
    backend: str = "vla_crl.testing.fake_worlds:BACKEND"
    """The same with `WITHOUT_EXPERT`: a backend that has no scripted expert."""
    embodiment: Embodiment = field(
        default_factory=lambda: Embodiment(
            action=("delta_x", "delta_y", "gripper"), state=("x", "y"), cameras=("top",)
        )
    )
    """The first two numbers of an action that are not binary move the hand, the others are without
    effect; the first two of the state are where it is, the others 0."""
    train: tuple[Colour, ...] = ("red", "green")
    """Squares that training tasks reach."""
    heldout: tuple[Colour, ...] = ("blue",)
    """Squares that held-out tasks reach; they lie on the same table."""
    horizon: Horizon = 16
    """Control steps; the expert takes at most nine."""
    num_train_states: NumStates = 1000
    num_test_states: NumStates = 100
    extras: tuple[Extra, ...] = get_args(Extra)
    """What the simulation can do besides the least, see `vla_crl.sim.simulation`."""
    blows_up: tuple[int, ...] = ()
    """Initial states whose physics blows up in the first chunk."""

    def __post_init__(self) -> None:
        """Check that hand and squares can be told and told apart."""
        super().__post_init__()
        if not self.train or len(set(self.colours)) < len(self.colours):
            raise ConfigError(
                f"train is {self.train}, heldout {self.heldout}; expected colours, each once"
            )
        robot = self.embodiment
        if np.sum(~robot.is_binary) < 2 or len(robot.state) < 2:
            raise ConfigError(
                f"embodiment: action {robot.action} and state {robot.state}, expected two numbers "
                "of each for the hand's x and y, those of the action not binary"
            )
        if self.backend not in _SUITES:
            raise unknown_name("fake worlds", "backend", self.backend, _SUITES)

    @property
    def colours(self) -> tuple[Colour, ...]:
        """Of all squares."""
        return self.train + self.heldout


@dataclass(frozen=True, eq=False, kw_only=True)
class FakeSuite(TaskSuite):
    """One task for each square, all on the same table."""

    backend: ClassVar[str] = "vla_crl.testing.fake_worlds:BACKEND"

    config: FakeConfig

    @property
    def embodiment(self) -> Embodiment:
        """What the suite file says."""
        return self.config.embodiment

    @property
    def moving(self) -> np.ndarray:
        """[2] which numbers of an action move the hand along x and y."""
        return np.flatnonzero(~self.embodiment.is_binary)[:2]

    @property
    def film_camera(self) -> str:
        """The robot's first."""
        return self.embodiment.cameras[0]

    @property
    def control_hz(self) -> float:
        """Control steps per second."""
        return 10.0

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
        """The squares; that of task i comes i-th."""
        return tuple(f"{colour} square" for colour in self.config.colours)


class FakeSuiteWithoutExpert(FakeSuite):
    """The same, of a backend that has no expert."""

    backend: ClassVar[str] = "vla_crl.testing.fake_worlds:WITHOUT_EXPERT"


_SUITES = {suite.backend: suite for suite in (FakeSuite, FakeSuiteWithoutExpert)}


def fake_suite(name: str = "fake", **settings: Any) -> FakeSuite:
    """Make a suite without a file.

    Args:
        name: What it is called; the catalogue does not know it.
        settings: Fields of `FakeConfig`.

    Raises:
        ConfigError: A setting is out of range.
    """
    return _suite(name, FakeConfig(**settings))


def read_fake(file: Path) -> FakeSuite:
    """Read a suite.toml.

    Raises:
        ConfigError: It is not as it should be.
    """
    return _suite(file.parent.name, from_mapping(FakeConfig, read_toml(file), str(file)))


def _suite(name: str, config: FakeConfig) -> FakeSuite:
    tasks = tuple(
        SuiteTask(
            name=f"reach_{colour}",
            instruction=f"reach the {colour} square",
            split="train" if colour in config.train else "heldout",
            horizon=config.horizon,
        )
        for colour in config.colours
    )
    make = _SUITES[config.backend]
    return make(name=name, description=config.description, config=config, tasks=tasks)
