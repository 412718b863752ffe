"""A suite of LIBERO tasks as data; read without the packages of LIBERO."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

from vla_crl import __version__
from vla_crl.catalog import suite_path
from vla_crl.config import from_mapping, read_toml
from vla_crl.contracts import ARM, Embodiment
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.sim.libero.config import (
    AGENT_CAMERA,
    CONTROL_HZ,
    NUM_TEST_STATES,
    LiberoConfig,
)
from vla_crl.sim.libero.protocols import PROTOCOLS, Protocol
from vla_crl.sim.renderer.looks import LookName
from vla_crl.sim.task_suite import SuiteTask, TaskSuite

FAST, SHARED_STATES, ORIGINAL, GL = "fast", "shared_states", "original", "gl"
"""Options beside protocols and looks: things that rest may sleep; training begins from the official
states, as that of the study does; LIBERO itself is run, in worker processes; MuJoCo's renderer
draws, by OpenGL."""
LOOKS = get_args(LookName)


_FLAGS = {
    FAST: "is_fast",
    SHARED_STATES: "shares_states",
    ORIGINAL: "is_original",
    GL: "is_gl",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class LiberoTask(SuiteTask):
    """One of LIBERO's tasks; an episode succeeds in the first step in which its goal holds.

    Attributes:
        benchmark: LIBERO's name of the benchmark that it is of; the task's name is LIBERO's, too.
        num_train_states: How many initial states are sampled for training.
    """

    benchmark: str
    num_train_states: int

    @property
    def baked_as(self) -> tuple[str, str]:
        """What tells it from other tasks in the cache."""
        return self.benchmark, self.name


@dataclass(frozen=True, eq=False, kw_only=True)
class LiberoSuite(TaskSuite):
    """Tasks of LIBERO, each in a scene of its own.

    Attributes:
        instances: From the names of its things to those in LIBERO's bddl files.
        protocol: How it is evaluated, one of `PROTOCOLS`.
        is_fast: Whether things that rest may sleep, so that a step is faster and not exact.
        shares_states: Whether training begins from the official states, those of evaluation.
        is_original: Whether LIBERO itself is run.
        is_gl: Whether MuJoCo's renderer draws what policies see.
        look: Which MuJoCo's pictures they are; None: those of the protocol.
    """

    backend: ClassVar[str] = "libero"

    tasks: tuple[LiberoTask, ...]
    instances: Mapping[str, str]
    protocol_name: str = "own"
    is_fast: bool = False
    shares_states: bool = False
    is_original: bool = False
    is_gl: bool = False
    look: LookName | None = None

    @property
    def embodiment(self) -> Embodiment:
        """The Panda arm, as the tabletop suites' arm is commanded and feels."""
        return ARM

    @property
    def protocol(self) -> Protocol:
        """What an evaluation keeps to."""
        return PROTOCOLS[self.protocol_name]

    @property
    def options(self) -> tuple[str, ...]:
        """Protocols, and how it is simulated."""
        return (*PROTOCOLS, *LOOKS, FAST, GL, SHARED_STATES, ORIGINAL)

    @property
    def protocols(self) -> tuple[str, ...]:
        """How others measure."""
        return tuple(PROTOCOLS)

    def with_option(self, name: str) -> "LiberoSuite":
        """Return the suite under a protocol, stepped fast, or with the study's shared states.

        Its name has the options in the order of `options`, in whichever order they come.

        Raises:
            ConfigError: It has no such option, two protocols or two looks.
        """
        if name not in self.options:
            raise unknown_name(f"suite '{self.name}'", "option", name, self.options)
        bare, *before = self.name.split("@")
        if {name, *before} >= {FAST, ORIGINAL}:
            raise ConfigError(f"suite '{self.name}@{name}': the original cannot be fast")
        for kind, names in {"protocol": PROTOCOLS, "look": LOOKS}.items():
            if name in names and any(option in names for option in before):
                raise ConfigError(
                    f"suite '{self.name}@{name}': a suite has one {kind}, this names two"
                )
        chosen = [option for option in self.options if option in (name, *before)]
        named = replace(self, name="@".join([bare, *chosen]))
        if name in _FLAGS:
            return replace(named, **{_FLAGS[name]: True})
        if name in LOOKS:
            return replace(named, look=name)
        tasks = tuple(
            replace(task, horizon=PROTOCOLS[name].horizons.get(task.benchmark, task.horizon))
            for task in self.tasks
        )
        return replace(named, protocol_name=name, tasks=tasks)

    @property
    def trials(self) -> int:
        """As the protocol says."""
        return self.protocol.trials

    @property
    def executed_chunk(self) -> int | None:
        """As the protocol says."""
        return self.protocol.chunk

    @property
    def conditions(self) -> dict[str, Any]:
        """The protocol, whether physics is exact, and where training begins."""
        protocol = self.protocol
        return {
            "protocol": self.protocol_name,
            "source": protocol.source,
            "rendered_size": protocol.image_size or "the policy's",
            "is_turned": protocol.is_turned,
            "wait_steps": protocol.wait_steps,
            "resets": protocol.resets,
            "look": self.shown_look,
            "renderer": self._renderer,
            "physics": self._physics,
            "train_states": "the 50 official ones, those of evaluation"
            if self.shares_states
            else "sampled from LIBERO's placement regions",
        }

    @property
    def pictures(self) -> str:
        """Which way up, and whose look."""
        turned = "turned by 180 degrees" if self.protocol.is_turned else "upright"
        return f"LIBERO {turned}, look {self.shown_look}"

    @property
    def shown_look(self) -> LookName:
        """Which MuJoCo's pictures policies see; the original's are always those of today."""
        return "mujoco_3_8" if self.is_original else self.look or self.protocol.look

    @property
    def _renderer(self) -> str:
        if not (self.is_gl or self.is_original):
            return f"vla_crl {__version__}"
        from vla_crl.sim.renderer.gl_renderer import gl_version

        return gl_version()

    @property
    def _physics(self) -> str:
        if self.is_original:
            return "LIBERO itself"
        return "fast: what rests may sleep" if self.is_fast else "exact"

    @property
    def film_camera(self) -> str:
        """What people see in videos."""
        return AGENT_CAMERA

    @property
    def control_hz(self) -> float:
        """Control steps per second."""
        return CONTROL_HZ

    @property
    def num_train_states(self) -> int:
        """How many initial states there are for training."""
        if self.shares_states:
            return NUM_TEST_STATES
        return min(task.num_train_states for task in self.tasks)

    @property
    def train_ids(self) -> range:
        """Initial states for training: sampled ones, or with `shared_states` the official ones."""
        return range(self.num_train_states)

    @property
    def test_ids(self) -> range:
        """The official initial states."""
        return range(self.num_train_states, self.num_train_states + NUM_TEST_STATES)

    @property
    def things(self) -> tuple[str, ...]:
        """Objects and fixtures that instructions talk about."""
        return tuple(self.instances)


def read_libero(file: Path) -> LiberoSuite:
    """Read a suite.toml with `backend = "libero"`.

    Raises:
        ConfigError: The file is not as it should be.
    """
    config = _read(file)
    parts = [_read(suite_path(name) / "suite.toml") for name in config.suites] or [config]
    for name, part in zip(config.suites, parts, strict=False):
        if part.suites:
            raise ConfigError(f"{file}: suites: '{name}' is a union itself, name its parts")
    things = {thing.name: thing.instance for part in parts for thing in part.things}
    tasks = tuple(
        LiberoTask(
            name=task.name,
            instruction=task.instruction,
            split=task.split,
            horizon=part.horizon,
            benchmark=part.benchmark,
            num_train_states=part.num_train_states,
        )
        for part in parts
        for task in part.tasks
    )
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ConfigError(f"{file}: suites: a task is in two of them")
    return LiberoSuite(
        name=file.parent.name,
        description=config.description,
        tasks=tasks,
        instances=things,
    )


def _read(file: Path) -> LiberoConfig:
    return from_mapping(LiberoConfig, read_toml(file), str(file))
