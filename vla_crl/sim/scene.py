"""One MuJoCo world with a robot arm and the things that instructions talk about."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import mujoco
import numpy as np

from vla_crl.errors import ConfigError, unknown_name
from vla_crl.sim.goals import Articulation, Goal, compile_goals
from vla_crl.sim.predicates import Goals
from vla_crl.sim.variation import VariationConfig

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
class TaskConfig:
    """One instruction with its success condition."""

    name: str
    instruction: str
    split: Split
    """"train": may be trained on; "heldout": only evaluated, for zero-shot transfer."""
    goal: tuple[Any, ...]
    """Success condition, true at the end of a control step; see `vla_crl.sim.goals`."""
    start: dict[str, float] = field(default_factory=dict)
    """Joint position (m or rad) in which moving parts start, by the name of the thing."""
    things: tuple[str, ...] | None = None
    """Objects with a free joint that are there; all by default. Fixtures always are."""
    paraphrases: tuple[str, ...] = ()
    """Other ways to say the instruction."""
    variation: VariationConfig | None = None
    """What differs from episode to episode besides the layout."""


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """The arm's names in the scene and the limits of its end-effector interface."""

    base: str
    """Body that carries the arm."""
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
class SceneConfig:
    """Content of a suite.toml with a scene of its own."""

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
    tasks: tuple[TaskConfig, ...]


@dataclass(frozen=True, eq=False)
class Scene:
    """A compiled scene.

    Attributes:
        config: The file that it comes from.
        things: Those of the file's things that are there.
        model: MuJoCo's model.
    """

    config: SceneConfig
    things: tuple[ThingConfig, ...]
    model: mujoco.MjModel

    @property
    def num_substeps(self) -> int:
        """Physics steps in one control step."""
        return round(1.0 / (self.config.control_hz * self.model.opt.timestep))

    @cached_property
    def bodies(self) -> dict[str, int]:
        """Body id of each thing."""
        return {thing.name: self.model.body(thing.body).id for thing in self.things}

    @cached_property
    def joints(self) -> dict[str, Articulation]:
        """The joints of the things that have one, by the thing's name."""
        return {
            thing.name: Articulation(
                int(self.model.joint(thing.joint).qposadr[0]), thing.on_at, thing.off_at
            )
            for thing in self.things
            if thing.joint is not None and thing.on_at is not None and thing.off_at is not None
        }

    @property
    def known(self) -> dict[str, list[str]]:
        """The names that goals may use, by kind."""
        sites = (self.model.site(i) for i in range(self.model.nsite))
        return {
            "thing": [thing.name for thing in self.things],
            "region": [site.name for site in sites if site.type[0] == mujoco.mjtGeom.mjGEOM_BOX],
            "joint": list(self.joints),
        }

    def thing(self, name: str) -> ThingConfig:
        """Return a thing that is there."""
        return next(thing for thing in self.things if thing.name == name)

    def compile(self, goals: Sequence[Goal | None]) -> Goals:
        """Return checked goals for compiled code; None stands for a goal of another scene."""
        return compile_goals(goals, self.model, self.bodies, self.joints)

    def start_qpos(self, start: Mapping[str, float], where: str) -> np.ndarray:
        """Return [nq] what a task's `start` asks for; NaN leaves the initial state's.

        Raises:
            ConfigError: A thing without a joint; begins with `where`.
        """
        qpos = np.full(self.model.nq, np.nan)
        for name, position in start.items():
            if name not in self.joints:
                raise unknown_name(f"{where}: start", "joint", name, self.joints)
            qpos[self.joints[name].qpos_index] = position
        return qpos


def compile_scene(config: SceneConfig, file: Path, objects: Collection[str]) -> Scene:
    """Compile the scene of a suite with only some of its objects.

    Args:
        config: Content of `file`.
        file: The suite.toml.
        objects: Names of the things with a free joint that are to be there.

    Raises:
        ConfigError: The things do not fit the scene.
    """
    path = file.parent / config.scene
    try:
        spec = mujoco.MjSpec.from_file(str(path))
        free = {body.name for body in spec.bodies if _is_free(body)}
        absent = [t for t in config.things if t.body in free and t.name not in objects]
        for thing in absent:
            spec.delete(spec.body(thing.body))
        model = spec.compile()
    except ValueError as error:
        raise ConfigError(f"{path}: MuJoCo cannot compile it: {error}") from error
    things = tuple(thing for thing in config.things if thing not in absent)
    scene = Scene(config, things, model)
    _check_names(scene, file)
    _check_mechanics(scene, file)
    return scene


def _is_free(body: mujoco.MjsBody) -> bool:
    return any(joint.type == mujoco.mjtJoint.mjJNT_FREE for joint in body.joints)


def _check_names(scene: Scene, path: Path) -> None:
    model, config = scene.model, scene.config
    known = {
        "body": {model.body(i).name for i in range(model.nbody)},
        "camera": {model.camera(i).name for i in range(model.ncam)},
        "site": {model.site(i).name for i in range(model.nsite)},
        "joint": {model.joint(i).name for i in range(model.njnt)},
    }
    used = [("body", thing.body) for thing in scene.things] + [("body", config.arm.base)]
    used += [("camera", camera) for camera in (*config.cameras, config.film_camera)]
    used += [("joint", joint) for joint in (*config.arm.joints, *config.arm.fingers)]
    used += [("site", config.arm.grip_site)]
    used += [("joint", thing.joint) for thing in scene.things if thing.joint]
    used += [("site", thing.handle) for thing in scene.things if thing.handle]
    for kind, name in used:
        if name not in known[kind]:
            raise unknown_name(str(path), kind, name, known[kind])


def _check_mechanics(scene: Scene, path: Path) -> None:
    """Check what the simulation relies on and names alone do not tell."""
    model, config = scene.model, scene.config
    for thing in scene.things:
        body = model.body(thing.body)
        if thing.joint is None and body.mocapid[0] < 0 and body.dofnum[0] != 6:
            raise ConfigError(
                f"{path}: thing '{thing.name}': body '{thing.body}' is fixed to the scene, "
                "expected a free joint, a mocap body or a joint of its own"
            )
    if model.body(config.arm.base).mocapid[0] < 0:
        raise ConfigError(
            f"{path}: arm.base: body '{config.arm.base}' is fixed to the scene, expected "
            'mocap="true", so that an episode can displace the robot'
        )
    if len(config.arm.rest_joints_rad) != len(config.arm.joints):
        raise ConfigError(
            f"{path}: arm.rest_joints_rad has {len(config.arm.rest_joints_rad)} numbers, "
            f"expected {len(config.arm.joints)}, one per joint"
        )
    period_s = 1.0 / config.control_hz
    if abs(scene.num_substeps * model.opt.timestep - period_s) > 1e-9:
        raise ConfigError(
            f"{path}: a control step of {period_s:g} s is no multiple of the scene's "
            f"timestep {model.opt.timestep:g} s; change control_hz or the timestep"
        )
