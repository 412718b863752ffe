"""Many environments of one suite, stepped by action chunks and rendered only when observed."""

from collections.abc import Callable, Sequence

import mujoco
import numpy as np

from vla_crl.contracts import ChunkResult, Observation, check_actions
from vla_crl.sim.calls import (
    checked_states,
    chunk_result,
    episode_rows,
    require_counts,
    require_running,
    require_scenes,
    reset_arrays,
    rows_of,
)
from vla_crl.sim.divergence import Divergence, blame
from vla_crl.sim.native.episodes import Episodes
from vla_crl.sim.native.kernel.predicates import Goals
from vla_crl.sim.native.kernel.senses import add_image_noise, add_state_noise
from vla_crl.sim.native.kernel.slots import STATE_SPEC, Scratch, allocate_slots, constants_of
from vla_crl.sim.native.kernel.stepping import evaluate_goals, refresh_slots, step_slots
from vla_crl.sim.native.suite import Suite
from vla_crl.sim.native.workers import Workers
from vla_crl.sim.outcomes import DIVERGED, RUNNING
from vla_crl.sim.renderer import BatchRenderer, model_appearance, wear
from vla_crl.sim.rotations import axis_angle_from_matrix
from vla_crl.sim.simulation import CameraPoses, Indices
from vla_crl.sim.variation import VariationConfig

_POSES = {
    "body_pos": "xpos", "site_pos": "site_xpos", "site_mat": "site_xmat", "geom_pos": "geom_xpos",
    "geom_mat": "geom_xmat", "camera_pos": "cam_xpos", "camera_mat": "cam_xmat",
}  # fmt: skip
"""What the poses of `Slots` are called in MjData."""


