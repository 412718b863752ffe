"""One MuJoCo world with a robot arm and the things that instructions talk about."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from vla_crl.errors import ConfigError, unknown_name
from vla_crl.sim.native.goals import Articulation, Goal, compile_goals
from vla_crl.sim.native.kernel.kinematics import Chain, chain_of
from vla_crl.sim.native.kernel.predicates import Goals
from vla_crl.sim.native.scene_config import SceneConfig, ThingConfig

ONE_DOF = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)


@dataclass(frozen=True, eq=False)
class Scene:
    """A compiled scene.

    Attributes:
        config: Content of `file`.
        file: The suite.toml.
        things: Those of the file's things that are there.
        model: MuJoCo's model.
    """

    config: SceneConfig
    file: Path
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
    def chain(self) -> Chain:
        """The arm from the world to its grip."""
        arm = self.config.arm
        return chain_of(self.model, arm.joints, arm.grip_site, arm.rest_joints_rad)

    @cached_property
    def objects(self) -> np.ndarray:
        """Body ids of the things with a free joint."""
        free = [body for body in self.bodies.values() if self.model.body_dofnum[body] == 6]
        return np.array(free, np.int64)

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

    def qpos_index(self, joints: Sequence[str]) -> list[int]:
        """Return where the positions of hinges and slides are in qpos."""
        return [int(self.model.joint(name).qposadr[0]) for name in joints]

    def thing(self, name: str) -> ThingConfig:
        """Return a thing that is there."""
        return next(thing for thing in self.things if thing.name == name)

    def compile(self, goals: Sequence[Goal | None]) -> Goals:
        """Return checked goals for compiled code; None stands for a goal of another scene."""
        return compile_goals(goals, self.model, self.bodies, self.joints)

    def start_qpos(self, start: Mapping[str, float], where: str) -> np.ndarray:
        """Return [nq] what a task's `start` asks for; NaN leaves the initial state's.

        Raises:
            ConfigError: A thing without a joint, or a position out of its range; begins with
                `where`.
        """
        qpos = np.full(self.model.nq, np.nan)
        for name, position in start.items():
            if name not in self.joints:
                raise unknown_name(f"{where}: start", "joint", name, self.joints)
            joint = self.thing(name).joint
            assert joint is not None
            _check_reachable(self.model, joint, position, f"{where}: start of '{name}'")
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
    if not path.is_file():
        raise ConfigError(f"{file}: scene: there is no file {path}")
    try:
        spec = mujoco.MjSpec.from_file(str(path))
        free = {body.name for body in spec.bodies if _is_free(body)}
        absent = [t for t in config.things if t.body in free and t.name not in objects]
        for thing in absent:
            spec.delete(spec.body(thing.body))
        model = spec.compile()
    except ValueError as error:
        raise ConfigError(f"{path}: MuJoCo cannot compile it: {error}") from error
    # A world that blows up must not begin anew by itself: the episode ends there.
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    things = tuple(thing for thing in config.things if thing not in absent)
    scene = Scene(config, file, things, model)
    _check_names(scene, file)
    _check_things(scene, file)
    _check_arm(scene, file)
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
            raise unknown_name(str(path), kind, name, known[kind] - {""})


def _check_reachable(model: mujoco.MjModel, joint: str, position: float, where: str) -> None:
    """Refuse a position that is not finite or that the joint's limits exclude."""
    low, high = model.joint(joint).range if model.joint(joint).limited[0] else (-np.inf, np.inf)
    if not (np.isfinite(position) and low <= position <= high):
        raise ConfigError(
            f"{where} is {position:g}, but joint '{joint}' goes from {low:g} to {high:g}"
        )


def _is_below(model: mujoco.MjModel, part: Any, ancestor: int) -> bool:
    """Whether a joint or site belongs to a body that is, or descends from, `ancestor`."""
    body = int(part.bodyid[0])
    while body not in (ancestor, 0):
        body = int(model.body_parentid[body])
    return body == ancestor


