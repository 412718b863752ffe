"""Many of Meta-World's environments, with the contract of `VectorSim`."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import mujoco
import numpy as np

from vla_crl.contracts import ACTION_DIM, ChunkResult, Observation, check_actions
from vla_crl.errors import SpecError
from vla_crl.sim.calls import (
    chunk_result,
    episode_rows,
    require_counts,
    require_running,
    reset_arrays,
    rows_of,
)
from vla_crl.sim.divergence import Divergence, culprit
from vla_crl.sim.metaworld.expert import MetaWorldExpert
from vla_crl.sim.metaworld.models import require_metaworld
from vla_crl.sim.metaworld.poses import Drawing
from vla_crl.sim.metaworld.suite import MetaWorldSuite
from vla_crl.sim.metaworld.worlds import Look, PhysicsError, World
from vla_crl.sim.renderer import BatchRenderer
from vla_crl.sim.rotations import axis_angle_from_matrix
from vla_crl.sim.slots import DIVERGED, RUNNING, SUCCESS, TIME_LIMIT
from vla_crl.sim.task_suite import make_renderers
from vla_crl.sim.workers import on_each, spread


class MetaWorldSim:
    """N slots of a suite of Meta-World on the CPU; see `VectorSim` for the calls.

    A slot holds a fresh environment in every episode, with a model and data of its own, so an
    episode depends only on (task, initial state id, actions). Physics runs in threads; the rewards
    that Meta-World computes in every step in Python do not run beside each other.

    The action's position and gripper numbers are Meta-World's four (1 = 1 cm); the hand does not
    turn. Rewards are those of the project: 1 for success.
    """

    def __init__(
        self, suite: MetaWorldSuite, num_slots: int, *, num_threads: int = 2, image_size: int = 64
    ) -> None:
        """Allocate the slots; they must be reset before use.

        Args:
            suite: What to simulate.
            num_slots: N.
            num_threads: Threads for physics and rendering.
            image_size: Height and width of each camera image, pixels.

        Raises:
            ConfigError: A count is no whole number from 1 on, or the package is missing.
        """
        require_counts(
            "MetaWorldSim", num_slots=num_slots, num_threads=num_threads, image_size=image_size
        )
        require_metaworld()
        self.suite, self.num_slots = suite, num_slots
        self.divergences: list[Divergence] = []
        """Every chunk under which physics blew up; whoever reads it may clear it."""
        self._image_size = image_size
        self._worlds: list[World | None] = [None] * num_slots
        self._task = np.zeros(num_slots, np.int64)
        self._state_id = np.full(num_slots, -1)
        self._num_steps = np.zeros(num_slots, np.int64)
        self._outcome = np.full(num_slots, RUNNING)
        self._renderers: dict[int, BatchRenderer] = {}
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

    def world(self, slot: int) -> World:
        """Return the episode of a slot.

        Raises:
            SpecError: It has none yet.
        """
        world = self._worlds[slot]
        if world is None:
            raise SpecError(f"MetaWorldSim: slot {slot} has no episode; reset it first")
        return world

    def expert(self) -> MetaWorldExpert:
        """Return Meta-World's scripted policies."""
        return MetaWorldExpert(self)

    def reset(
        self, slots: Sequence[int] | np.ndarray, *, tasks: Sequence[int] | np.ndarray,
        state_ids: Sequence[int] | np.ndarray,
    ) -> None:  # fmt: skip
        """Start a new episode in each of `slots`; see `VectorSim.reset`."""
        rows, task, ids = reset_arrays(self, slots, tasks, state_ids)

        def begin(row: int, task: int, state_id: int) -> None:
            self._worlds[row] = World(self.suite.tasks[task].name, state_id)

        on_each(self._physics, begin, rows.tolist(), task.tolist(), ids.tolist())
        self._task[rows], self._state_id[rows] = task, ids
        self._num_steps[rows], self._outcome[rows] = 0, RUNNING

    def step_chunk(
        self, actions: np.ndarray, slots: Sequence[int] | np.ndarray | None = None
    ) -> ChunkResult:
        """Execute K actions in each slot; see `VectorSim.step_chunk`."""
        rows = rows_of(self, slots)
        checked = check_actions(actions, len(rows))
        require_running(self, rows, self._outcome[rows])
        before = self._num_steps[rows]
        on_each(self._physics, self._step_slot, rows.tolist(), [*checked])
        outcome = self._outcome[rows]
        return chunk_result(outcome, self._num_steps[rows] - before)

    def observe(self, slots: Sequence[int] | np.ndarray | None = None) -> Observation:
        """Render the cameras of `slots` (all by default) and read their state and instruction."""
        rows, size = episode_rows(self, slots), self._image_size
        self._renderers |= make_renderers(
            self.suite, self.suite.cameras, size, set(self._task[rows]) - set(self._renderers)
        )
        images = np.empty((len(rows), len(self.suite.cameras), size, size, 3), np.uint8)
        self.render(self._renderers, rows, images)
        looks = self._looks(rows)
        rotation = np.stack([look.grip_mat for look in looks])
        parts = (
            np.stack([look.grip_pos for look in looks]),
            axis_angle_from_matrix(rotation),
            np.stack([look.fingers for look in looks]),
        )
        state = np.concatenate(parts, axis=1).astype(np.float32)
        return Observation(images, state, self.instructions(rows))

    def instructions(self, slots: Sequence[int] | np.ndarray | None = None) -> tuple[str, ...]:
        """Return what the policy is told in each of `slots`."""
        return tuple(
            self.suite.tasks[task].instruction for task in self._task[episode_rows(self, slots)]
        )

    def thing_positions(self, slots: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return [B, 2, 3] positions (m, world) of the object and of the goal."""
        looks = self._looks(episode_rows(self, slots))
        return np.array([[look.object_pos, look.goal_pos] for look in looks])

    def camera_poses(
        self, slots: Sequence[int] | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the policy's cameras: positions [B, C, 3] (m, world), matrices [B, C, 3, 3]."""
        rows = episode_rows(self, slots)
        cameras = [
            self._drawing_of(task).cameras(look)
            for task, look in zip(self._task[rows], self._looks(rows), strict=True)
        ]
        position, rotation = zip(*cameras, strict=True)
        return np.stack(position), np.stack(rotation)

    def render(
        self, renderers: Mapping[int, BatchRenderer], rows: np.ndarray, images: np.ndarray
    ) -> None:
        """Draw `rows` with renderers of their tasks into images [B, cameras, H, W, 3]."""
        tasks = self._task[rows]

        def draw(task: int, block: np.ndarray) -> None:
            poses = drawings[task].poses(self._looks(rows[block]))
            images[block] = renderers[task].render(*poses)

        drawings = {task: self._drawing_of(task) for task in set(tasks.tolist())}
        spread(self._drawers, draw, np.arange(len(rows)), tasks)

    def write_scene(self, slot: int, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Put the poses of a slot into an MjData of `suite.model` of its task."""
        task, names = int(self._task[slot]), ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat")
        mujoco.mj_forward(model, data)  # lights
        poses = self._drawing_of(task).poses([self.world(slot).look])
        for name, pose in zip(names, poses, strict=True):
            getattr(data, name)[:] = pose[0]

    def _step_slot(self, row: int, actions: np.ndarray) -> None:
        """Run a chunk in one slot and keep how it ended."""
        world, horizon = self.world(row), self.suite.tasks[self._task[row]].horizon
        try:
            success, num_steps = world.step_chunk(actions, horizon - self._num_steps[row])
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
        world = self.world(row)
        joint, speed = culprit(world.model, world.physics(), world.data.qvel)
        return Divergence(
            suite=self.suite.name,
            task=self.suite.tasks[self._task[row]].name,
            state_id=int(self._state_id[row]),
            num_steps=int(self._num_steps[row]),
            joint=joint,
            speed=speed,
            physics=world.physics(),
            tree_asleep=np.empty(0, np.int32),
            controller=np.empty(0),
            pending=np.empty((0, ACTION_DIM)),
            actions=actions.copy(),
            variation=None,
        )

    def _drawing_of(self, task: int) -> Drawing:
        if task not in self._drawings:
            self._drawings[int(task)] = Drawing(self.suite.model(int(task)))
        return self._drawings[task]

    def _looks(self, rows: Iterable[int]) -> list[Look]:
        return [self.world(int(row)).look for row in rows]
