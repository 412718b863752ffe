"""Many slots of Meta-World's tasks, with the contract of `VectorSim`."""

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
    require_no_variation,
    require_running,
    reset_arrays,
)
from vla_crl.sim.divergence import Divergence, blame
from vla_crl.sim.metaworld.config import MetaWorldConfig
from vla_crl.sim.metaworld.initial_states import initial_state
from vla_crl.sim.metaworld.kernel.slots import Scratch, allocate_slots, scratch_of
from vla_crl.sim.metaworld.kernel.stepping import evaluate_slots, refresh_slots, step_slots
from vla_crl.sim.metaworld.models import drawn_model, require_metaworld, simulated_model
from vla_crl.sim.metaworld.poses import Drawing
from vla_crl.sim.metaworld.suite import MetaWorldSuite
from vla_crl.sim.metaworld.task_constants import constants_of, observation_range
from vla_crl.sim.outcomes import DIVERGED, RUNNING
from vla_crl.sim.packed_state import STATE_SPEC
from vla_crl.sim.renderer import BatchRenderer
from vla_crl.sim.rotations import axis_angle_from_matrix
from vla_crl.sim.simulation import CameraPoses, Indices
from vla_crl.sim.threads import made_once
from vla_crl.sim.variation import VariationConfig
from vla_crl.sim.workers import Workers


