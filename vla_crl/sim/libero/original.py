"""What a bake needs to know of a task, asked of original LIBERO itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from vla_crl.errors import ConfigError
from vla_crl.sim.libero.package import import_libero, make_benchmark, quietly
from vla_crl.sim.libero.protocols import RESET_SEEDS, Protocol

JOINT_NOISE_RAD = 0.02
"""Standard deviation of the arm's joints in the official initial states: robosuite's default."""
_JOINT_TERMS = {  # what LIBERO asks of joints: the ranges, which end of them, and how it compares
    "open": ("default_open_ranges", max, "below"),
    "close": ("default_close_ranges", min, "above"),
    "turnon": ("default_turnon_ranges", min, "from_on"),
    "turnoff": ("default_turnoff_ranges", max, "below"),
}
_OPENS_UPWARDS = ("short_cabinet", "short_fridge")
"""Categories whose joints grow when they open."""


@dataclass(frozen=True)
class Placement:
    """Where a reset of original LIBERO puts what can be displaced.

    Attributes:
        qpos: [nq] of all joints.
        fixtures: [F, 7] position and quaternion of the fixtures.
    """

    qpos: np.ndarray
    fixtures: np.ndarray


class OriginalTask:
    """One task of original LIBERO, with its environment, without pictures."""

    def __init__(self, benchmark: str, task: str) -> None:
        """Make the environment.

        Args:
            benchmark: LIBERO's name of it.
            task: LIBERO's name of the task.

        Raises:
            ConfigError: The package is missing, or has no such benchmark or task.
        """
        self._benchmark = make_benchmark(benchmark)
        names = self._benchmark.get_task_names()
        if task not in names:
            raise ConfigError(f"LIBERO's benchmark '{benchmark}' has no task '{task}'")
        self._index = names.index(task)
        self.bddl_file = Path(self._benchmark.get_task_bddl_file_path(self._index))
        envs = import_libero().envs
        with quietly():
            control_env = envs.env_wrapper.ControlEnv(
                str(self.bddl_file),
                has_renderer=False,
                has_offscreen_renderer=False,
                use_camera_obs=False,
            )
        self.env: Any = control_env.env
        self.whole = mujoco.MjModel.from_xml_string(self.xml)
        """What a reset compiles; in `model` the fixtures have been displaced."""
        self._samplers = list(self.env.object_property_initializers)
        self.fixtures = [
            self.env.fixtures_dict[name].root_body
            for name in self.env.fixtures_dict
            if name in self.env.obj_body_id
        ]

    @property
    def model(self) -> mujoco.MjModel:
        """What original LIBERO simulates."""
        return self.env.sim.model._model

    @property
    def xml(self) -> str:
        """The scene file, with all digits."""
        return self.env.model.get_xml()

    @property
    def test_states(self) -> np.ndarray:
        """[50, 1 + nq + nv] the official initial states: time, qpos, qvel."""
        with quietly():
            return np.array(self._benchmark.get_task_init_states(self._index), np.float64)

    @property
    def things(self) -> dict[str, str]:
        """From the names of things to those of their bodies."""
        env = self.env
        known = env.objects_dict | env.fixtures_dict
        return {name: known[name].root_body for name in env.obj_body_id}

    def reset(self, num_resets: int = 0) -> Placement:
        """Reset as original LIBERO does, but for compiling the same scene again.

        Compiling draws no random numbers, so what is drawn here is what LIBERO draws.

        Args:
            num_resets: How often the environment has been reset. LIBERO's list of what is open or
                turned on at first grows with every reset, and each entry draws a number.
        """
        self.env.object_property_initializers = self._samplers * (2 + num_resets)
        self.env.robots[0].gripper.current_action = np.zeros(1)  # that of a new gripper
        model = self.model
        model.body_pos[:], model.body_quat[:] = self.whole.body_pos, self.whole.body_quat
        with quietly():
            while True:
                try:
                    self.env.sim.reset()
                    self.env._reset_internal()
                    break
                except _randomization_error():
                    continue
        self.env.sim.forward()
        bodies = [model.body(name).id for name in self.fixtures]
        fixtures = np.concatenate([model.body_pos[bodies], model.body_quat[bodies]], axis=1)
        return Placement(self.env.sim.data.qpos.copy(), fixtures.reshape(-1, 7))

    def begin(self, state_id: int, protocol: Protocol, *, wait: bool = True) -> np.ndarray:
        """Begin an episode of an evaluation, as the published ones do.

        Args:
            state_id: Of the official initial states.
            protocol: How the fixtures are displaced, and how long the robot waits.
            wait: Whether it does.

        Returns:
            [F, 7] where the fixtures are.
        """
        fixtures = self.fixture_poses(protocol.resets, state_id + 1)[-1]
        state = self.test_states[state_id]
        self.env.sim.set_state_from_flattened(state)
        self.env.sim.forward()
        self.env._check_success()
        self.env._post_process()
        for _ in range(2):  # of the reset and of the state: each moves the time of sampling
            self.env._update_observables(force=True)
        for _ in range(protocol.wait_steps if wait else 0):
            self.env.step(np.array([0.0] * 6 + [-1.0]))
        return fixtures

    def fixture_poses(self, resets: str, count: int) -> np.ndarray:
        """Return [count, F, 7] where the fixtures are in an evaluation's episodes.

        Args:
            resets: A key of `RESET_SEEDS`.
            count: Episodes, each begun by one reset.
        """
        seed, each = RESET_SEEDS[resets]
        poses = np.empty((count, len(self.fixtures), 7))
        with _numpy_seed(seed):
            for episode in range(count):
                if each:
                    np.random.seed(seed + episode)
                poses[episode] = self.reset(episode).fixtures
        return poses

    def sample(self, seed: int) -> Placement:
        """Place things as a reset does, with the noise of the arm that official states have."""
        with _numpy_seed(seed), _without_contacts(self.model):
            placement = self.reset()
            arm = self.env.robots[0]._ref_joint_pos_indexes
            placement.qpos[arm] += JOINT_NOISE_RAD * np.random.randn(len(arm))
        return placement

    def arm(self) -> dict[str, Any]:
        """Describe the robot; after a reset, what its controller has read then."""
        robot = self.env.robots[0]
        controller = robot.controller
        low, high = robot.torque_limits
        settings = controller.kp[0], controller.action_scale, controller.interpolator_pos
        if not np.array_equal(low, -high) or settings != (150.0, None, None):
            raise ConfigError(f"the arm of '{self.bddl_file.stem}' is not LIBERO's usual one")
        return {
            "site": controller.eef_name,
            "hand": "robot0_right_hand",
            "joints": list(robot.robot_joints),
            "rest_joints": controller.initial_joint.tolist(),
            "torque_limit": high.tolist(),
            "fingers": list(robot.gripper.actuators),
            "pos": controller.ee_pos.tolist(),
            "mat": controller.ee_ori_mat.tolist(),
            "jacobian": controller.J_full.tolist(),
            "mass": controller.mass_matrix.tolist(),
        }

    def goal(self) -> list[dict[str, Any]]:
        """Return the terms of the goal, with names of bodies, sites, joints and geoms."""
        return [self._term(*words) for words in self.env.parsed_problem["goal_state"]]

    def burner(self) -> str | None:
        """Return the joint of the knob that lights a burner, if there is one."""
        lit = [state.object_name for state in self.env.tracking_object_states_change]
        joints = [joint for name in lit for joint in self.env.get_object(name).joints]
        if len(joints) > 1:
            raise ConfigError(f"'{self.bddl_file.stem}' has several burners: {joints}")
        return joints[0] if joints else None

    def visible_sites(self) -> dict[str, list[float]]:
        """Return the colours of the sites that LIBERO's pictures show after a reset."""
        with quietly():
            self.env.visualize(vis_settings=dict.fromkeys(self.env._visualizations, False))
            self.env._post_process()
        model = self.model
        colours = {model.site(i).name: model.site_rgba[i].tolist() for i in range(model.nsite)}
        return {name: colour for name, colour in colours.items() if colour[3] > 0}

    def burner_site(self) -> str | None:
        """Return the site that is shown while a burner burns, if there is one."""
        sites = [
            site
            for state in self.env.tracking_object_states_change
            for site, _ in self.env.get_object(state.object_name)
            .object_properties["vis_site_names"]
            .values()
        ]
        return sites[0] if sites else None

    def terms_hold(self) -> list[bool]:
        """Ask LIBERO's own evaluator which terms of the goal hold now."""
        goal = self.env.parsed_problem["goal_state"]
        return [bool(self.env._eval_predicate(words)) for words in goal]

    def _term(self, predicate: str, name: str, target: str | None = None) -> dict[str, Any]:
        env = self.env
        if predicate in _JOINT_TERMS:
            return self._joint_term(predicate, name)
        if predicate not in ("on", "in") or target is None:
            raise ConfigError(f"'{self.bddl_file.stem}': unknown goal '{predicate}'")
        thing = env.get_object(name)
        term = {"kind": f"{predicate}_site", "body": thing.root_body, "target": target}
        if target in env.object_sites_dict:
            site = env.object_sites_dict[target]
            parent = env.get_object(site.parent_name) if site.parent_name else None
            geoms = None
            if predicate == "on" and parent is not None:
                geoms = [list(parent.contact_geoms), list(thing.contact_geoms)]
            return term | {"size": [float(x) for x in site.size], "touching": geoms}
        if predicate == "in":
            raise ConfigError(f"'{self.bddl_file.stem}': 'in {target}', which is no region")
        other = env.get_object(target)
        geoms = [list(other.contact_geoms), list(thing.contact_geoms)]
        return term | {"kind": "on_thing", "target": other.root_body, "touching": geoms}

    def _joint_term(self, predicate: str, name: str) -> dict[str, Any]:
        env = self.env
        if name in env.object_sites_dict:
            site = env.object_sites_dict[name]
            owner, joints = env.get_object(site.parent_name), list(site.joints)
        else:
            owner = env.get_object(name)
            joints = list(owner.joints)
        ranges, end, comparison = _JOINT_TERMS[predicate]
        if owner.category_name in _OPENS_UPWARDS and predicate in ("open", "close"):
            end = min if end is max else max
            comparison = "above" if comparison == "below" else "below"
        threshold = end(owner.object_properties["articulation"][ranges])
        return {
            "kind": "any_joint" if predicate in ("open", "turnon") else "all_joints",
            "joints": joints,
            "comparison": comparison,
            "threshold": float(threshold),
        }


def _randomization_error() -> type[Exception]:
    from robosuite.utils.errors import RandomizationError

    return RandomizationError


@contextmanager
def _without_contacts(model: mujoco.MjModel) -> Iterator[None]:
    """Spare a reset the contacts of all things at the origin, where they are until placed."""
    flags = model.opt.disableflags
    model.opt.disableflags = flags | int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
    try:
        yield
    finally:
        model.opt.disableflags = flags


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which original LIBERO draws from, for a block."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
