"""Many environments of one suite, stepped by action chunks and rendered only when observed."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import mujoco
import numpy as np

from vla_crl.contracts import ACTION_DIM, Observation, check_actions
from vla_crl.errors import ConfigError, SpecError
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.layout import initial_states
from vla_crl.sim.predicates import Goals
from vla_crl.sim.renderer import BatchRenderer
from vla_crl.sim.rotations import axis_angle_from_matrix
from vla_crl.sim.stepping import (
    DIVERGED,
    RUNNING,
    STATE_SPEC,
    SUCCESS,
    TIME_LIMIT,
    Scratch,
    allocate_slots,
    evaluate_goals,
    refresh_slots,
    scratch_of,
    step_slots,
    world_of,
)
from vla_crl.sim.suite import Suite, load_suite

BLOCK_SLOTS = 8
"""Slots a thread takes at a time: small enough to balance load, large enough to hide dispatch."""


@dataclass(frozen=True)
class ChunkResult:
    """What a chunk of actions led to, one row per stepped slot.

    Attributes:
        reward: [B] float32, 1 when the task succeeded within the chunk, else 0.
        success: [B] bool.
        terminated: [B] bool, success or diverged physics (a failure): no future to bootstrap.
        truncated: [B] bool, time limit without success.
        num_steps: [B] control steps really taken.
        diverged: [B] bool, physics blew up; counts as a failure. The slot then stays as it was
            before the chunk, so that what is observed and stored remains finite.
    """

    reward: np.ndarray
    success: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    num_steps: np.ndarray
    diverged: np.ndarray


class VectorSim:
    """N slots of one suite on the CPU.

    A slot is a row of plain arrays (physics state, controller, poses); the few MjData in use belong
    to threads. So an episode depends only on (task, initial state id, actions): not on the slot,
    the number of slots or the number of threads. Slots may hold different tasks.

        sim = VectorSim(load_suite("tabletop_object"), num_slots=64)
        sim.reset(range(64), tasks=[0] * 64, state_ids=range(64))
        while ...:
            observation = sim.observe()                       # renders
            result = sim.step_chunk(policy(observation))      # [64, K, 7]; does not render
            finished = np.flatnonzero(result.terminated | result.truncated)
            sim.reset(finished, tasks=..., state_ids=...)     # refill at once
    """

    def __init__(
        self, suite: Suite, num_slots: int, *, num_threads: int = 2, image_size: int = 64
    ) -> None:
        """Allocate the slots; they must be reset before use.

        Args:
            suite: What to simulate.
            num_slots: N.
            num_threads: Threads for physics and rendering.
            image_size: Height and width of each camera image, pixels.

        Raises:
            ConfigError: A count is not positive.
        """
        for name, value in [
            ("num_slots", num_slots),
            ("num_threads", num_threads),
            ("image_size", image_size),
        ]:
            if value < 1:
                raise ConfigError(f"VectorSim: {name} is {value}, expected at least 1")
        self.suite = suite
        self.num_slots = num_slots
        self._world = world_of(suite)
        self._slots = allocate_slots(suite.model, self._world, num_slots)
        self._initial = initial_states(suite)
        self._start_qpos = suite.start_qpos()
        self._state_id = np.full(num_slots, -1)
        self._finger_qpos = [
            suite.model.joint(name).qposadr[0] for name in suite.config.arm.fingers
        ]
        self._renderer = BatchRenderer(suite.model, suite.config.cameras, image_size, image_size)
        self._pool = ThreadPoolExecutor(num_threads)
        self._datas = [mujoco.MjData(suite.model) for _ in range(num_threads)]
        self._scratch: SimpleQueue[Scratch] = SimpleQueue()
        for data in self._datas:
            self._scratch.put(scratch_of(suite.model, data))
        self.divergences: list[Divergence] = []
        """Every chunk under which physics blew up; whoever reads it may clear it."""
        self._images = np.empty(
            (num_slots, len(suite.config.cameras), image_size, image_size, 3), np.uint8
        )

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()

    @property
    def tasks(self) -> np.ndarray:
        """[N] task index of each slot."""
        return self._slots.task.copy()

    @property
    def state_ids(self) -> np.ndarray:
        """[N] initial state id of each slot's episode; -1 before the first reset."""
        return self._state_id.copy()

    def reset(
        self, slots: Sequence[int] | np.ndarray, *, tasks: Sequence[int] | np.ndarray,
        state_ids: Sequence[int] | np.ndarray,
    ) -> None:  # fmt: skip
        """Start a new episode in each of `slots`.

        Args:
            slots: [B] slot indices.
            tasks: [B] task indices, see `Suite.task_index`.
            state_ids: [B] initial states, from `Suite.train_ids` or `Suite.test_ids`.

        Raises:
            SpecError: An index is out of range or the lengths differ.
        """
        rows, task, ids = (
            np.asarray(list(values), dtype=np.int64) for values in (slots, tasks, state_ids)
        )
        if not len(rows) == len(task) == len(ids):
            raise SpecError(
                f"VectorSim.reset: {len(rows)} slots, {len(task)} tasks, {len(ids)} state_ids; "
                "expected one task and one state id per slot"
            )
        _check_range("VectorSim.reset: slot", rows, self.num_slots)
        _check_range("VectorSim.reset: task", task, len(self.suite.tasks))
        _check_range("VectorSim.reset: state id", ids, len(self._initial.qpos))
        model, state = self.suite.model, self._slots
        nq, nv, nu = model.nq, model.nv, model.nu
        state.physics[rows] = 0.0  # time, qpos, qvel, act, warmstart, ctrl, mocap pos, mocap quat
        start_qpos = self._start_qpos[task]
        initial_qpos = self._initial.qpos[ids]
        state.physics[rows, 1 : 1 + nq] = np.where(np.isnan(start_qpos), initial_qpos, start_qpos)
        state.controller[rows] = self._initial.controller[ids]
        start = 1 + nq + nv + model.na + nv
        ctrl = np.empty((len(rows), nu))
        ctrl[:, self._world.arm_actuators] = self._initial.controller[ids, 12:-1]
        ctrl[:, self._world.finger_actuators] = self._initial.controller[ids, -1:]
        state.physics[rows, start : start + nu] = ctrl
        start += nu
        end = start + 3 * model.nmocap
        state.physics[rows, start:end] = self._initial.mocap_pos[ids].reshape(
            len(rows), 3 * model.nmocap
        )
        state.physics[rows, end:] = np.tile([1.0, 0.0, 0.0, 0.0], model.nmocap)
        state.task[rows], state.num_steps[rows], state.outcome[rows] = task, 0, RUNNING
        self._state_id[rows] = ids
        self._run(lambda scratch, block: refresh_slots(scratch, state, block), rows)

    def step_chunk(
        self, actions: np.ndarray, slots: Sequence[int] | np.ndarray | None = None
    ) -> ChunkResult:
        """Execute K actions in each slot; a slot stops early when its episode ends.

        Args:
            actions: [B, K, 7] in [-1, 1] (clipped), one chunk per stepped slot.
            slots: [B] slot indices; all slots by default.

        Raises:
            SpecError: Wrong shape, a value that is not finite, or a slot whose episode is over.
        """
        rows = self._rows(slots)
        checked = check_actions(actions, len(rows))
        state = self._slots
        over = rows[(state.outcome[rows] != RUNNING) | (self._state_id[rows] < 0)]
        if len(over):
            raise SpecError(
                f"VectorSim.step_chunk: slots {over[:5].tolist()} have no running episode; "
                "reset them first"
            )
        by_slot = np.zeros((self.num_slots, checked.shape[1], ACTION_DIM))
        by_slot[rows] = checked
        before, controller = state.num_steps[rows].copy(), state.controller[rows].copy()
        self._run(
            lambda scratch, block: step_slots(self._world, scratch, state, block, by_slot), rows
        )
        outcome = state.outcome[rows]
        success = outcome == SUCCESS
        for k in np.flatnonzero(outcome == DIVERGED):
            self.divergences.append(
                self._diagnose(int(rows[k]), int(before[k]), controller[k], checked[k])
            )
        return ChunkResult(
            reward=success.astype(np.float32),
            success=success,
            terminated=success | (outcome == DIVERGED),
            truncated=outcome == TIME_LIMIT,
            num_steps=state.num_steps[rows] - before,
            diverged=outcome == DIVERGED,
        )

    def observe(self, slots: Sequence[int] | np.ndarray | None = None) -> Observation:
        """Render the cameras of `slots` (all by default) and read their state and instruction.

        The images of all slots are one buffer, which the next call for all slots overwrites.
        """
        rows = self._rows(slots)
        shape = (len(rows), *self._images.shape[1:])
        images = self._images if slots is None else np.empty(shape, np.uint8)
        self.render(self._renderer, rows, images)
        return Observation(images, self._proprioception(rows), self._instructions(rows))

    def render(self, renderer: BatchRenderer, rows: np.ndarray, images: np.ndarray) -> None:
        """Draw `rows` with a renderer of this scene into images [B, cameras, H, W, 3]."""
        state = self._slots

        def draw(block: np.ndarray) -> None:
            slots = rows[block]
            images[block] = renderer.render(
                state.geom_pos[slots],
                state.geom_mat[slots],
                state.camera_pos[slots],
                state.camera_mat[slots],
            )

        list(self._pool.map(draw, _blocks(np.arange(len(rows)))))

    def thing_positions(self, slots: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return [B, things, 3] positions (m, world): for labels and experts, not for policies."""
        return self._slots.body_pos[self._rows(slots)][:, self.suite.thing_bodies]

    def site_positions(
        self, site: int, slots: Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray:
        """Return [B, 3] positions (m, world) of a site of the model."""
        return self._slots.site_pos[self._rows(slots), site]

    def satisfied(
        self, goals: Goals, indices: np.ndarray, slots: Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray:
        """Return [B] bool: whether the goal `goals[indices[b]]` holds in slot b now.

        Args:
            goals: From `Suite.compile`.
            indices: [B] which of them.
            slots: [B] slot indices; all slots by default.
        """
        rows = self._rows(slots)
        holds = np.empty(len(rows), bool)
        evaluate_goals(goals, self._slots, self._world.grip_site, rows, indices, holds)
        return holds

    def grip_pose(
        self, slots: Sequence[int] | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the grip site's position [B, 3] (m, world) and rotation matrix [B, 3, 3]."""
        rows, site = self._rows(slots), self._world.grip_site
        return self._slots.site_pos[rows, site], self._slots.site_mat[rows, site].reshape(-1, 3, 3)

    def finger_positions(self, slots: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return [B, 2] finger joint positions (m; 0 closed)."""
        return self._slots.qpos[self._rows(slots)][:, self._finger_qpos]

    def camera_poses(
        self, slots: Sequence[int] | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return [B, cameras of the model, 3] positions (m, world) and [.., 3, 3] matrices."""
        rows = self._rows(slots)
        return self._slots.camera_pos[rows], self._slots.camera_mat[rows].reshape(
            len(rows), -1, 3, 3
        )

    def write_data(self, slot: int, data: mujoco.MjData) -> None:
        """Put a slot's state into an MjData of the suite's model, poses included."""
        model = self.suite.model
        mujoco.mj_setState(model, data, self._slots.physics[slot], STATE_SPEC)
        mujoco.mj_forward(model, data)

    def get_states(self) -> dict[str, np.ndarray]:
        """Copy everything that the future of the slots depends on."""
        state = self._slots
        return {
            "physics": state.physics.copy(),
            "controller": state.controller.copy(),
            "task": state.task.copy(),
            "num_steps": state.num_steps.copy(),
            "outcome": state.outcome.copy(),
            "state_id": self._state_id.copy(),
        }

    def set_states(self, states: dict[str, np.ndarray]) -> None:
        """Continue from what `get_states` of a simulation with as many slots returned."""
        for name in ("physics", "controller", "task", "num_steps", "outcome"):
            getattr(self._slots, name)[:] = states[name]
        self._state_id[:] = states["state_id"]
        self._run(
            lambda scratch, block: refresh_slots(scratch, self._slots, block),
            np.arange(self.num_slots),
        )

    def _rows(self, slots: Sequence[int] | np.ndarray | None) -> np.ndarray:
        if slots is None:
            return np.arange(self.num_slots)
        rows = np.asarray(list(slots), dtype=np.int64)
        _check_range("VectorSim: slot", rows, self.num_slots)
        return rows

    def _proprioception(self, rows: np.ndarray) -> np.ndarray:
        position, rotation = self.grip_pose(rows)
        parts = (position, axis_angle_from_matrix(rotation), self.finger_positions(rows))
        return np.concatenate(parts, axis=1).astype(np.float32)

    def _instructions(self, rows: np.ndarray) -> tuple[str, ...]:
        tasks = self.suite.tasks
        return tuple(tasks[task].instruction for task in self._slots.task[rows])

    def _run(self, kernel: Callable[[Scratch, np.ndarray], None], rows: np.ndarray) -> None:
        """Run a kernel over blocks of rows on the thread pool, each with a free MjData."""

        def work(block: np.ndarray) -> None:
            scratch = self._scratch.get()
            try:
                kernel(scratch, block)
            finally:
                self._scratch.put(scratch)

        list(self._pool.map(work, _blocks(rows)))

    def _diagnose(
        self, row: int, num_steps: int, controller: np.ndarray, actions: np.ndarray
    ) -> Divergence:
        """Run the chunk again in one MjData, to see what moves too fast in the end."""
        model, slots = self.suite.model, self._slots
        slots.controller[row], slots.num_steps[row] = controller, num_steps
        slots.outcome[row] = RUNNING
        by_slot = np.zeros((self.num_slots, *actions.shape))
        by_slot[row] = actions
        scratch = self._scratch.get()
        try:
            step_slots(self._world, scratch, slots, np.array([row]), by_slot)
            data = next(data for data in self._datas if data._address == scratch.data)
            speed = np.abs(data.qvel)
        finally:
            self._scratch.put(scratch)
        dof = int(np.argmax(np.where(np.isfinite(speed), speed, np.inf)))
        return Divergence(
            suite=self.suite.name,
            task=self.suite.tasks[slots.task[row]].name,
            state_id=int(self._state_id[row]),
            num_steps=int(num_steps),
            joint=_joint_name(model, int(model.dof_jntid[dof])),
            speed=float(speed[dof]),
            physics=slots.physics[row].copy(),
            controller=controller.copy(),
            actions=actions.copy(),
        )


def _joint_name(model: mujoco.MjModel, joint: int) -> str:
    """Return a joint's name, or of a free joint that of its body."""
    return model.joint(joint).name or model.body(model.jnt_bodyid[joint]).name


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + BLOCK_SLOTS] for start in range(0, len(rows), BLOCK_SLOTS)]


def _check_range(what: str, values: np.ndarray, stop: int) -> None:
    bad = values[(values < 0) | (values >= stop)]
    if len(bad):
        raise SpecError(f"{what} {bad[0]} is out of range, expected 0 .. {stop - 1}")


def make_sim(
    suite_name: str, num_slots: int, *, num_threads: int = 2, image_size: int = 64
) -> VectorSim:
    """Load a suite by name and allocate its slots."""
    return VectorSim(
        load_suite(suite_name), num_slots, num_threads=num_threads, image_size=image_size
    )
