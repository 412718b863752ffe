"""How an episode begins: initial state and what it varies, written into the slots."""

from collections.abc import Mapping
from typing import Any, cast

import mujoco
import numpy as np

from vla_crl.errors import ConfigError, SpecError, unknown_name
from vla_crl.sim.native.controllers import holding
from vla_crl.sim.native.kernel.controller import FINGER, JOINTS, POSITION
from vla_crl.sim.native.kernel.slots import Slots
from vla_crl.sim.native.layout import initial_states
from vla_crl.sim.native.scene import Scene
from vla_crl.sim.native.scene_constants import constants_of
from vla_crl.sim.native.suite import Suite, Task
from vla_crl.sim.outcomes import RUNNING
from vla_crl.sim.packed_state import JUST_WOKEN
from vla_crl.sim.renderer import Appearance
from vla_crl.sim.rotations import matrix_from_axis_angle
from vla_crl.sim.variation import VariationConfig, draw

OWN_MATERIAL = -1
"""Instead of a material's index: nothing is covered by another."""
AWAY_M = (3.0, 0.3)
"""Place of an absent object (world), times its number along y: behind the cameras that look at the
robot, on the ground."""
NO_EPISODE = -1
"""Initial state id of a slot before its first episode."""


class Episodes:
    """Begins episodes and remembers what they drew that physics does not need.

    Attributes:
        state_id: [N] initial state, or NO_EPISODE.
        varies: [scenes] bool: whether episodes of a scene differ in more than their layout.
        light_gain: [N] factor on the strength of all lights.
        has_own_look: [N] bool: whether colours, textures or lights are not those of the scene.
        image_noise: [N] standard deviation, as a part of white.
        state_noise: [N] standard deviation (m, rad).
        noise_key: [N] what the noise of an episode depends on.
    """

    def __init__(self, suite: Suite, slots: Slots, variation: VariationConfig | None) -> None:
        """Remember what varies; initial states are computed when a scene is first begun in.

        Args:
            suite: Its tasks may vary.
            slots: Written by `begin`.
            variation: Of tasks that have none of their own.

        Raises:
            ConfigError: A variation names a material that a scene does not have, or sends objects
                away where there is no ground.
            SpecError: The variation is something else.
        """
        if not isinstance(cast(Any, variation), VariationConfig | None):
            raise SpecError(
                f"variation is a {type(variation).__name__}, expected a VariationConfig or None"
            )
        num_slots = len(slots.progress.task)
        self._suite, self._slots = suite, slots
        variations = (task.variation or variation for task in suite.tasks)
        self._variations = [v if v is not None and v.varies else None for v in variations]
        for task, varied in zip(suite.tasks, self._variations, strict=True):
            model = suite.scenes[task.scene].model
            if varied and varied.absent_distractors[1] and not _has_ground(model):
                raise ConfigError(
                    f"variation of '{task.name}': absent_distractors needs a geom of type plane; "
                    "on it stand those that are away"
                )
            if varied and varied.friction_gain != (1.0, 1.0) and model.npair:
                raise ConfigError(
                    f"variation of '{task.name}': friction_gain is of geoms, but the contact pair "
                    f"'{model.pair(0).name}' (id 0) has a friction of its own; leave out either"
                )
            known = [model.material(material).name for material in range(model.nmat)]
            for name in varied.materials if varied else ():
                if name not in known:
                    raise unknown_name(f"variation of '{task.name}'", "material", name, known)
        self.varies = np.zeros(len(suite.scenes), dtype=bool)
        for task, varied in zip(suite.tasks, self._variations, strict=True):
            self.varies[task.scene] |= varied is not None
        self._sentence = np.zeros(num_slots, np.int64)
        self.state_id = np.full(num_slots, NO_EPISODE)
        self.image_noise, self.state_noise = np.zeros((2, num_slots))
        self.light_gain, self._light_turn = np.ones(num_slots), np.zeros((num_slots, 3, 3))
        self._colour_shift = np.zeros((num_slots, 2, 3))
        self._material = np.full(num_slots, OWN_MATERIAL)
        self.has_own_look = np.zeros(num_slots, dtype=bool)
        self.noise_key = np.zeros(num_slots, np.int64)

    def begin(self, slots: np.ndarray, tasks: np.ndarray, state_ids: np.ndarray) -> None:
        """Write the first moment of an episode into each of `slots`.

        Args:
            slots: [B].
            tasks: [B] task indices.
            state_ids: [B] initial states.

        Raises:
            ConfigError: A scene's layout leaves no room, or the arm does not reach it.
        """
        progress, dynamics = self._slots.progress, self._slots.dynamics
        scenes = self._suite.scene_of_task[tasks]
        for scene in np.unique(scenes):
            initial_states(self._suite.scenes[scene])  # before anything is changed
        progress.task[slots], progress.num_steps[slots], progress.outcome[slots] = tasks, 0, RUNNING
        dynamics.physics[slots], dynamics.controller[slots] = 0.0, 0.0
        dynamics.tree_asleep[slots] = JUST_WOKEN
        self.state_id[slots], self._sentence[slots] = state_ids, 0
        self._vary_nothing(slots)
        for scene in np.unique(scenes):
            chosen = scenes == scene
            self._place(int(scene), slots[chosen], tasks[chosen], state_ids[chosen])
        for slot, task, state_id in zip(slots, tasks, state_ids, strict=True):
            variation = self._variations[task]
            if variation is not None:
                self._vary(variation, int(slot), int(task), int(state_id))

    def continue_from(self, states: Mapping[str, np.ndarray]) -> None:
        """Put all slots where checked `states` say they are; what they draw is drawn again."""
        begun = np.flatnonzero(states["state_id"] >= 0)
        self.begin(begun, states["task"][begun], states["state_id"][begun])
        self.state_id[:] = states["state_id"]
        for part in (self._slots.progress, self._slots.dynamics):
            for name, array in part._asdict().items():
                array[:] = states[name]

    def instructions(self, slots: np.ndarray) -> tuple[str, ...]:
        """Return what the policy is told in each of `slots`."""
        tasks = self._suite.tasks
        own = self._slots.progress.task[slots]
        return tuple(
            (tasks[task].instruction, *tasks[task].paraphrases)[sentence]
            for task, sentence in zip(own, self._sentence[slots], strict=True)
        )

    def dress(self, look: Appearance, scene: int, slots: np.ndarray) -> Appearance:
        """Turn the scene's look into that of the episodes in `slots`.

        Args:
            look: The scene's own, one world a slot; written.
            scene: In which all of them are.
            slots: [B].

        Returns:
            `look`.
        """
        own = self._suite.scenes[scene]
        model, bodies = own.model, own.bodies
        roots = model.body_rootid[model.geom_bodyid]
        is_robot = roots == model.body_rootid[model.body(own.config.arm.base).id]
        is_named = np.isin(roots, model.body_rootid[list(bodies.values())])
        rest = ~is_robot & ~is_named
        for part, geoms in enumerate((is_robot, rest)):
            shift = self._colour_shift[slots, part][:, None]
            look.geom_rgb[:, geoms] = np.clip(look.geom_rgb[:, geoms] + shift, 0.0, 1.0)
        covered = np.flatnonzero(self._material[slots] != OWN_MATERIAL)
        look.geom_matid[np.ix_(covered, rest)] = self._material[slots[covered], None]
        gain = self.light_gain[slots].astype(np.float32)
        for field in (
            *(look.headlight_ambient, look.headlight_diffuse),
            *(look.light_ambient, look.light_diffuse),
        ):
            field[:] *= gain.reshape(-1, *[1] * (field.ndim - 1))
        look.light_dir[:] = np.einsum("bij,blj->bli", self._light_turn[slots], look.light_dir)
        return look

    def _place(
        self, scene: int, slots: np.ndarray, tasks: np.ndarray, state_ids: np.ndarray
    ) -> None:
        """Write the packed physics state: time, qpos, qvel, act, warmstart, ctrl, mocap poses."""
        model, constants = self._suite.scenes[scene].model, constants_of(self._suite, scene)
        initial, dynamics = initial_states(self._suite.scenes[scene]), self._slots.dynamics
        controller = initial.controller[state_ids]
        start_qpos = np.array([self._suite.tasks[task].start_qpos for task in tasks])
        qpos = np.where(np.isnan(start_qpos), initial.qpos[state_ids], start_qpos)
        dynamics.physics[slots, 1 : 1 + model.nq] = qpos
        dynamics.controller[slots, : controller.shape[1]] = controller
        dynamics.pending[slots] = holding(constants.controller, controller)[:, None]
        ctrl = np.zeros((len(slots), model.nu))
        ctrl[:, constants.arm_actuators] = controller[:, JOINTS]
        ctrl[:, constants.finger_actuators] = controller[:, FINGER, None]
        mocap_pos = initial.mocap_pos[state_ids].reshape(len(slots), 3 * model.nmocap)
        mocap_quat = np.tile(model.body_quat[model.body_mocapid >= 0].ravel(), (len(slots), 1))
        rest = np.concatenate([ctrl, mocap_pos, mocap_quat], axis=1)
        begin = _commands_at(model)
        dynamics.physics[slots, begin : begin + rest.shape[1]] = rest

    def _vary_nothing(self, slots: np.ndarray) -> None:
        varied = self._slots.varied
        varied.camera_shift[slots], varied.camera_turn[slots] = 0.0, np.eye(3).ravel()
        varied.base_shift[slots], varied.latency[slots] = 0.0, 0
        varied.mass_gain[slots], varied.friction_gain[slots] = 1.0, 1.0
        self.image_noise[slots], self.state_noise[slots] = 0.0, 0.0
        self.has_own_look[slots], self.light_gain[slots] = False, 1.0
        self._light_turn[slots], self._colour_shift[slots] = np.eye(3), 0.0
        self._material[slots] = OWN_MATERIAL

    def _vary(self, variation: VariationConfig, slot: int, task: int, state_id: int) -> None:
        varied, own = self._slots.varied, self._suite.tasks[task]
        scene = self._suite.scenes[own.scene]
        distractors = _distractors(own, scene)
        drawn = draw(variation, state_id, len(scene.objects), len(distractors))
        self._send_away(slot, scene.model, scene.objects[distractors[drawn.absent]])
        varied.camera_shift[slot] = drawn.camera_shift
        varied.camera_turn[slot] = matrix_from_axis_angle(drawn.camera_turn).ravel()
        self._displace(slot, scene, drawn.base_shift)
        varied.mass_gain[slot, : len(drawn.mass_gain)] = drawn.mass_gain
        varied.friction_gain[slot] = drawn.friction_gain
        varied.latency[slot] = drawn.latency
        self.image_noise[slot], self.state_noise[slot] = drawn.image_noise, drawn.state_noise
        self.has_own_look[slot] = True
        self.light_gain[slot] = drawn.light_gain
        self._light_turn[slot] = matrix_from_axis_angle(drawn.light_turn)
        self._colour_shift[slot] = drawn.colour_shift
        if drawn.material is not None:
            self._material[slot] = scene.model.material(drawn.material).id
        key = np.uint64((variation.seed << 32) + state_id)
        self.noise_key[slot] = key.view(np.int64)
        if drawn.paraphrase is not None:
            self._sentence[slot] = int(drawn.paraphrase * (1 + len(own.paraphrases)))

    def _send_away(self, slot: int, model: mujoco.MjModel, bodies: np.ndarray) -> None:
        """Put objects where nothing looks or reaches."""
        for body in bodies:
            place = 1 + model.jnt_qposadr[model.body_jntadr[body]]
            away = AWAY_M[0], AWAY_M[1] * body
            self._slots.dynamics.physics[slot, place : place + 2] = away

    def _displace(self, slot: int, scene: Scene, shift: np.ndarray) -> None:
        """Put the robot elsewhere (m, world); its gripper moves with it."""
        model, dynamics = scene.model, self._slots.dynamics
        mocap = model.body(scene.config.arm.base).mocapid[0]
        place = _commands_at(model) + model.nu + 3 * mocap
        dynamics.physics[slot, place : place + 3] += shift
        dynamics.controller[slot, POSITION] += shift
        self._slots.varied.base_shift[slot] = shift


def _distractors(task: Task, scene: Scene) -> np.ndarray:
    """Return the objects of the task's scene that its goal does not name, as places in a list."""
    named = {name for term in task.goal.terms() for name in term.arguments}
    bodies = [scene.bodies[name] for name in named & scene.bodies.keys()]
    return np.flatnonzero(~np.isin(scene.objects, bodies))


def _has_ground(model: mujoco.MjModel) -> bool:
    return bool(np.any(model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE))


def _commands_at(model: mujoco.MjModel) -> int:
    """Where the packed physics state's ctrl begins; the mocap positions follow it."""
    return 1 + model.nq + model.nv + model.na + model.nv