class VectorSim:
    """N slots of one suite on the CPU.

    A slot is a row of plain arrays (physics state, controller, poses); the few MjData in use belong
    to threads. So an episode depends only on (task, initial state id, actions): not on the slot,
    the number of slots or the number of threads. Slots may hold different tasks, also such of
    different scenes. One thread may step some slots while another observes others.

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
            tasks: Task indices whose renderers are made now; the others' when they are seen.
            variation: Of all tasks that have none of their own.

        Raises:
            ConfigError: A count is no whole number from 1 on.
            SpecError: The suite has no scene for this backend.
        """
        require_counts(
            "VectorSim", num_slots=num_slots, num_threads=num_threads, image_size=image_size
        )
        require_scenes("VectorSim", suite)
        self.suite = suite
        self.num_slots = num_slots
        self.variation = variation
        self._worlds = [constants_of(suite, index) for index in range(len(suite.scenes))]
        self._slots = allocate_slots(suite, self._worlds, num_slots)
        self._episodes = Episodes(suite, self._worlds, self._slots, variation)
        self._renderers: dict[tuple[int, tuple[str, ...], int], BatchRenderer] = {}
        scenes = suite.scene_of_task if tasks is None else suite.scene_of_task[list(tasks)]
        for scene in np.unique(scenes).tolist():
            self._renderer(scene, suite.embodiment.cameras, image_size)
        self._workers = Workers([scene.model for scene in suite.scenes], num_threads)
        self.divergences: list[Divergence] = []
        """Every chunk under which physics blew up; whoever reads it may clear it."""
        num_cameras = len(suite.embodiment.cameras)
        self._images = np.empty((num_slots, num_cameras, image_size, image_size, 3), np.uint8)

    def close(self) -> None:
        """Stop the threads."""
        self._workers.close()

    @property
    def tasks(self) -> np.ndarray:
        """[N] task index of each slot."""
        return self._slots.task.copy()

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
        rows, task, ids = reset_arrays(self, slots, tasks, state_ids)
        self._episodes.begin(rows, task, ids)
        self._run(refresh_slots, rows)

    def step_chunk(self, actions: np.ndarray, slots: Indices | None = None) -> ChunkResult:
        """Execute K actions in each slot; a slot stops early when its episode ends.

        Args:
            actions: [B, K, 7] in [-1, 1] (clipped), one chunk per stepped slot.
            slots: [B] slot indices; all slots by default.

        Raises:
            SpecError: Wrong shape, a value that is not finite, or a slot whose episode is over.
        """
        rows = rows_of(self, slots)
        checked = check_actions(actions, len(rows), len(self.suite.embodiment.action))
        state = self._slots
        require_running(self, rows, state.outcome[rows])
        by_slot = np.zeros((self.num_slots, *checked.shape[1:]))
        by_slot[rows] = checked
        names = ("num_steps", "controller", "pending", "tree_asleep")
        before = {name: getattr(state, name)[rows].copy() for name in names}
        self._run(step_slots, rows, by_slot)
        outcome = state.outcome[rows]
        for k in np.flatnonzero(outcome == DIVERGED):
            self.divergences.append(
                self._diagnose(int(rows[k]), {n: v[k] for n, v in before.items()}, checked[k])
            )
        return chunk_result(outcome, state.num_steps[rows] - before["num_steps"])

    def observe(self, slots: Indices | None = None, *, images: bool = True) -> Observation:
        """Render the cameras of `slots` (all by default) and read their state and instruction.

        The images of all slots are one buffer, which the next call for all slots overwrites.

        Raises:
            SpecError: A slot has no episode.
        """
        rows, episodes = episode_rows(self, slots), self._episodes
        noise = (episodes.noise_key[rows], self._slots.num_steps[rows])
        state = self._proprioception(rows)
        add_state_noise(state, episodes.state_noise[rows], *noise)
        if not images:
            nothing = np.empty((len(rows), self._images.shape[1], 0, 0, 3), np.uint8)
            return Observation(nothing, state, self.instructions(rows))
        shape = (len(rows), *self._images.shape[1:])
        drawn = self._images if slots is None else np.empty(shape, np.uint8)
        self._draw(self.suite.embodiment.cameras, rows, drawn)
        add_image_noise(drawn, episodes.image_noise[rows], *noise)
        return Observation(drawn, state, self.instructions(rows))

    def frames(self, camera: str, pixels: int, slots: Indices | None = None) -> np.ndarray:
        """Draw `slots` from a camera of their scenes, see `Filmed`."""
        rows = episode_rows(self, slots)
        images = np.empty((len(rows), 1, pixels, pixels, 3), np.uint8)
        self._draw((camera,), rows, images)
        return images[:, 0]

    def thing_positions(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B, things, 3] positions (m, world): for labels and experts, not for policies.

        NaN where the slot's scene does not have the thing; an object that a variation has sent
        away is where it waits, out of sight.
        """
        rows = episode_rows(self, slots)
        bodies = self.suite.thing_bodies[self._scenes_of(rows)]
        positions = self._slots.body_pos[rows[:, None], bodies]
        positions[bodies < 0] = np.nan
        return positions

    def site_positions(self, site: int, slots: Indices | None = None) -> np.ndarray:
        """Return [B, 3] positions (m, world) of a site of the slots' scene."""
        return self._slots.site_pos[episode_rows(self, slots), site]

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
        rows = episode_rows(self, slots)
        holds, scenes = np.empty(len(rows), bool), self._scenes_of(rows)
        for scene in np.unique(scenes):
            chosen, grip_site = scenes == scene, self._worlds[scene].grip_site
            part = np.empty(chosen.sum(), bool)
            evaluate_goals(
                goals[scene], self._slots, grip_site, rows[chosen], indices[chosen], part
            )
            holds[chosen] = part
        return holds

    def grip_pose(self, slots: Indices | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the grip site's position [B, 3] (m, world) and rotation matrix [B, 3, 3]."""
        rows = episode_rows(self, slots)
        site = np.array([world.grip_site for world in self._worlds])[self._scenes_of(rows)]
        return self._slots.site_pos[rows, site], self._slots.site_mat[rows, site].reshape(-1, 3, 3)

    def finger_positions(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B, 2] finger joint positions (m; 0 closed)."""
        rows = episode_rows(self, slots)
        return self._slots.qpos[rows[:, None], self._episodes.fingers[self._scenes_of(rows)]]

    def instructions(self, slots: Indices | None = None) -> tuple[str, ...]:
        """Return what the policy is told in each of `slots`."""
        return self._episodes.instructions(episode_rows(self, slots))

    def action_latency(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B] control steps by which actions take effect late."""
        return self._slots.latency[episode_rows(self, slots)]

    def camera_poses(self, slots: Indices | None = None) -> CameraPoses:
        """Return where the policy's cameras are."""
        rows = episode_rows(self, slots)
        names, models = self.suite.embodiment.cameras, [s.model for s in self.suite.scenes]
        ids = np.array([[model.camera(name).id for name in names] for model in models])
        fovy_deg = np.stack([m.cam_fovy[i] for m, i in zip(models, ids, strict=True)])
        scenes, position = self._scenes_of(rows), self._slots.camera_pos
        cameras = ids[scenes]
        rotation = self._slots.camera_mat[rows[:, None], cameras].reshape(*cameras.shape, 3, 3)
        return CameraPoses(position[rows[:, None], cameras], rotation, np.deg2rad(fovy_deg[scenes]))

    def scene_model(self, slot: int) -> mujoco.MjModel:
        """Return what is simulated and drawn of a slot's scene."""
        return self.suite.scenes[self._scenes_of(episode_rows(self, [slot]))[0]].model

    def write_scene(self, slot: int, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Put what is seen of a slot into a model and an MjData of it, for MuJoCo's own renderer.

        Args:
            slot: Which one.
            model: A copy of the slot's `scene_model`; gets the slot's colours, textures
                and lights.
            data: Gets the slot's state and its poses, also where robot or cameras are displaced.
        """
        rows = episode_rows(self, [slot])
        scene = int(self._scenes_of(rows)[0])
        own = model_appearance(self.suite.scenes[scene].model)
        wear(model, self._episodes.dress(own, scene, rows))
        mujoco.mj_setState(model, data, self._physics(slot), STATE_SPEC)
        mujoco.mj_forward(model, data)
        for name, part in _POSES.items():
            own = getattr(data, part)
            own[:] = getattr(self._slots, name)[slot, : len(own)]

    def get_states(self) -> dict[str, np.ndarray]:
        """Copy everything that the future of the slots depends on."""
        state = self._slots
        return {
            "physics": state.physics.copy(),
            "tree_asleep": state.tree_asleep.copy(),
            "controller": state.controller.copy(),
            "task": state.task.copy(),
            "num_steps": state.num_steps.copy(),
            "outcome": state.outcome.copy(),
            "pending": state.pending.copy(),
            "state_id": self._episodes.state_id.copy(),
        }

    def set_states(self, states: dict[str, np.ndarray]) -> None:
        """Continue from what `get_states` of a simulation with as many slots returned.

        Who lifts or pushes a thing by changing "physics" also sets its "tree_asleep" to
        `slots.JUST_WOKEN`: what sleeps wakes only by touch.

        Raises:
            SpecError: They do not fit this suite and number of slots; nothing has changed.
        """
        states = checked_states(self, states, self.get_states())
        rows = np.flatnonzero(states["state_id"] >= 0)
        self._episodes.begin(rows, states["task"][rows], states["state_id"][rows])
        self._episodes.state_id[:] = states["state_id"]
        for name in states.keys() - {"state_id"}:
            getattr(self._slots, name)[:] = states[name]
        self._run(refresh_slots, np.arange(self.num_slots))

    def _draw(self, cameras: tuple[str, ...], rows: np.ndarray, images: np.ndarray) -> None:
        """Draw `rows` from cameras of their scenes into images [B, C, H, W, 3]."""
        state, sizes = self._slots, [world.sizes for world in self._worlds]

        def draw(scene: int, block: np.ndarray) -> None:
            slots, size = rows[block], sizes[scene]
            renderer = renderers[scene]
            look = None
            if self._episodes.has_own_look[slots].any():
                look = self._episodes.dress(renderer.appearance(len(slots)), scene, slots)
            images[block] = renderer.render(
                state.geom_pos[slots, : size.ngeom],
                state.geom_mat[slots, : size.ngeom],
                state.camera_pos[slots, : size.ncam],
                state.camera_mat[slots, : size.ncam],
                appearance=look,
            )

        scenes = self._scenes_of(rows)
        renderers = {
            scene: self._renderer(scene, cameras, images.shape[2])
            for scene in np.unique(scenes).tolist()
        }
        self._workers.draw(draw, np.arange(len(rows)), scenes)

    def _renderer(self, scene: int, cameras: tuple[str, ...], pixels: int) -> BatchRenderer:
        key = (scene, cameras, pixels)
        if key not in self._renderers:
            model = self.suite.scenes[scene].model
            self._renderers[key] = BatchRenderer(model, cameras, pixels, pixels)
        return self._renderers[key]

    def _proprioception(self, rows: np.ndarray) -> np.ndarray:
        position, rotation = self.grip_pose(rows)
        parts = (position, axis_angle_from_matrix(rotation), self.finger_positions(rows))
        return np.concatenate(parts, axis=1).astype(np.float32)

    def _scenes_of(self, rows: np.ndarray) -> np.ndarray:
        return self.suite.scene_of_task[self._slots.task[rows]]

    def _physics(self, row: int) -> np.ndarray:
        """Return the used part of a slot's packed physics state."""
        model = self.suite.scenes[self._scenes_of(np.array([row]))[0]].model
        return self._slots.physics[row, : mujoco.mj_stateSize(model, STATE_SPEC)]

    def _run(self, kernel: Callable[..., None], rows: np.ndarray, *arguments: np.ndarray) -> None:
        """Run a kernel over blocks of rows on all threads."""

        def work(scene: int, scratch: Scratch, block: np.ndarray) -> None:
            kernel(self._worlds[scene], scratch, self._slots, block, *arguments)

        self._workers.step(work, rows, self._scenes_of(rows))

    def _diagnose(self, row: int, before: dict[str, np.ndarray], actions: np.ndarray) -> Divergence:
        """Run the chunk again in one MjData, to see what moves too fast in the end."""
        slots, scene = self._slots, int(self._scenes_of(np.array([row]))[0])
        for name, value in before.items():
            getattr(slots, name)[row] = value
        slots.outcome[row] = RUNNING
        by_slot = np.zeros((self.num_slots, *actions.shape))
        by_slot[row] = actions
        physics = self._physics(row).copy()
        with self._workers.model_copy(scene) as copy:
            step_slots(self._worlds[scene], copy.scratch, slots, np.array([row]), by_slot)
            qpos, qvel = np.split(physics[1 : 1 + copy.model.nq + copy.model.nv], [copy.model.nq])
            cause = blame(copy.model, qpos, qvel, copy.data.qvel)
        return Divergence(
            suite=self.suite.name,
            task=self.suite.tasks[slots.task[row]].name,
            state_id=int(self._episodes.state_id[row]),
            num_steps=int(before.pop("num_steps")),
            cause=cause,
            actions=actions.copy(),
            state={"physics": physics} | before,
            variation=self.variation,
        )
