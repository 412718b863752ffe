"""N slots of a suite of LIBERO on the CPU."""

from collections import OrderedDict
from collections.abc import Sequence

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
from vla_crl.sim.libero.bake import bake_tasks, bake_train_states
from vla_crl.sim.libero.baked import BakedTask, load_task, load_train_states
from vla_crl.sim.libero.config import AGENT_CAMERA, HAND_CAMERA
from vla_crl.sim.libero.drawing import Drawing, Drawn, drawing_of, resized
from vla_crl.sim.libero.kernel.slots import Scene, Scratch, Slots, new_slots, scratch_of
from vla_crl.sim.libero.kernel.stepping import begin_slots, evaluate_terms, step_slots
from vla_crl.sim.libero.rotations import published_axis_angle
from vla_crl.sim.libero.suite import LiberoSuite
from vla_crl.sim.outcomes import DIVERGED
from vla_crl.sim.packed_state import JUST_WOKEN
from vla_crl.sim.simulation import CameraPoses, Indices
from vla_crl.sim.variation import VariationConfig
from vla_crl.sim.workers import Workers

CAMERAS = {"agentview": AGENT_CAMERA, "eye_in_hand": HAND_CAMERA}
"""What LIBERO calls the cameras of the embodiment."""
MAX_REMEMBERED = 20_000
"""Beginnings of episodes that are kept, of 10 kB each, so that they need no waiting again."""


