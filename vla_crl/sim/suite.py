"""A suite of tasks as data: what `envs/<suite>/suite.toml` says, checked against its scene."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import mujoco
import numpy as np

from vla_crl.catalog import suite_path
from vla_crl.config import load_toml
from vla_crl.errors import ConfigError, unknown_name
from vla_crl.sim.goals import Articulation, Goal, compile_goals, parse_goal
from vla_crl.sim.predicates import Goals

Split = Literal["train", "heldout"]


@dataclass(frozen=True, kw_only=True)
class ThingConfig:
    """A body that instructions talk about."""

    name: str
    """Words used in instructions, e.g. "red cube"."""
    body: str
    """Its body in the scene: with a free joint (an object), a mocap body (a fixture that is placed
    anew in every initial state) or a part that moves on a joint of its own (a drawer, a button)."""
    low_m: tuple[float, float] | None = None
    """Corner of the rectangle in which it starts, if it is not the layout's."""
    high_m: tuple[float, float] | None = None
    """The other corner."""
    is_graspable: bool = True
    """Whether the scripted expert moves it by grasping; else by pushing."""
    joint: str | None = None
    """Hinge or slide of a moving part, at the origin of its body; needs on_at, off_at, handle."""
    handle: str | None = None
    """Site at which the joint is moved."""
    on_at: float | None = None
    """Joint position (m or rad) from which it is open, turned on or pressed."""
    off_at: float | None = None
    """Joint position from which it is closed or turned off, on the other side of on_at."""

    def __post_init__(self) -> None:
        """Check that nothing is given in part."""
        for names in (("joint", "handle", "on_at", "off_at"), ("low_m", "high_m")):
            given = [getattr(self, name) is not None for name in names]
            if any(given) and not all(given):
                raise ConfigError(f"thing '{self.name}': {', '.join(names)} belong together")
        if self.joint is not None and self.on_at == self.off_at:
            raise ConfigError(f"thing '{self.name}': on_at and off_at are both {self.on_at}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One instruction with its success condition."""

    name: str
    instruction: str
    split: Split
    """"train": may be trained on; "heldout": only evaluated, for zero-shot transfer."""
    goal: tuple[Any, ...]
    """Success condition, true at the end of a control step; see `vla_crl.sim.goals`."""
    start: dict[str, float] = field(default_factory=dict)
    """Joint position (m or rad) in which moving parts start, by the name of the thing."""


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """The arm's names in the scene and the limits of its end-effector interface."""

    joints: tuple[str, ...]
    fingers: tuple[str, str]
    grip_site: str
    rest_joints_rad: tuple[float, ...]
    """Posture that the redundant degree of freedom is drawn to."""
    max_step_m: float
    """Displacement commanded by an action of 1."""
    max_step_rad: float
    """Rotation commanded by an action of 1."""
    workspace_low_m: tuple[float, float, float]
    workspace_high_m: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """Distribution of initial states."""

    grip_low_m: tuple[float, float, float]
    grip_high_m: tuple[float, float, float]
    free_low_m: tuple[float, float]
    """Corner of the rectangle in which objects start."""
    free_high_m: tuple[float, float]
    free_distance_m: float
    """Least distance between the centres of two objects."""
    max_yaw_rad: float
    fixture_low_m: tuple[float, float]
    """Corner of the first fixture's rectangle; the second's is mirrored in y; sides are drawn."""
    fixture_high_m: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Content of a suite.toml."""

    description: str
    scene: str
    cameras: tuple[str, ...]
    """What policies see, in this order."""
    film_camera: str
    """What people see in videos."""
    control_hz: float
    horizon: int
    """Control steps after which an unsuccessful episode is truncated."""
    num_train_states: int
    num_test_states: int
    arm: ArmConfig
    layout: LayoutConfig
    things: tuple[ThingConfig, ...]
    tasks: tuple[Task, ...]


@dataclass(frozen=True, eq=False)
class Suite:
    """A loaded suite: its configuration and compiled scene."""

    name: str
    config: SuiteConfig
    model: mujoco.MjModel

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks; elsewhere a task index is a position in this tuple."""
        return self.config.tasks

    @property
    def train_ids(self) -> range:
        """Initial states that training may use; disjoint from `test_ids`."""
        return range(self.config.num_train_states)

    @property
    def test_ids(self) -> range:
        """Initial states kept for evaluation."""
        start = self.config.num_train_states
        return range(start, start + self.config.num_test_states)

    @property
    def num_substeps(self) -> int:
        """Physics steps in one control step."""
        return round(1.0 / (self.config.control_hz * self.model.opt.timestep))

    @cached_property
    def thing_bodies(self) -> np.ndarray:
        """[things] body id of each thing."""
        return np.array([self.model.body(thing.body).id for thing in self.config.things])

    @cached_property
    def goals(self) -> tuple[Goal, ...]:
        """The checked goal of each task."""
        model = self.model
        known = {
            "thing": [thing.name for thing in self.config.things],
            "region": [
                model.site(i).name
                for i in range(model.nsite)
                if model.site(i).type[0] == mujoco.mjtGeom.mjGEOM_BOX
            ],
            "joint": [thing.name for thing in self.config.things if thing.joint],
        }
        where = f"suite '{self.name}': task"
        return tuple(parse_goal(task.goal, f"{where} '{task.name}'", known) for task in self.tasks)

    @cached_property
    def joints(self) -> dict[str, Articulation]:
        """The joints of the things that have one, by the thing's name."""
        return {
            thing.name: Articulation(
                int(self.model.joint(thing.joint).qposadr[0]), thing.on_at, thing.off_at
            )
            for thing in self.config.things
            if thing.joint is not None and thing.on_at is not None and thing.off_at is not None
        }

    def compile(self, goals: Sequence[Goal]) -> Goals:
        """Return goals, checked by `goals`, for compiled code."""
        things = zip(self.config.things, self.thing_bodies, strict=True)
        bodies = {thing.name: int(body) for thing, body in things}
        return compile_goals(goals, self.model, bodies, self.joints)

    def start_qpos(self) -> np.ndarray:
        """Return [tasks, nq] what each task's `start` asks for; NaN leaves the initial state's."""
        qpos = np.full((len(self.tasks), self.model.nq), np.nan)
        for row, task in zip(qpos, self.tasks, strict=True):
            for name, position in task.start.items():
                if name not in self.joints:
                    where = f"suite '{self.name}': task '{task.name}': start"
                    raise unknown_name(where, "joint", name, self.joints)
                row[self.joints[name].qpos_index] = position
        return qpos

    def tasks_of(self, split: Split) -> tuple[Task, ...]:
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

    def thing_index(self, name: str) -> int:
        """Return the position of a thing in `config.things`."""
        names = [thing.name for thing in self.config.things]
        if name not in names:
            raise unknown_name(f"suite '{self.name}'", "thing", name, names)
        return names.index(name)


@lru_cache
def load_suite(name: str) -> Suite:
    """Load a suite of the catalogue and compile its scene.

    Raises:
        ConfigError: The suite does not exist or does not fit its scene.
    """
    folder = suite_path(name)
    config = load_toml(SuiteConfig, folder / "suite.toml")
    suite = Suite(folder.name, config, _compile(folder / config.scene))
    _check_names(suite, folder / "suite.toml")
    _check_scene(suite, folder / "suite.toml")
    _ = suite.goals, suite.start_qpos()  # checks them
    return suite


def _compile(scene: Path) -> mujoco.MjModel:
    try:
        return mujoco.MjModel.from_xml_path(str(scene))
    except ValueError as error:
        raise ConfigError(f"{scene}: MuJoCo cannot compile it: {error}") from error


def _check_names(suite: Suite, path: Path) -> None:
    model, config = suite.model, suite.config
    known = {
        "body": {model.body(i).name for i in range(model.nbody)},
        "camera": {model.camera(i).name for i in range(model.ncam)},
        "site": {model.site(i).name for i in range(model.nsite)},
        "joint": {model.joint(i).name for i in range(model.njnt)},
    }
    used = [("body", thing.body) for thing in config.things]
    used += [("camera", camera) for camera in (*config.cameras, config.film_camera)]
    used += [("joint", joint) for joint in (*config.arm.joints, *config.arm.fingers)]
    used += [("site", config.arm.grip_site)]
    used += [("joint", thing.joint) for thing in config.things if thing.joint]
    used += [("site", thing.handle) for thing in config.things if thing.handle]
    for kind, name in used:
        if name not in known[kind]:
            raise unknown_name(str(path), kind, name, known[kind])
    names = [task.name for task in config.tasks]
    duplicates = {name for name in names if names.count(name) > 1}
    if duplicates:
        raise ConfigError(f"{path}: task names must be unique, repeated: {sorted(duplicates)}")


def _check_scene(suite: Suite, path: Path) -> None:
    """Check what the simulation relies on and names alone do not tell."""
    model, config = suite.model, suite.config
    for thing in config.things:
        body = model.body(thing.body)
        if thing.joint is None and body.mocapid[0] < 0 and body.dofnum[0] != 6:
            raise ConfigError(
                f"{path}: thing '{thing.name}': body '{thing.body}' is fixed to the scene, "
                "expected a free joint, a mocap body or a joint of its own"
            )
    if len(config.arm.rest_joints_rad) != len(config.arm.joints):
        raise ConfigError(
            f"{path}: arm.rest_joints_rad has {len(config.arm.rest_joints_rad)} numbers, "
            f"expected {len(config.arm.joints)}, one per joint"
        )
    period_s = 1.0 / config.control_hz
    if abs(suite.num_substeps * model.opt.timestep - period_s) > 1e-9:
        raise ConfigError(
            f"{path}: a control step of {period_s:g} s is no multiple of the scene's "
            f"timestep {model.opt.timestep:g} s; change control_hz or the timestep"
        )
