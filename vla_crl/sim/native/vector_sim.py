"""Many environments of one suite, stepped by action chunks and rendered only when observed."""

from collections.abc import Callable, Sequence

import mujoco
import numpy as np

from vla_crl.contracts import ChunkResult, Observation, check_actions
from vla_crl.sim.calls import (
    begun_slots,
    checked_states,
    chosen_slots,
    chunk_result,
    require_counts,
    require_running,
    require_scenes,
    reset_arrays,
)
from vla_crl.sim.divergence import Divergence, blame
from vla_crl.sim.native.drawing import Drawing, renderer_of
from vla_crl.sim.native.episodes import Episodes
from vla_crl.sim.native.kernel.predicates import Goals
from vla_crl.sim.native.kernel.progress import measure_progress
from vla_crl.sim.native.kernel.senses import add_image_noise, add_state_noise
from vla_crl.sim.native.kernel.slots import Scratch, scratch_of
from vla_crl.sim.native.kernel.stepping import evaluate_goals, refresh_slots, step_slots
from vla_crl.sim.native.layout import initial_states
from vla_crl.sim.native.memory import shortage
from vla_crl.sim.native.privileged import privileged_names, read_privileged
from vla_crl.sim.native.scene_constants import allocate_slots, constants_of
from vla_crl.sim.native.shaping import shaping_of
from vla_crl.sim.native.suite import Suite
from vla_crl.sim.outcomes import DIVERGED, RUNNING
from vla_crl.sim.packed_state import STATE_SPEC
from vla_crl.sim.renderer import model_appearance, wear
from vla_crl.sim.rotations import axis_angle_from_matrix
from vla_crl.sim.simulation import CameraPoses, Indices
from vla_crl.sim.variation import VariationConfig
from vla_crl.sim.workers import Workers

_POSES = {
    "body_pos": "xpos", "site_pos": "site_xpos", "site_mat": "site_xmat", "geom_pos": "geom_xpos",
    "geom_mat": "geom_xmat", "camera_pos": "cam_xpos", "camera_mat": "cam_xmat",
}  # fmt: skip
"""What `SlotPoses` are called in MjData."""