def _check_things(scene: Scene, path: Path) -> None:
    """Check what the simulation relies on and names alone do not tell."""
    model = scene.model
    for thing in scene.things:
        if thing.joint is not None:
            joint = model.joint(thing.joint)
            if model.body(joint.bodyid[0]).name != thing.body or joint.type[0] not in ONE_DOF:
                raise ConfigError(
                    f"{path}: thing '{thing.name}': joint '{thing.joint}' is no hinge or slide "
                    f"of body '{thing.body}'"
                )
            for name in ("on_at", "off_at"):
                _check_reachable(
                    model,
                    thing.joint,
                    getattr(thing, name),
                    f"{path}: thing '{thing.name}': {name}",
                )
        body = model.body(thing.body)
        if thing.joint is None and body.mocapid[0] < 0 and body.dofnum[0] != 6:
            raise ConfigError(
                f"{path}: thing '{thing.name}': body '{thing.body}' is fixed to the scene, "
                "expected a free joint, a mocap body or a joint of its own"
            )
        if body.dofnum[0] == 6 and not body.geomnum[0]:
            raise ConfigError(
                f"{path}: thing '{thing.name}': body '{thing.body}' has no geom of its own; put "
                "what it stands on into that body"
            )
        if body.dofnum[0] == 6 and np.any(model.body_parentid == body.id):
            raise ConfigError(
                f"{path}: thing '{thing.name}': body '{thing.body}' has bodies within; an object "
                "is one body, so put their geoms into it"
            )
        if thing.body == scene.config.arm.base:
            raise ConfigError(f"{path}: thing '{thing.name}': body '{thing.body}' is the arm's")


def _check_arm(scene: Scene, path: Path) -> None:
    """Check that the arm is a chain of driven hinges whose base an episode can displace."""
    model, config = scene.model, scene.config
    if model.body(config.arm.base).mocapid[0] < 0:
        raise ConfigError(
            f"{path}: arm.base: body '{config.arm.base}' is fixed to the scene, expected "
            'mocap="true", so that an episode can displace the robot'
        )
    driven = [model.joint(joint).name for joint in model.actuator_trnid[:, 0]]
    for name in (*config.arm.joints, *config.arm.fingers):
        if name not in driven:
            raise ConfigError(f"{path}: arm: joint '{name}' has no actuator that moves it")
    above, links = model.body(config.arm.base).id, [*map(model.joint, config.arm.joints)]
    for joint in links:
        if joint.type[0] != mujoco.mjtJoint.mjJNT_HINGE or not _is_below(model, joint, above):
            raise ConfigError(
                f"{path}: arm.joints: '{joint.name}' is no hinge below "
                f"'{model.body(above).name}'; name the joints in their order from the base on"
            )
        if not joint.limited[0]:
            raise ConfigError(
                f"{path}: arm.joints: '{joint.name}' has no range, expected one that inverse "
                "kinematics and targets of joints can keep to"
            )
        above = int(joint.bodyid[0])
    site = model.site(config.arm.grip_site)
    if not _is_below(model, site, above):
        raise ConfigError(
            f"{path}: arm.grip_site: '{site.name}' is not on what '{links[-1].name}' moves"
        )
    if len(config.arm.rest_joints_rad) != len(config.arm.joints):
        raise ConfigError(
            f"{path}: arm.rest_joints_rad has {len(config.arm.rest_joints_rad)} numbers, "
            f"expected {len(config.arm.joints)}, one per joint"
        )
    period_s = 1.0 / config.control_hz
    rest = abs(scene.num_substeps * model.opt.timestep - period_s)
    if not scene.num_substeps or rest > 1e-9:
        raise ConfigError(
            f"{path}: a control step of {period_s:g} s is no multiple of the scene's "
            f"timestep {model.opt.timestep:g} s; change control_hz or the timestep"
        )