class MetaWorldSim:
    """N slots of a suite of Meta-World on the CPU; see `VectorSim` for the calls.

    Meta-World's environments make the initial states; from there compiled code steps the slots. An
    episode depends only on (task, initial state id, actions). Rewards are those of the project: 1
    for success.
    """

    def __init__(
        self, suite: MetaWorldSuite, num_slots: int, *, num_threads: int = 2, image_size: int = 64,
        tasks: Sequence[int] | None = None, variation: VariationConfig | None = None,
    ) -> None:  # fmt: skip
        """Allocate the slots; they must be reset before use.

        Args:
            suite: What to simulate.
            num_slots: N.
            num_threads: Threads for physics, and as many for drawing.
            image_size: Height and width of each camera image, pixels.
            tasks: Which will be asked for; all is prepared when it is, so it does not matter.
            variation: None, or one that varies nothing.

        Raises:
            ConfigError: A count is no whole number from 1 on, the package is missing, or something
                is to vary.
        """
        require_no_variation(suite, variation)
        require_counts(
            "MetaWorldSim", num_slots=num_slots, num_threads=num_threads, image_size=image_size
        )
        require_metaworld()
        self.suite, self.num_slots = suite, num_slots
        self.divergences: list[Divergence] = []
        """Every chunk under which physics blew up; whoever reads it may clear it."""
        self._image_size = image_size
        self._slots = allocate_slots(num_slots)
        self._state_id = np.full(num_slots, -1)
        self._workers = Workers(
            lambda task: scratch_of(simulated_model(suite.tasks[task].name)), num_threads
        )

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
        return self._state_id.copy()

    def reset(self, slots: Indices, *, tasks: Indices, state_ids: Indices) -> None:
        """Start a new episode in each of `slots`; see `VectorSim.reset`.

        An initial state takes a hundredth of a second to make, once.
        """
        begun, task, ids = reset_arrays(self, slots, tasks, state_ids)
        names = [self.suite.tasks[index].name for index in task.tolist()]
        states = self._workers.each(initial_state, names, ids.tolist())
        progress, dynamics, placed = self._slots.progress, self._slots.dynamics, self._slots.placed
        for slot, state in zip(begun.tolist(), states, strict=True):
            dynamics.physics[slot, : len(state.physics)] = state.physics
            dynamics.physics[slot, len(state.physics) :] = 0.0
            dynamics.sensed[slot], placed.goal[slot] = state.sensed, state.goal
            placed.body_pos[slot, : len(state.body_pos)] = state.body_pos
            placed.site_pos[slot, : len(state.site_pos)] = state.site_pos
        progress.task[begun], progress.num_steps[begun], progress.outcome[begun] = task, 0, RUNNING
        self._state_id[begun] = ids
        self._run(refresh_slots, begun)

    def step_chunk(self, actions: np.ndarray, slots: Indices | None = None) -> ChunkResult:
        """Execute K actions in each slot; see `VectorSim.step_chunk`."""
        stepped, progress = chosen_slots(self, slots), self._slots.progress
        checked = check_actions(actions, len(stepped), len(self.suite.embodiment.action))
        require_running(self, stepped, progress.outcome[stepped])
        by_slot = np.zeros((self.num_slots, checked.shape[1], len(self.suite.own_numbers)))
        by_slot[stepped] = checked[..., self.suite.own_numbers]
        num_steps = progress.num_steps[stepped]
        self._run(step_slots, stepped, by_slot)
        outcome = progress.outcome[stepped]
        for k in np.flatnonzero(outcome == DIVERGED):
            slot, before = int(stepped[k]), int(num_steps[k])
            self.divergences.append(self._diagnose(slot, before, checked[k]))
        return chunk_result(outcome, progress.num_steps[stepped] - num_steps)

    def observe(self, slots: Indices | None = None, *, images: bool = True) -> Observation:
        """Render the cameras of `slots` (all by default) and read their state and instruction."""
        seen = begun_slots(self, slots)
        size = self._image_size if images else 0
        drawn = self._draw(self.suite.embodiment.cameras, seen, size)
        return Observation(drawn, self._proprioception(seen), self.instructions(seen))

    def instructions(self, slots: Indices | None = None) -> tuple[str, ...]:
        """Return what the policy is told in each of `slots`."""
        tasks = self._slots.progress.task[begun_slots(self, slots)]
        return tuple(self.suite.tasks[task].instruction for task in tasks)

    def frames(self, camera: str, pixels: int, slots: Indices | None = None) -> np.ndarray:
        """Draw `slots` from a camera of their scenes, see `Filmed`."""
        return self._draw((camera,), begun_slots(self, slots), pixels)[:, 0]

    def thing_positions(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B, 2, 3] positions (m, world) of the object and of the goal."""
        seen = begun_slots(self, slots)
        return np.stack([self._slots.poses.object_pos[seen], self._slots.placed.goal[seen]], axis=1)

    def observed(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B, 39] what Meta-World's scripted policies see, the goal included."""
        seen, progress = begun_slots(self, slots), self._slots.progress
        sensed = self._slots.dynamics.sensed[seen].reshape(len(seen), -1)
        observed = np.concatenate([sensed, self._slots.placed.goal[seen]], axis=1)
        for row, slot in zip(observed, seen, strict=True):
            if progress.num_steps[slot]:
                allowed = observation_range(self.suite.tasks[progress.task[slot]].name)
                np.clip(row, allowed.low, allowed.high, out=row)
        return observed

    def satisfied(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B] bool: whether the success condition of the slot's task holds now."""
        seen, holds = begun_slots(self, slots), np.zeros(self.num_slots, bool)
        self._run(evaluate_slots, seen, holds)
        return holds[seen]

    def camera_poses(self, slots: Indices | None = None) -> CameraPoses:
        """Return where the policy's cameras are."""
        seen = begun_slots(self, slots)
        num_cameras = len(self.suite.embodiment.cameras)
        views = CameraPoses(
            position=np.empty((len(seen), num_cameras, 3)),
            rotation=np.empty((len(seen), num_cameras, 3, 3)),
            fovy_rad=np.empty((len(seen), num_cameras)),
        )
        tasks = self._slots.progress.task[seen]
        for task in np.unique(tasks).tolist():
            there = tasks == task
            drawing = drawing_of(self.suite.tasks[task].name, self.suite.config)
            for all_slots, own in zip(
                views, drawing.cameras(self._slots.poses.body_pos[seen[there]]), strict=True
            ):
                all_slots[there] = own
        return views

    def scene_model(self, slot: int) -> mujoco.MjModel:
        """Return what is drawn of a slot's task."""
        return drawn_model(self._task_of(slot), self.suite.config)

    def write_scene(self, slot: int, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Put the poses of a slot into an MjData of its `scene_model`."""
        names = ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat")
        mujoco.mj_forward(model, data)  # lights
        drawing, seen = drawing_of(self._task_of(slot), self.suite.config), np.array([slot])
        poses = drawing.poses(*self._bodies(drawing, seen), self._slots.placed.goal[seen])
        for name, pose in zip(names, poses, strict=True):
            getattr(data, name)[:] = pose[0]

    def get_states(self) -> dict[str, np.ndarray]:
        """Copy everything that the future of the slots depends on."""
        fields = self._slots.dynamics._asdict() | self._slots.progress._asdict()
        copies = {name: array.copy() for name, array in fields.items()}
        return copies | {"state_id": self.state_ids}

    def set_states(self, states: dict[str, np.ndarray]) -> None:
        """Continue from what `get_states` of a simulation with as many slots returned.

        Raises:
            SpecError: They do not fit this suite and number of slots; nothing has changed.
        """
        checked = checked_states(self, states, self.get_states())
        used = np.flatnonzero(checked["state_id"] >= 0)
        self.reset(used, tasks=checked["task"][used], state_ids=checked["state_id"][used])
        self._state_id[:] = checked["state_id"]
        for part in (self._slots.progress, self._slots.dynamics):
            for name, array in part._asdict().items():
                array[:] = checked[name]
        self._run(refresh_slots, used)

    def _proprioception(self, slots: np.ndarray) -> np.ndarray:
        """Return [B, 8] what the robot feels, as `POSE_STATE` names it."""
        poses = self._slots.poses
        tips, rotation = poses.tip_pos[slots], poses.hand_mat[slots].reshape(-1, 3, 3)
        from_hand = tips - poses.hand_pos[slots, None]
        aside = np.abs(np.einsum("bij,bti->btj", rotation, from_hand)[..., 1])
        parts = (tips.mean(axis=1), axis_angle_from_matrix(rotation), aside)
        return np.concatenate(parts, axis=1).astype(np.float32)

    def _task_of(self, slot: int) -> str:
        return self.suite.tasks[self._slots.progress.task[begun_slots(self, [slot])[0]]].name

    def _bodies(self, drawing: Drawing, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the poses of all bodies in slots of one task: [B, bodies, 3] and [.., 9]."""
        poses, used = self._slots.poses, drawing.num_bodies
        return poses.body_pos[slots, :used], poses.body_mat[slots, :used]

    def _draw(self, cameras: tuple[str, ...], slots: np.ndarray, pixels: int) -> np.ndarray:
        """Draw `slots` [B] from cameras of their tasks: [B, C, pixels, pixels, 3]."""
        images = np.empty((len(slots), len(cameras), pixels, pixels, 3), np.uint8)

        def draw(task: int, pictures: np.ndarray) -> None:
            own = self.suite.tasks[task].name, self.suite.config
            drawing, seen = drawing_of(*own), slots[pictures]
            poses = drawing.poses(*self._bodies(drawing, seen), self._slots.placed.goal[seen])
            images[pictures] = renderer_of(*own, cameras, pixels).render(*poses)

        if images.size:
            self._workers.draw(draw, np.arange(len(slots)), self._slots.progress.task[slots])
        return images

    def _run(self, kernel: Callable[..., None], slots: np.ndarray, *arguments: np.ndarray) -> None:
        """Run a kernel over blocks of slots on all threads."""

        def work(task: int, scratch: Scratch, block: np.ndarray) -> None:
            own = self.suite.tasks[task]
            kernel(constants_of(own.name, own.horizon), scratch, self._slots, block, *arguments)

        self._workers.step(work, slots, self._slots.progress.task[slots])

    def _diagnose(self, slot: int, num_steps: int, actions: np.ndarray) -> Divergence:
        """Run the chunk again in one MjData, to see what moves too fast in the end.

        Args:
            slot: Whose world blew up; its physics still are those before the chunk.
            num_steps: Control steps before the chunk.
            actions: [K, A] the chunk.
        """
        progress, task = self._slots.progress, int(self._slots.progress.task[slot])
        own, sent = self.suite.tasks[task], actions[:, self.suite.own_numbers]
        progress.num_steps[slot], progress.outcome[slot] = num_steps, RUNNING
        by_slot = np.zeros((self.num_slots, *sent.shape))
        by_slot[slot] = sent
        with self._workers.model_copy(task) as copy:
            constants, model = constants_of(own.name, own.horizon), copy.model
            step_slots(constants, copy.scratch, self._slots, np.array([slot]), by_slot)
            size = mujoco.mj_stateSize(model, STATE_SPEC)
            physics = self._slots.dynamics.physics[slot, :size].copy()
            qpos, qvel = np.split(physics[1 : 1 + model.nq + model.nv], [model.nq])
            cause = blame(model, qpos, qvel, copy.data.qvel)
        return Divergence(
            suite=self.suite.name,
            task=own.name,
            state_id=int(self._state_id[slot]),
            num_steps=num_steps,
            cause=cause,
            actions=actions.copy(),
            state={"physics": physics},
        )


@made_once
def drawing_of(task: str, config: MetaWorldConfig) -> Drawing:
    """Return what places all that is drawn of a task, shared by all simulations."""
    return Drawing(drawn_model(task, config))


@made_once
def renderer_of(
    task: str, config: MetaWorldConfig, cameras: tuple[str, ...], pixels: int
) -> BatchRenderer:
    """Return what draws a task from some of its cameras, shared by all simulations."""
    return BatchRenderer(drawn_model(task, config), cameras, pixels, pixels)