class VectorSim:
    """N slots of one suite on the CPU.

    A slot is a row of plain arrays (physics and controller state, poses); the few MjData in use
    belong to threads. So an episode depends only on (task, initial state id, actions): not on the
    slot, the number of slots or the number of threads. Slots may hold different tasks, also such
    of different scenes. One thread may step some slots while another observes others.

        sim = VectorSim(load_suite("tabletop_object"), num_slots=64)
        sim.reset(range(64), tasks=[0] * 64, state_ids=range(64))
        while ...:
            observation = sim.observe()                       # renders
            result = sim.step_chunk(policy(observation))      # [64, K, 7]; does not render
            finished = np.flatnonzero(result.terminated | result.truncated)
            sim.reset(finished, tasks=..., state_ids=...)     # refill at once
    """

    def __init__(
        self, suite: Suite, num_slots: int, *, num_threads: int = 2, image_size: int = 64,
        tasks: Sequence[int] | None = None, variation: VariationConfig | None = None,
    ) -> None:  # fmt: skip
        """Allocate the slots; they must be reset before use.

        Args:
            suite: What to simulate.
            num_slots: N.
            num_threads: Threads for physics and rendering.
            image_size: Height and width of each camera image, pixels.
            tasks: Task indices whose scenes are prepared now; those of others are on first use.
            variation: Of all tasks that have none of their own.

        Raises:
            ConfigError: A count is no whole number from 1 on, or a layout leaves no room.
            SpecError: The suite has no scene for this backend.
        """
        require_counts(
            "VectorSim", num_slots=num_slots, num_threads=num_threads, image_size=image_size
        )
        require_scenes("VectorSim", suite)
        self.suite = suite
        self.num_slots = num_slots
        self.variation = variation
        self._slots = allocate_slots(suite, num_slots)
        self._episodes = Episodes(suite, self._slots, variation)
        self._workers = Workers(lambda scene: scratch_of(suite.scenes[scene].model), num_threads)
        self._drawing = Drawing(suite, self._slots.poses, self._episodes, self._workers)
        self.divergences: list[Divergence] = []
        """Every chunk under which physics blew up; whoever reads it may clear it."""
        cameras = suite.embodiment.cameras
        self._images = np.empty((num_slots, len(cameras), image_size, image_size, 3), np.uint8)
        for index in np.unique(suite.scene_of_task[list(tasks or [])]).tolist():
            initial_states(suite.scenes[index])
            renderer_of(suite.scenes[index], cameras, image_size)

    def close(self) -> None:
        """Stop the threads."""
        self._workers.close()

    @property
    def tasks(self) -> np.ndarray:
        """[N] task index of each slot."""
        return self._slots.progress.task.copy()

    @property
    def state_ids(self) -> np.ndarray:
        """[N] initial state id of each slot's episode; -1 before the first reset."""
        return self._episodes.state_id.copy()

    def reset(self, slots: Indices, *, tasks: Indices, state_ids: Indices) -> None:
        """Start a new episode in each of `slots`.

        Args:
            slots: [B] slot indices.
            tasks: [B] task indices, see `Suite.task_index`.
            state_ids: [B] initial states, from `Suite.train_ids` or `Suite.test_ids`.

        Raises:
            SpecError: An index is out of range or the lengths differ.
        """
        begun, task, ids = reset_arrays(self, slots, tasks, state_ids)
        self._episodes.begin(begun, task, ids)
        self._run(refresh_slots, begun)

    def step_chunk(self, actions: np.ndarray, slots: Indices | None = None) -> ChunkResult:
        """Execute K actions in each slot; a slot stops early when its episode ends.

        Args:
            actions: [B, K, A] in [-1, 1] (clipped), one chunk per stepped slot.
            slots: [B] slot indices; all slots by default.

        Raises:
            SpecError: Wrong shape, a value that is not finite, or a slot whose episode is over.
        """
        stepped, progress = chosen_slots(self, slots), self._slots.progress
        checked = check_actions(actions, len(stepped), len(self.suite.embodiment.action))
        require_running(self, stepped, progress.outcome[stepped])
        by_slot = np.zeros((self.num_slots, *checked.shape[1:]))
        by_slot[stepped] = checked
        num_steps, dynamics = progress.num_steps[stepped], self._slots.dynamics
        # Not the physics: the slot of a world that blew up keeps its last healthy state.
        before = {n: getattr(dynamics, n)[stepped] for n in dynamics._fields if n != "physics"}
        self._run(step_slots, stepped, by_slot)
        outcome = progress.outcome[stepped]
        for k in np.flatnonzero(outcome == DIVERGED):
            state = {name: array[k] for name, array in before.items()}
            self.divergences.append(
                self._diagnose(int(stepped[k]), int(num_steps[k]), state, checked[k])
            )
        return chunk_result(outcome, progress.num_steps[stepped] - num_steps)

    def observe(self, slots: Indices | None = None, *, images: bool = True) -> Observation:
        """Render the cameras of `slots` (all by default) and read their state and instruction.

        The images of all slots are one buffer, which the next call for all slots overwrites.

        Raises:
            SpecError: A slot has no episode.
        """
        seen, episodes = begun_slots(self, slots), self._episodes
        noise = (episodes.noise_key[seen], self._slots.progress.num_steps[seen])
        state = self._proprioception(seen)
        add_state_noise(state, episodes.state_noise[seen], *noise)
        if not images:
            nothing = np.empty((len(seen), self._images.shape[1], 0, 0, 3), np.uint8)
            return Observation(nothing, state, self.instructions(seen))
        shape = (len(seen), *self._images.shape[1:])
        drawn = self._images if slots is None else np.empty(shape, np.uint8)
        self._drawing.draw(self.suite.embodiment.cameras, seen, self._scenes_of(seen), drawn)
        add_image_noise(drawn, episodes.image_noise[seen], *noise)
        return Observation(drawn, state, self.instructions(seen))

    def frames(self, camera: str, pixels: int, slots: Indices | None = None) -> np.ndarray:
        """Draw `slots` from a camera of their scenes, see `Filmed`."""
        seen = begun_slots(self, slots)
        images = np.empty((len(seen), 1, pixels, pixels, 3), np.uint8)
        self._drawing.draw((camera,), seen, self._scenes_of(seen), images)
        return images[:, 0]

    def thing_positions(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B, things, 3] positions (m, world): for labels and experts, not for policies.

        NaN where the slot's scene does not have the thing; an object that a variation has sent
        away is where it waits, out of sight.
        """
        chosen = begun_slots(self, slots)
        bodies = self.suite.thing_bodies[self._scenes_of(chosen)]
        positions = self._slots.poses.body_pos[chosen[:, None], bodies]
        positions[bodies < 0] = np.nan
        return positions

    def site_positions(self, site: int, slots: Indices | None = None) -> np.ndarray:
        """Return [B, 3] positions (m, world) of a site of the slots' scene."""
        return self._slots.poses.site_pos[begun_slots(self, slots), site]

    def satisfied(
        self,
        goals: Sequence[Goals],
        indices: np.ndarray,
        slots: Indices | None = None,
    ) -> np.ndarray:
        """Return [B] bool: whether the goal `goals[scene of slot b][indices[b]]` holds now.

        Args:
            goals: For every scene, from `Scene.compile`.
            indices: [B] which of them.
            slots: [B] slot indices; all slots by default.
        """
        chosen, poses = begun_slots(self, slots), self._slots.poses
        holds, scenes = np.empty(len(chosen), bool), self._scenes_of(chosen)
        for scene in np.unique(scenes):
            there, grip_site = scenes == scene, self.suite.grip_sites[scene]
            part = np.empty(there.sum(), bool)
            evaluate_goals(goals[scene], poses, grip_site, chosen[there], indices[there], part)
            holds[there] = part
        return holds

    def goal_progress(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B] how far each slot's goal has come, 0 to 1, see `native.kernel.progress`."""
        chosen = begun_slots(self, slots)
        progress, scenes = np.empty(len(chosen)), self._scenes_of(chosen)
        for scene in np.unique(scenes).tolist():
            there, constants = scenes == scene, constants_of(self.suite, scene)
            part, tasks = np.empty(there.sum()), self._slots.progress.task[chosen[there]]
            measure_progress(
                constants.goals, shaping_of(self.suite, scene), self._slots.poses,
                constants.grip_site, chosen[there], tasks, part,
            )  # fmt: skip
            progress[there] = part
        return progress

    @property
    def privileged_names(self) -> tuple[str, ...]:
        """What the P numbers of the privileged state are."""
        return privileged_names(self.suite)

    def privileged_state(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B, P] float32 where things are, see `native.privileged`."""
        chosen = begun_slots(self, slots)
        return read_privileged(self.suite, self._slots.poses, chosen, self._scenes_of(chosen))

    def grip_pose(self, slots: Indices | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the grip site's position [B, 3] (m, world) and rotation matrix [B, 3, 3]."""
        chosen, poses = begun_slots(self, slots), self._slots.poses
        site = self.suite.grip_sites[self._scenes_of(chosen)]
        return poses.site_pos[chosen, site], poses.site_mat[chosen, site].reshape(-1, 3, 3)

    def finger_positions(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B, 2] finger joint positions (m; 0 closed)."""
        chosen = begun_slots(self, slots)
        index = self.suite.finger_qpos[self._scenes_of(chosen)]
        return self._slots.poses.qpos[chosen[:, None], index]

    def instructions(self, slots: Indices | None = None) -> tuple[str, ...]:
        """Return what the policy is told in each of `slots`."""
        return self._episodes.instructions(begun_slots(self, slots))

    def action_latency(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B] control steps by which actions take effect late."""
        return self._slots.varied.latency[begun_slots(self, slots)]

    def latest_actions(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B, A] the last action sent of those that wait; of no meaning without latency."""
        chosen, num_steps = begun_slots(self, slots), self._slots.progress.num_steps
        latency = np.maximum(self._slots.varied.latency[chosen], 1)
        return self._slots.dynamics.pending[chosen, (num_steps[chosen] - 1) % latency]

    def base_shift(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B, 3] how far (m, world) the robot is displaced."""
        return self._slots.varied.base_shift[begun_slots(self, slots)]

    def controller_states(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B, R] what the robots are commanded to do now, see `kernel.controller`."""
        return self._slots.dynamics.controller[begun_slots(self, slots)]

    def camera_poses(self, slots: Indices | None = None) -> CameraPoses:
        """Return where the policy's cameras are."""
        chosen, poses = begun_slots(self, slots), self._slots.poses
        scenes = self._scenes_of(chosen)
        cameras, fovy_rad = self.suite.camera_ids[scenes], self.suite.camera_fovy_rad[scenes]
        rotation = poses.camera_mat[chosen[:, None], cameras].reshape(*cameras.shape, 3, 3)
        return CameraPoses(poses.camera_pos[chosen[:, None], cameras], rotation, fovy_rad)

    def scene_model(self, slot: int) -> mujoco.MjModel:
        """Return what is simulated and drawn of a slot's scene."""
        return self.suite.scenes[self._scenes_of(begun_slots(self, [slot]))[0]].model

    def write_scene(self, slot: int, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Put what is seen of a slot into a model and an MjData of it, for MuJoCo's own renderer.

        Args:
            slot: Which one.
            model: A copy of the slot's `scene_model`; gets the slot's colours, textures
                and lights.
            data: Gets the slot's state and its poses, also where robot or cameras are displaced.
        """
        chosen = begun_slots(self, [slot])
        scene = int(self._scenes_of(chosen)[0])
        own = model_appearance(self.suite.scenes[scene].model)
        wear(model, self._episodes.dress(own, scene, chosen))
        mujoco.mj_setState(model, data, self._physics(slot), STATE_SPEC)
        mujoco.mj_forward(model, data)
        for name, part in _POSES.items():
            own = getattr(data, part)
            own[:] = getattr(self._slots.poses, name)[slot, : len(own)]

    def get_states(self) -> dict[str, np.ndarray]:
        """Copy everything that the future of the slots depends on."""
        slots = self._slots
        fields = slots.dynamics._asdict() | slots.progress._asdict()
        copies = {name: array.copy() for name, array in fields.items()}
        return copies | {"state_id": self._episodes.state_id.copy()}

    def set_states(self, states: dict[str, np.ndarray]) -> None:
        """Continue from what `get_states` of a simulation with as many slots returned.

        Who lifts or pushes a thing by changing "physics" also sets its "tree_asleep" to
        `packed_state.JUST_WOKEN`: what sleeps wakes only by touch.

        Raises:
            SpecError: They do not fit this suite and number of slots; nothing has changed.
        """
        self._episodes.continue_from(checked_states(self, states, self.get_states()))
        self._run(refresh_slots, np.arange(self.num_slots))

    def _proprioception(self, slots: np.ndarray) -> np.ndarray:
        position, rotation = self.grip_pose(slots)
        index = self.suite.felt_qpos[self._scenes_of(slots)]
        joints = self._slots.poses.qpos[slots[:, None], index]
        parts = (position, axis_angle_from_matrix(rotation), joints)
        return np.concatenate(parts, axis=1).astype(np.float32)

    def _scenes_of(self, slots: np.ndarray) -> np.ndarray:
        return self.suite.scene_of_task[self._slots.progress.task[slots]]

    def _physics(self, slot: int) -> np.ndarray:
        """Return the used part of a slot's packed physics state."""
        model = self.suite.scenes[self._scenes_of(np.array([slot]))[0]].model
        return self._slots.dynamics.physics[slot, : mujoco.mj_stateSize(model, STATE_SPEC)]

    def _run(self, kernel: Callable[..., None], slots: np.ndarray, *arguments: np.ndarray) -> None:
        """Run a kernel over blocks of slots on all threads."""

        def work(scene: int, scratch: Scratch, block: np.ndarray) -> None:
            kernel(constants_of(self.suite, scene), scratch, self._slots, block, *arguments)

        self._workers.step(work, slots, self._scenes_of(slots))

    def _diagnose(
        self, slot: int, num_steps: int, before: dict[str, np.ndarray], actions: np.ndarray
    ) -> Divergence:
        """Run the chunk again in one MjData, to see what moves too fast in the end.

        Args:
            slot: Whose world blew up.
            num_steps: Control steps before the chunk.
            before: What `Dynamics` were before it, but for the physics, which still are.
            actions: [K, A] the chunk.
        """
        progress, scene = self._slots.progress, int(self._scenes_of(np.array([slot]))[0])
        for name, value in before.items():
            getattr(self._slots.dynamics, name)[slot] = value
        progress.num_steps[slot], progress.outcome[slot] = num_steps, RUNNING
        by_slot = np.zeros((self.num_slots, *actions.shape))
        by_slot[slot] = actions
        physics = self._physics(slot).copy()
        with self._workers.model_copy(scene) as copy:
            constants, alone = constants_of(self.suite, scene), np.array([slot])
            step_slots(constants, copy.scratch, self._slots, alone, by_slot)
            qpos, qvel = np.split(physics[1 : 1 + copy.model.nq + copy.model.nv], [copy.model.nq])
            cause = shortage(copy.model, copy.data) or blame(copy.model, qpos, qvel, copy.data.qvel)
        return Divergence(
            suite=self.suite.name,
            task=self.suite.tasks[progress.task[slot]].name,
            state_id=int(self._episodes.state_id[slot]),
            num_steps=num_steps,
            cause=cause,
            actions=actions.copy(),
            state={"physics": physics} | before,
            variation=self.variation,
        )
