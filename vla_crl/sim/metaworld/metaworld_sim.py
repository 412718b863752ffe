"""Many of Meta-World's environments, with the contract of `VectorSim`."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import mujoco
import numpy as np

from vla_crl.contracts import ChunkResult, Observation, check_actions
from vla_crl.errors import ConfigError, SpecError
from vla_crl.sim.calls import (
    begun_slots,
    chosen_slots,
    chunk_result,
    require_counts,
    require_running,
    reset_arrays,
)
from vla_crl.sim.divergence import Divergence, blame
from vla_crl.sim.metaworld.episode import Look, MetaWorldEpisode, PhysicsError
from vla_crl.sim.metaworld.models import drawn_model, require_metaworld
from vla_crl.sim.metaworld.poses import Drawing
from vla_crl.sim.metaworld.suite import MetaWorldSuite
from vla_crl.sim.outcomes import DIVERGED, RUNNING, SUCCESS, TIME_LIMIT
from vla_crl.sim.renderer import BatchRenderer
from vla_crl.sim.rotations import axis_angle_from_matrix
from vla_crl.sim.simulation import CameraPoses, Indices
from vla_crl.sim.threads import on_each, spread
from vla_crl.sim.variation import VariationConfig


class MetaWorldSim:
    """N slots of a suite of Meta-World on the CPU; see `VectorSim` for the calls.

    A slot holds a fresh environment in every episode, with a model and data of its own, so an
    episode depends only on (task, initial state id, actions). Physics runs in threads; the rewards
    that Meta-World computes in every step in Python do not run beside each other.

    The action's position and gripper numbers are Meta-World's four (1 = 1 cm); the hand does not
    turn. Rewards are those of the project: 1 for success.
    """

    def __init__(
        self, suite: MetaWorldSuite, num_slots: int, *, num_threads: int = 2, image_size: int = 64,
        tasks: Sequence[int] | None = None, variation: VariationConfig | None = None,
    ) -> None:  # fmt: skip
        """Allocate the slots; they must be reset before use.

        Args:
            suite: What to simulate.
            num_slots: N.
            num_threads: Threads for physics and rendering.
            image_size: Height and width of each camera image, pixels.
            tasks: Which will be asked for; all is prepared when it is, so it does not matter.
            variation: None, or one that varies nothing.

        Raises:
            ConfigError: A count is no whole number from 1 on, the package is missing, or something
                is to vary.
        """
        if variation is not None and variation.varies:
            raise ConfigError(
                f"suite '{suite.name}': the backend 'metaworld' has no variations; remove them"
            )
        require_counts(
            "MetaWorldSim", num_slots=num_slots, num_threads=num_threads, image_size=image_size
        )
        require_metaworld()
        self.suite, self.num_slots = suite, num_slots
        self.divergences: list[Divergence] = []
        """Every chunk under which physics blew up; whoever reads it may clear it."""
        self._image_size = image_size
        self._episodes: list[MetaWorldEpisode | None] = [None] * num_slots
        self._task = np.zeros(num_slots, np.int64)
        self._state_id = np.full(num_slots, -1)
        self._num_steps = np.zeros(num_slots, np.int64)
        self._outcome = np.full(num_slots, RUNNING)
        self._renderers: dict[tuple[int, tuple[str, ...], int], BatchRenderer] = {}
        self._drawings: dict[int, Drawing] = {}
        self._physics = ThreadPoolExecutor(num_threads)
        self._drawers = ThreadPoolExecutor(num_threads)  # need not queue behind physics

    def close(self) -> None:
        """Stop the threads."""
        self._physics.shutdown()
        self._drawers.shutdown()

    @property
    def tasks(self) -> np.ndarray:
        """[N] task index of each slot."""
        return self._task.copy()

    @property
    def state_ids(self) -> np.ndarray:
        """[N] initial state id of each slot's episode; -1 before the first reset."""
        return self._state_id.copy()

    def episode(self, slot: int) -> MetaWorldEpisode:
        """Return the episode of a slot.

        Raises:
            SpecError: It has none yet.
        """
        episode = self._episodes[slot]
        if episode is None:
            raise SpecError(f"MetaWorldSim: slot {slot} has no episode; reset it first")
        return episode

    def reset(self, slots: Indices, *, tasks: Indices, state_ids: Indices) -> None:
        """Start a new episode in each of `slots`; see `VectorSim.reset`."""
        rows, task, ids = reset_arrays(self, slots, tasks, state_ids)

        def begin(row: int, task: int, state_id: int) -> None:
            self._episodes[row] = MetaWorldEpisode(self.suite.tasks[task].name, state_id)

        on_each(self._physics, begin, rows.tolist(), task.tolist(), ids.tolist())
        self._task[rows], self._state_id[rows] = task, ids
        self._num_steps[rows], self._outcome[rows] = 0, RUNNING

    def step_chunk(self, actions: np.ndarray, slots: Indices | None = None) -> ChunkResult:
        """Execute K actions in each slot; see `VectorSim.step_chunk`."""
        rows = chosen_slots(self, slots)
        checked = check_actions(actions, len(rows), len(self.suite.embodiment.action))
        require_running(self, rows, self._outcome[rows])
        before = self._num_steps[rows]
        on_each(self._physics, self._step_slot, rows.tolist(), [*checked])
        outcome = self._outcome[rows]
        return chunk_result(outcome, self._num_steps[rows] - before)

    def observe(self, slots: Indices | None = None, *, images: bool = True) -> Observation:
        """Render the cameras of `slots` (all by default) and read their state and instruction."""
        rows, cameras = begun_slots(self, slots), self.suite.embodiment.cameras
        size = self._image_size if images else 0
        drawn = np.empty((len(rows), len(cameras), size, size, 3), np.uint8)
        if images:
            self._draw(cameras, rows, drawn)
        looks = self._looks(rows)
        rotation = np.stack([look.grip_mat for look in looks])
        parts = (
            np.stack([look.grip_pos for look in looks]),
            axis_angle_from_matrix(rotation),
            np.stack([look.fingers for look in looks]),
        )
        state = np.concatenate(parts, axis=1).astype(np.float32)
        return Observation(drawn, state, self.instructions(rows))

    def instructions(self, slots: Indices | None = None) -> tuple[str, ...]:
        """Return what the policy is told in each of `slots`."""
        return tuple(
            self.suite.tasks[task].instruction for task in self._task[begun_slots(self, slots)]
        )

    def thing_positions(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B, 2, 3] positions (m, world) of the object and of the goal."""
        looks = self._looks(begun_slots(self, slots))
        return np.array([[look.object_pos, look.goal_pos] for look in looks])

    def camera_poses(self, slots: Indices | None = None) -> CameraPoses:
        """Return where the policy's cameras are."""
        rows = begun_slots(self, slots)
        cameras = [
            self._drawing_of(int(task)).cameras(look)
            for task, look in zip(self._task[rows], self._looks(rows), strict=True)
        ]
        position, rotation = zip(*cameras, strict=True)
        names, models = self.suite.embodiment.cameras, map(self._model, self._task[rows].tolist())
        fovy_deg = [[model.camera(name).fovy[0] for name in names] for model in models]
        return CameraPoses(np.stack(position), np.stack(rotation), np.deg2rad(fovy_deg))

    def frames(self, camera: str, pixels: int, slots: Indices | None = None) -> np.ndarray:
        """Draw `slots` from a camera of their scenes, see `Filmed`."""
        rows = begun_slots(self, slots)
        images = np.empty((len(rows), 1, pixels, pixels, 3), np.uint8)
        self._draw((camera,), rows, images)
        return images[:, 0]

    def scene_model(self, slot: int) -> mujoco.MjModel:
        """Return what is drawn of a slot's task."""
        return self._model(int(self._task[slot]))

    def write_scene(self, slot: int, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Put the poses of a slot into an MjData of its `scene_model`."""
        task, names = int(self._task[slot]), ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat")
        mujoco.mj_forward(model, data)  # lights
        poses = self._drawing_of(task).poses([self.episode(slot).look])
        for name, pose in zip(names, poses, strict=True):
            getattr(data, name)[:] = pose[0]

    def _draw(self, cameras: tuple[str, ...], rows: np.ndarray, images: np.ndarray) -> None:
        """Draw `rows` from cameras of their tasks into images [B, C, H, W, 3]."""
        tasks = self._task[rows]

        def draw(task: int, block: np.ndarray) -> None:
            poses = drawings[task].poses(self._looks(rows[block]))
            images[block] = renderers[task].render(*poses)

        used = set(tasks.tolist())
        drawings = {task: self._drawing_of(task) for task in used}
        renderers = {task: self._renderer(task, cameras, images.shape[2]) for task in used}
        spread(self._drawers, draw, np.arange(len(rows)), tasks)

    def _renderer(self, task: int, cameras: tuple[str, ...], pixels: int) -> BatchRenderer:
        key = (task, cameras, pixels)
        if key not in self._renderers:
            self._renderers[key] = BatchRenderer(self._model(task), cameras, pixels, pixels)
        return self._renderers[key]

    def _model(self, task: int) -> mujoco.MjModel:
        return drawn_model(self.suite.tasks[task].name, self.suite.config)

    def _step_slot(self, row: int, actions: np.ndarray) -> None:
        """Run a chunk in one slot and keep how it ended."""
        episode, horizon = self.episode(row), self.suite.tasks[self._task[row]].horizon
        try:
            success, num_steps = episode.step_chunk(actions, horizon - self._num_steps[row])
        except PhysicsError:
            self.divergences.append(self._diagnose(row, actions))
            self._outcome[row] = DIVERGED
            return
        self._num_steps[row] += num_steps
        if success:
            self._outcome[row] = SUCCESS
        elif self._num_steps[row] == horizon:
            self._outcome[row] = TIME_LIMIT

    def _diagnose(self, row: int, actions: np.ndarray) -> Divergence:
        episode = self.episode(row)
        model, physics = episode.model, episode.physics()
        qpos, qvel = np.split(physics[1 : 1 + model.nq + model.nv], [model.nq])
        return Divergence(
            suite=self.suite.name,
            task=self.suite.tasks[self._task[row]].name,
            state_id=int(self._state_id[row]),
            num_steps=int(self._num_steps[row]),
            cause=blame(model, qpos, qvel, episode.data.qvel),
            actions=actions.copy(),
            state={"physics": physics},
        )

    def _drawing_of(self, task: int) -> Drawing:
        if task not in self._drawings:
            self._drawings[task] = Drawing(self._model(task))
        return self._drawings[task]

    def _looks(self, rows: Iterable[int]) -> list[Look]:
        return [self.episode(int(row)).look for row in rows]
