"""What a suite.toml with `backend = "libero"` says, and in which ranges."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from vla_crl.config import Settings
from vla_crl.contracts import Split
from vla_crl.errors import ConfigError
from vla_crl.sim.task_suite import NumStates

NUM_TEST_STATES = 50
"""Official initial states of each task."""
CONTROL_HZ = 20.0
AGENT_CAMERA, HAND_CAMERA = "agentview", "robot0_eye_in_hand"
"""LIBERO's names of the cameras that policies see."""


@dataclass(frozen=True, kw_only=True)
class LiberoTaskConfig(Settings):
    """One of LIBERO's tasks."""

    name: str
    """Its name in LIBERO, that of its bddl file."""
    instruction: str
    split: Split = "train"


@dataclass(frozen=True, kw_only=True)
class LiberoThingConfig(Settings):
    """Something that instructions talk about."""

    name: str
    """In English, as in "where is the cream cheese"."""
    instance: str
    """Its name in LIBERO's bddl files, e.g. "cream_cheese_1"."""


@dataclass(frozen=True, kw_only=True)
class LiberoConfig(Settings):
    """Content of a suite.toml with `backend = "libero"`: a benchmark, or a union of suites."""

    description: str
    backend: Literal["libero"]
    benchmark: str = ""
    """LIBERO's name of the benchmark that the tasks are of."""
    horizon: Annotated[int, Interval(ge=0, le=100_000)] = 0
    """Control steps after which an unsuccessful episode is truncated, without those of waiting."""
    num_train_states: NumStates = 500
    """Initial states of each task that are sampled from LIBERO's own placement regions."""
    things: tuple[LiberoThingConfig, ...] = ()
    tasks: tuple[LiberoTaskConfig, ...] = ()
    suites: tuple[str, ...] = ()
    """Of a union: the suites whose tasks it has, in this order, with nothing else said."""

    def __post_init__(self) -> None:
        """Check that it is one or the other, and that names are unique."""
        super().__post_init__()
        if self.suites:
            if self.benchmark or self.tasks or self.things or self.horizon:
                raise ConfigError("suites: a union has a description and suites, nothing else")
            return
        if not self.benchmark:
            raise ConfigError("benchmark is missing, expected LIBERO's name of it, or suites")
        if not self.horizon:
            raise ConfigError("horizon = 0, expected at least 1")
        for kind in ("tasks", "things"):
            names = [entry.name for entry in getattr(self, kind)]
            if len(set(names)) < len(names) or (kind == "tasks" and not names):
                raise ConfigError(f"{kind}: expected at least one task, and each name once")
