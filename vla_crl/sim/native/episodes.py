"""How an episode begins: initial state and what it varies, written into the slots."""

from collections.abc import Sequence
from typing import Any, cast

import mujoco
import numpy as np

from vla_crl.errors import ConfigError, SpecError, unknown_name
from vla_crl.sim.native.kernel.slots import JUST_WOKEN, SceneConstants, Slots
from vla_crl.sim.native.layout import initial_states
from vla_crl.sim.native.suite import Suite, Task
from vla_crl.sim.outcomes import RUNNING
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
        fingers: [scenes, 2] index into qpos.
        image_noise: [N] standard deviation, as a part of white.
        state_noise: [N] standard deviation (m, rad).
        noise_key: [N] what the noise of an episode depends on.
    """

    def __init__(
        self,
        suite: Suite,
        worlds: Sequence[SceneConstants],
        slots: Slots,
        variation: VariationConfig | None,
    ) -> None:
        """Prepare the initial states of all scenes.

        Args:
            suite: Its tasks may vary.
            worlds: One a scene.
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
        num_slots = len(slots.task)
        self._suite, self._worlds, self._slots = suite, worlds, slots
        variations = (task.variation or variation for task in suite.tasks)
        self._variations = [v if v is not None and v.varies else None for v in variations]
        self._distractors = [_distractors(suite, task, worlds[task.scene]) for task in suite.tasks]
        for task, varied in zip(suite.tasks, self._variations, strict=True):
            model = suite.scenes[task.scene].model
            if varied and varied.absent_distractors[1] and not _has_ground(model):
                raise ConfigError(
                    f"variation of '{task.name}': absent_distractors needs a geom of type plane; "
                    "on it stand those that are away"
                )
            known = [model.material(material).name for material in range(model.nmat)]
            for name in varied.materials if varied else ():
                if name not in known:
                    raise unknown_name(f"variation of '{task.name}'", "material", name, known)
        self.varies = np.zeros(len(suite.scenes), dtype=bool)
        for task, varied in zip(suite.tasks, self._variations, strict=True):
            self.varies[task.scene] |= varied is not None
        self._initial = [initial_states(scene) for scene in suite.scenes]
        self._sentence = np.zeros(num_slots, np.int64)
        self.state_id = np.full(num_slots, NO_EPISODE)
        self.fingers = np.array(
            [
                [scene.model.joint(name).qposadr[0] for name in scene.config.arm.fingers]
                for scene in suite.scenes
            ]
        )
        self.image_noise, self.state_noise = np.zeros((2, num_slots))
        self.light_gain, self._light_turn = np.ones(num_slots), np.zeros((num_slots, 3, 3))
        self._colour_shift = np.zeros((num_slots, 2, 3))
        self._material = np.full(num_slots, OWN_MATERIAL)
        self.has_own_look = np.zeros(num_slots, dtype=bool)
        self.noise_key = np.zeros(num_slots, np.int64)

    def begin(self, rows: np.ndarray, tasks: np.ndarray, state_ids: np.ndarray) -> None:
        """Write the first moment of an episode into each of `rows`.

        Args:
            rows: [B] slots.
            tasks: [B] task indices.
            state_ids: [B] initial states.
        """
        slots = self._slots
        slots.task[rows], slots.num_steps[rows], slots.outcome[rows] = tasks, 0, RUNNING
        slots.physics[rows], slots.controller[rows], slots.pending[rows] = 0.0, 0.0, 0.0
        slots.tree_asleep[rows] = JUST_WOKEN
        self.state_id[rows], self._sentence[rows] = state_ids, 0
        scenes = self._suite.scene_of_task[tasks]
        for scene in np.unique(scenes):
            chosen = scenes == scene
            self._place(int(scene), rows[chosen], tasks[chosen], state_ids[chosen])
        for row, task, state_id in zip(rows, tasks, state_ids, strict=True):
            variation = self._variations[task]
            if variation is not None:
                self._vary(variation, int(row), int(task), int(state_id))

    def instructions(self, rows: np.ndarray) -> tuple[str, ...]:
        """Return what the policy is told in each of `rows`."""
        tasks = self._suite.tasks
        return tuple(
            (tasks[task].instruction, *tasks[task].paraphrases)[sentence]
            for task, sentence in zip(self._slots.task[rows], self._sentence[rows], strict=True)
        )

    def dress(self, look: Appearance, scene: int, rows: np.ndarray) -> Appearance:
        """Turn the scene's look into that of the episodes in `rows`.

        Args:
            look: The scene's own, one world a row; written.
            scene: In which all the rows are.
            rows: [B] slots.

        Returns:
            `look`.
        """
        model, bodies = self._suite.scenes[scene].model, self._suite.scenes[scene].bodies
        roots = model.body_rootid[model.geom_bodyid]
        is_robot = roots == model.body_rootid[self._worlds[scene].base]
        is_named = np.isin(roots, model.body_rootid[list(bodies.values())])
        rest = ~is_robot & ~is_named
        for part, geoms in enumerate((is_robot, rest)):
            shift = self._colour_shift[rows, part][:, None]
            look.geom_rgb[:, geoms] = np.clip(look.geom_rgb[:, geoms] + shift, 0.0, 1.0)
        covered = np.flatnonzero(self._material[rows] != OWN_MATERIAL)
        look.geom_matid[np.ix_(covered, rest)] = self._material[rows[covered], None]
        gain = self.light_gain[rows].astype(np.float32)
        for field in (
            *(look.headlight_ambient, look.headlight_diffuse),
            *(look.light_ambient, look.light_diffuse),
        ):
            field[:] *= gain.reshape(-1, *[1] * (field.ndim - 1))
        look.light_dir[:] = np.einsum("bij,blj->bli", self._light_turn[rows], look.light_dir)
        return look

    def _place(
        self, scene: int, rows: np.ndarray, tasks: np.ndarray, state_ids: np.ndarray
    ) -> None:
        """Write the packed physics state: time, qpos, qvel, act, warmstart, ctrl, mocap poses."""
        model, world = self._suite.scenes[scene].model, self._worlds[scene]
        initial, slots = self._initial[scene], self._slots
        start_qpos = np.array([self._suite.tasks[task].start_qpos for task in tasks])
        qpos = initial.qpos[state_ids]
        slots.physics[rows, 1 : 1 + model.nq] = np.where(np.isnan(start_qpos), qpos, start_qpos)
        slots.controller[rows, : initial.controller.shape[1]] = initial.controller[state_ids]
        ctrl = np.zeros((len(rows), model.nu))
        ctrl[:, world.arm_actuators] = initial.controller[state_ids, 12:-1]
        ctrl[:, world.finger_actuators] = initial.controller[state_ids, -1:]
        mocap_pos = initial.mocap_pos[state_ids].reshape(len(rows), 3 * model.nmocap)
        mocap_quat = np.tile(model.body_quat[model.body_mocapid >= 0].ravel(), (len(rows), 1))
        rest = np.concatenate([ctrl, mocap_pos, mocap_quat], axis=1)
        begin = _commands_at(model)
        slots.physics[rows, begin : begin + rest.shape[1]] = rest
        slots.camera_shift[rows], slots.camera_turn[rows] = 0.0, np.eye(3).ravel()
        slots.base_shift[rows], slots.latency[rows] = 0.0, 0
        slots.mass_gain[rows], slots.friction_gain[rows] = 1.0, 1.0
        self.image_noise[rows], self.state_noise[rows] = 0.0, 0.0
        self.has_own_look[rows], self.light_gain[rows] = False, 1.0
        self._light_turn[rows], self._colour_shift[rows] = np.eye(3), 0.0
        self._material[rows] = OWN_MATERIAL

    def _vary(self, variation: VariationConfig, row: int, task: int, state_id: int) -> None:
        slots, scene = self._slots, self._suite.tasks[task].scene
        objects, distractors = self._worlds[scene].objects, self._distractors[task]
        drawn = draw(variation, state_id, len(objects.body), len(distractors))
        self._send_away(row, scene, objects.body[distractors[drawn.absent]])
        slots.camera_shift[row] = drawn.camera_shift
        slots.camera_turn[row] = matrix_from_axis_angle(drawn.camera_turn).ravel()
        self._displace(row, scene, drawn.base_shift)
        slots.mass_gain[row, : len(drawn.mass_gain)] = drawn.mass_gain
        slots.friction_gain[row] = drawn.friction_gain
        slots.latency[row] = drawn.latency
        self.image_noise[row], self.state_noise[row] = drawn.image_noise, drawn.state_noise
        self.has_own_look[row] = True
        self.light_gain[row] = drawn.light_gain
        self._light_turn[row] = matrix_from_axis_angle(drawn.light_turn)
        self._colour_shift[row] = drawn.colour_shift
        if drawn.material is not None:
            self._material[row] = self._suite.scenes[scene].model.material(drawn.material).id
        key = np.uint64((variation.seed << 32) + state_id)
        self.noise_key[row] = key.view(np.int64)
        if drawn.paraphrase is not None:
            sentences = 1 + len(self._suite.tasks[task].paraphrases)
            self._sentence[row] = int(drawn.paraphrase * sentences)

    def _send_away(self, row: int, scene: int, bodies: np.ndarray) -> None:
        """Put objects where nothing looks or reaches."""
        model = self._suite.scenes[scene].model
        for body in bodies:
            place = 1 + model.jnt_qposadr[model.body_jntadr[body]]
            self._slots.physics[row, place : place + 2] = AWAY_M[0], AWAY_M[1] * body

    def _displace(self, row: int, scene: int, shift: np.ndarray) -> None:
        """Put the robot elsewhere (m, world); its gripper moves with it."""
        model, slots = self._suite.scenes[scene].model, self._slots
        mocap = model.body_mocapid[self._worlds[scene].base]
        place = _commands_at(model) + model.nu + 3 * mocap
        slots.physics[row, place : place + 3] += shift
        slots.controller[row, :3] += shift
        slots.base_shift[row] = shift


def _distractors(suite: Suite, task: Task, world: SceneConstants) -> np.ndarray:
    """Return the objects of the task's scene that its goal does not name, as places in a list."""
    named = {name for term in task.goal.terms() for name in term.arguments}
    bodies = suite.scenes[task.scene].bodies
    is_named = np.isin(world.objects.body, [bodies[name] for name in named & bodies.keys()])
    return np.flatnonzero(~is_named)


def _has_ground(model: mujoco.MjModel) -> bool:
    return bool(np.any(model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE))


def _commands_at(model: mujoco.MjModel) -> int:
    """Where the packed physics state's ctrl begins; the mocap positions follow it."""
    return 1 + model.nq + model.nv + model.na + model.nv