class LiberoSim:
    """N slots of LIBERO's tasks, stepped as robosuite does without robosuite; see `VectorSim`.

    A slot is a row of plain arrays; the few MjData in use belong to threads. An episode depends
    only on (task, initial state id, actions). A task is baked when it is first used, see `bake`,
    and its initial states for training are sampled when the first of them is asked for.
    Observations are LIBERO's: images and joints of the 24th of a control step's 25 physics steps.
    """

    def __init__(
        self, suite: LiberoSuite, num_slots: int, *, num_threads: int = 2, image_size: int = 64,
        tasks: Sequence[int] | None = None, variation: VariationConfig | None = None,
    ) -> None:  # fmt: skip
        """Allocate the slots; they must be reset before use.

        Args:
            suite: What to simulate.
            num_slots: N.
            num_threads: Threads for physics, and as many for drawing.
            image_size: Height and width of each camera image, pixels.
            tasks: Task indices that are baked and loaded now; others are on first use.
            variation: None, or one that varies nothing.

        Raises:
            ConfigError: A count is no whole number from 1 on, something is to vary, a baked task
                is damaged, or one is to be baked and a package is missing.
        """
        require_counts(
            "LiberoSim", num_slots=num_slots, num_threads=num_threads, image_size=image_size
        )
        require_no_variation(suite, variation)
        self.suite, self.num_slots = suite, num_slots
        self.divergences: list[Divergence] = []
        """Every chunk under which physics blew up; whoever reads it may clear it."""
        self._image_size = image_size
        self._slots = new_slots(num_slots)
        self._state_id = np.full(num_slots, -1)
        self._tasks: dict[int, BakedTask] = {}
        self._train_states: dict[int, dict[str, np.ndarray]] = {}
        self._scenes: dict[int, Scene] = {}
        self._beginnings: OrderedDict[tuple[int, int], tuple[np.ndarray, ...]] = OrderedDict()
        self._workers: Workers[Scratch] = Workers(self._copy_of, num_threads)
        self._load(np.array(tasks or [], np.int64))

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
        return self._state_id.copy()

    def reset(self, slots: Indices, *, tasks: Indices, state_ids: Indices) -> None:
        """Start a new episode in each of `slots`; see `VectorSim.reset`.

        The robot then waits as the protocol says. A beginning is remembered, so that the next
        episode from the same initial state begins at once.
        """
        rows, task, ids = reset_arrays(self, slots, tasks, state_ids)
        self._load(task)
        self._load_train_states(task[ids < self.suite.test_ids.start])
        self._slots.task[rows], self._state_id[rows] = task, ids
        new = [
            place
            for place, key in enumerate(zip(task.tolist(), ids.tolist(), strict=True))
            if not self._recall(int(rows[place]), key)
        ]
        for place in new:
            self._put_initial_state(int(rows[place]), int(task[place]), int(ids[place]))
        self._run(begin_slots, rows[new])
        for place in new:
            self._remember(int(rows[place]), (int(task[place]), int(ids[place])))

    def step_chunk(self, actions: np.ndarray, slots: Indices | None = None) -> ChunkResult:
        """Execute K actions in each slot; see `VectorSim.step_chunk`."""
        rows = chosen_slots(self, slots)
        checked = check_actions(actions, len(rows), len(self.suite.embodiment.action))
        require_running(self, rows, self._slots.outcome[rows])
        by_slot = np.zeros((self.num_slots, *checked.shape[1:]))
        by_slot[rows] = checked
        before = self._slots.num_steps[rows]
        kept = [field[rows] for field in self._slots]
        self._run(step_slots, rows, by_slot)
        outcome, taken = self._slots.outcome[rows], self._slots.num_steps[rows] - before
        for place in np.flatnonzero(outcome == DIVERGED).tolist():
            self._diverge(int(rows[place]), [field[place] for field in kept], checked[place])
        return chunk_result(outcome, taken)

    def observe(self, slots: Indices | None = None, *, images: bool = True) -> Observation:
        """Render the cameras of `slots` (all by default) and read their state and instruction."""
        rows, state = begun_slots(self, slots), self._slots
        felt = (
            state.grip_pos[rows],
            published_axis_angle(state.hand_quat[rows]),
            state.qpos[rows, 7:9],
        )
        cameras = tuple(CAMERAS[name] for name in self.suite.embodiment.cameras)
        drawn = self._draw(cameras, rows, self._image_size if images else 0)
        return Observation(
            drawn, np.concatenate(felt, axis=1).astype(np.float32), self.instructions(rows)
        )

    def instructions(self, slots: Indices | None = None) -> tuple[str, ...]:
        """Return what the policy is told in each of `slots`."""
        tasks = self._slots.task[begun_slots(self, slots)]
        return tuple(self.suite.tasks[task].instruction for task in tasks)

    def frames(self, camera: str, pixels: int, slots: Indices | None = None) -> np.ndarray:
        """Draw `slots` from a camera of their scenes, see `Filmed`."""
        return self._draw((camera,), begun_slots(self, slots), pixels, is_film=True)[:, 0]

    @property
    def slots(self) -> Slots:
        """The arrays of all slots, to be read."""
        return self._slots

    def baked(self, task: int) -> BakedTask:
        """Return a task that has been used, as it was baked."""
        return self._tasks[task]

    def body_positions(self, names: Sequence[str], slots: Indices | None = None) -> np.ndarray:
        """Return [B, names, 3] where things are (m, world), by their names in LIBERO's files.

        NaN where a slot's scene has no such thing.
        """
        rows = begun_slots(self, slots)
        positions = np.full((len(rows), len(names), 3), np.nan)
        for place, (row, task) in enumerate(zip(rows, self._slots.task[rows], strict=True)):
            bodies = self._tasks[int(task)].bodies
            for column, name in enumerate(names):
                if name in bodies:
                    positions[place, column] = self._slots.body_pos[row, bodies[name]]
        return positions

    def thing_positions(self, slots: Indices | None = None) -> np.ndarray:
        """Return [B, things, 3] positions (m, world), NaN for what is not in a slot's scene."""
        return self.body_positions([*self.suite.instances.values()], slots)

    def baked_in(self, slot: int) -> BakedTask:
        """Return the task of a slot, as it was baked."""
        return self._tasks[int(self._slots.task[slot])]

    def row(self, slot: int) -> Slots:
        """Return what there is to know of a slot, each field without its first axis; not a copy."""
        return Slots(*(field[slot] for field in self._slots))

    def terms(self, slot: int) -> np.ndarray:
        """Return [terms] which terms of a slot's goal hold now."""
        task = int(self._slots.task[slot])
        holds = np.zeros((1, self._scenes[task].goals.kind.size), np.bool_)
        with self._workers.model_copy(task) as copy:
            chosen = np.array([slot])
            evaluate_terms(self._scenes[task], copy.scratch, self._slots, chosen, holds)
        return holds[0]

    def camera_poses(self, slots: Indices | None = None) -> CameraPoses:
        """Return where the policy's cameras are; of mirrored pictures, mirrored."""
        rows = begun_slots(self, slots)
        cameras = tuple(CAMERAS[name] for name in self.suite.embodiment.cameras)
        views = [
            self._drawing(int(self._slots.task[row])).views(self._slots, np.array([row]), cameras)
            for row in rows
        ]
        position, rotation, fovy = (np.concatenate(parts) for parts in zip(*views, strict=True))
        if self.suite.protocol.is_turned:
            rotation[..., 0] *= -1.0  # a mirrored picture
        return CameraPoses(position, rotation, fovy)

    def scene_model(self, slot: int) -> mujoco.MjModel:
        """Return what is drawn of a slot's task."""
        return self._tasks[int(self._slots.task[slot])].drawn()

    def write_scene(self, slot: int, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Put the poses of a slot into an MjData of its `scene_model`."""
        mujoco.mj_forward(model, data)  # lights
        drawing = self._drawing(int(self._slots.task[slot]))
        poses = drawing.poses(self._slots, np.array([slot]))
        for name, pose in zip(poses._fields, poses, strict=True):
            getattr(data, name)[:] = pose[0]

    def get_states(self) -> dict[str, np.ndarray]:
        """Copy everything that the future of the slots depends on."""
        copies = {name: field.copy() for name, field in self._slots._asdict().items()}
        return copies | {"state_id": self.state_ids}

    def set_states(self, states: dict[str, np.ndarray]) -> None:
        """Continue from what `get_states` of a simulation with as many slots returned.

        Raises:
            SpecError: They do not fit this suite and number of slots; nothing has changed.
        """
        checked = checked_states(self, states, self.get_states())
        self._load(checked["task"][checked["state_id"] >= 0])
        self._state_id[:] = checked.pop("state_id")
        for name, values in checked.items():
            getattr(self._slots, name)[:] = values

    def _load(self, tasks: np.ndarray) -> None:
        """Bake and load tasks that have not been used yet."""
        new = [task for task in np.unique(tasks).tolist() if task not in self._tasks]
        named = [self.suite.tasks[task] for task in new]
        bake_tasks([task.baked_as for task in named])
        for index, task in zip(new, named, strict=True):
            baked = load_task(*task.baked_as)
            self._scenes[index] = baked.scene(
                horizon=task.horizon,
                wait_steps=self.suite.protocol.wait_steps,
                sleeps=self.suite.is_fast,
            )
            self._tasks[index] = baked

    def _load_train_states(self, tasks: np.ndarray) -> None:
        """Sample and load initial states for training of tasks that have not been trained yet."""
        if self.suite.shares_states:
            return
        new = [task for task in np.unique(tasks).tolist() if task not in self._train_states]
        named = [self.suite.tasks[task] for task in new]
        wanted = [(*task.baked_as, task.num_train_states) for task in named]
        bake_train_states(wanted)
        for index, (benchmark, name, count) in zip(new, wanted, strict=True):
            self._train_states[index] = load_train_states(benchmark, name, count)

    def _copy_of(self, task: int) -> tuple[Scratch, mujoco.MjModel, mujoco.MjData]:
        return scratch_of(self._tasks[task].physics, sleeps=self.suite.is_fast)

    def _put_initial_state(self, row: int, task: int, state_id: int) -> None:
        states, first_test = self._tasks[task].states, self.suite.test_ids.start
        is_test = state_id >= first_test or self.suite.shares_states
        if is_test:
            place = state_id % first_test if state_id < first_test else state_id - first_test
            fixtures = states[f"fixtures {self.suite.protocol.resets}"][place]
            state = states["test"][place]
        else:
            sampled = self._train_states[task]
            state, fixtures = sampled["states"][state_id], sampled["fixtures"][state_id]
        self._slots.fixtures[row, : len(fixtures)] = fixtures
        # The time, qpos and qvel are what a packed state begins with; the rest is zero at first.
        self._slots.physics[row] = 0.0
        self._slots.physics[row, : len(state)] = state
        self._slots.tree_asleep[row] = -1 if not self.suite.is_fast else JUST_WOKEN

    def _recall(self, row: int, key: tuple[int, int]) -> bool:
        """Put the remembered beginning of an episode into a slot; tell whether there is one."""
        kept = self._beginnings.get(key)
        if kept is None:
            return False
        for field, values in zip(self._slots, kept, strict=True):
            field[row] = values
        return True

    def _remember(self, row: int, key: tuple[int, int]) -> None:
        self._beginnings[key] = tuple(np.copy(field[row]) for field in self._slots)
        if len(self._beginnings) > MAX_REMEMBERED:
            self._beginnings.popitem(last=False)

    def _drawing(self, task: int) -> Drawing:
        return drawing_of(self._tasks[task])

    def _draw(
        self, cameras: tuple[str, ...], rows: np.ndarray, pixels: int, *, is_film: bool = False
    ) -> np.ndarray:
        """Draw `rows` from cameras of their scenes: [B, C, pixels, pixels, 3]."""
        images = np.empty((len(rows), len(cameras), pixels, pixels, 3), np.uint8)
        protocol = self.suite.protocol
        rendered = pixels if is_film else protocol.image_size or pixels
        how = Drawn(self.suite.is_gl, self.suite.shown_look)

        def draw(task: int, block: np.ndarray) -> None:
            drawn = self._drawing(task).draw(self._slots, rows[block], cameras, rendered, how)
            if protocol.is_turned and not is_film:
                drawn = drawn[:, :, :, ::-1]
            images[block] = resized(drawn, pixels)

        if images.size:
            self._workers.draw(draw, np.arange(len(rows)), self._slots.task[rows])
        return images

    def _run(self, kernel, rows: np.ndarray, *arguments: np.ndarray) -> None:
        """Run a kernel over blocks of slots on all threads."""

        def work(task: int, scratch: Scratch, block: np.ndarray) -> None:
            kernel(self._scenes[task], scratch, self._slots, block, *arguments)

        self._workers.step(work, rows, self._slots.task[rows])

    def _diverge(self, row: int, before: list[np.ndarray], actions: np.ndarray) -> None:
        """Put a slot whose world blew up back to before the chunk, and tell what blew up."""
        task = int(self._slots.task[row])
        num_steps = int(dict(zip(self._slots._fields, before, strict=True))["num_steps"])
        for field, values in zip(self._slots, before, strict=True):
            field[row] = values
        state = {name: field[row].copy() for name, field in self._slots._asdict().items()}
        by_slot = np.zeros((self.num_slots, *actions.shape))
        by_slot[row] = actions
        with self._workers.model_copy(task) as copy:
            step_slots(self._scenes[task], copy.scratch, self._slots, np.array([row]), by_slot)
            packed = state["physics"][1 : 1 + copy.model.nq + copy.model.nv]
            qpos, qvel = np.split(packed, [copy.model.nq])
            cause = blame(copy.model, qpos, qvel, copy.data.qvel)
        for field, values in zip(self._slots, before, strict=True):
            field[row] = values
        self._slots.outcome[row] = DIVERGED
        self.divergences.append(
            Divergence(
                suite=self.suite.name,
                task=self.suite.tasks[task].name,
                state_id=int(self._state_id[row]),
                num_steps=num_steps,
                cause=cause,
                actions=actions.copy(),
                state=state,
            )
        )
