"""One MuJoCo world with a robot arm and the things that instructions talk about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mujoco
import numpy as np

from vla_crl.errors import ConfigError, unknown_name
from vla_crl.sim.native.goals import Articulation, Goal, compile_goals
from vla_crl.sim.native.kernel.kinematics import Chain, chain_of
from vla_crl.sim.native.kernel.predicates import Goals
from vla_crl.sim.native.scene_config import SceneConfig, ThingConfig


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
        free = [body for body in self.bodies.values() if is_free(self.model, body)]
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
            check_reachable(self.model, joint, position, f"{where}: start of '{name}'")
            qpos[self.joints[name].qpos_index] = position
        return qpos


def is_free(model: mujoco.MjModel, body: int) -> bool:
    """Tell whether a body has a free joint."""
    first = int(model.body_jntadr[body])
    return bool(first >= 0 and model.jnt_type[first] == mujoco.mjtJoint.mjJNT_FREE)


def check_reachable(model: mujoco.MjModel, joint: str, position: float, where: str) -> None:
    """Refuse a position that is not finite or that the joint's limits exclude."""
    low, high = model.joint(joint).range if model.joint(joint).limited[0] else (-np.inf, np.inf)
    if not (np.isfinite(position) and low <= position <= high):
        raise ConfigError(
            f"{where} is {position:g}, but joint '{joint}' goes from {low:g} to {high:g}"
        )
