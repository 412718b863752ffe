"""Many environments of one suite, stepped by action chunks and rendered only when observed."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import mujoco
import numpy as np

from vla_crl.contracts import ACTION_DIM, ChunkResult, Observation, check_actions
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
from vla_crl.sim.divergence import Divergence, culprit
from vla_crl.sim.episodes import Episodes
from vla_crl.sim.predicates import Goals
from vla_crl.sim.renderer import BatchRenderer, model_appearance, wear
from vla_crl.sim.rotations import axis_angle_from_matrix
from vla_crl.sim.senses import add_image_noise, add_state_noise
from vla_crl.sim.slots import (
    DIVERGED,
    RUNNING,
    STATE_SPEC,
    Scratch,
    allocate_slots,
    world_of,
)
from vla_crl.sim.stepping import evaluate_goals, refresh_slots, step_slots
from vla_crl.sim.suite import Suite
from vla_crl.sim.task_suite import make_renderers
from vla_crl.sim.variation import VariationConfig
from vla_crl.sim.workers import Workers

if TYPE_CHECKING:
    from vla_crl.sim.experts import ScriptedExpert

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
        variation: VariationConfig | None = None,
    ) -> None:  # fmt: skip
        """Allocate the slots; they must be reset before use.

        Args:
            suite: What to simulate.
            num_slots: N.
            num_threads: Threads for physics and rendering.
            image_size: Height and width of each camera image, pixels.
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
        self._worlds = [world_of(suite, index) for index in range(len(suite.scenes))]
        self._slots = allocate_slots(suite, self._worlds, num_slots)
        self._episodes = Episodes(suite, self._worlds, self._slots, variation)
        self._renderers = make_renderers(suite, suite.cameras, image_size, range(len(suite.scenes)))
        self._workers = Workers([scene.model for scene in suite.scenes], num_threads)
        self.divergences: list[Divergence] = []
        """Every chunk under which physics blew up; whoever reads it may clear it."""
        self._images = np.empty(
            (num_slots, len(suite.cameras), image_size, image_size, 3), np.uint8
        )

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
        rows, task, ids = reset_arrays(self, slots, tasks, state_ids)
        self._episodes.begin(rows, task, ids)
        self._run(refresh_slots, rows)

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
        rows = rows_of(self, slots)
        checked = check_actions(actions, len(rows))
        state = self._slots
        require_running(self, rows, state.outcome[rows])
        by_slot = np.zeros((self.num_slots, checked.shape[1], ACTION_DIM))
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

    def observe(self, slots: Sequence[int] | np.ndarray | None = None) -> Observation:
        """Render the cameras of `slots` (all by default) and read their state and instruction.

        The images of all slots are one buffer, which the next call for all slots overwrites.

        Raises:
            SpecError: A slot has no episode.
        """
        rows = episode_rows(self, slots)
        shape = (len(rows), *self._images.shape[1:])
        images = self._images if slots is None else np.empty(shape, np.uint8)
        self.render(self._renderers, rows, images)
        state, episodes = self._proprioception(rows), self._episodes
        noise = (episodes.noise_key[rows], self._slots.num_steps[rows])
        add_image_noise(images, episodes.image_noise[rows], *noise)
        add_state_noise(state, episodes.state_noise[rows], *noise)
        return Observation(images, state, self.instructions(rows))

    def render(
        self, renderers: Mapping[int, BatchRenderer], rows: np.ndarray, images: np.ndarray
    ) -> None:
        """Draw `rows` with renderers of their scenes into images [B, cameras, H, W, 3]."""
        state, sizes = self._slots, [world.sizes for world in self._worlds]

        def draw(scene: int, block: np.ndarray) -> None:
            slots, size, renderer = rows[block], sizes[scene], renderers[scene]
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

        self._workers.draw(draw, np.arange(len(rows)), self._scenes_of(rows))

    def thing_positions(self, slots: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return [B, things, 3] positions (m, world): for labels and experts, not for policies.

        NaN where the slot's scene does not have the thing; an object that a variation has sent
        away is where it waits, out of sight.
        """
        rows = episode_rows(self, slots)
        bodies = self.suite.thing_bodies[self._scenes_of(rows)]
        positions = self._slots.body_pos[rows[:, None], bodies]
        positions[bodies < 0] = np.nan
        return positions

    def site_positions(
        self, site: int, slots: Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray:
        """Return [B, 3] positions (m, world) of a site of the slots' scene."""
        return self._slots.site_pos[episode_rows(self, slots), site]

    def expert(self) -> "ScriptedExpert":
        """Return the scripted expert of the suite's tasks."""
        from vla_crl.sim.experts import ScriptedExpert

        return ScriptedExpert(self)

    def satisfied(
        self,
        goals: Sequence[Goals],
        indices: np.ndarray,
        slots: Sequence[int] | np.ndarray | None = None,
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

    def grip_pose(
        self, slots: Sequence[int] | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the grip site's position [B, 3] (m, world) and rotation matrix [B, 3, 3]."""
        rows = episode_rows(self, slots)
        site = np.array([world.grip_site for world in self._worlds])[self._scenes_of(rows)]
        return self._slots.site_pos[rows, site], self._slots.site_mat[rows, site].reshape(-1, 3, 3)

    def finger_positions(self, slots: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return [B, 2] finger joint positions (m; 0 closed)."""
        rows = episode_rows(self, slots)
        return self._slots.qpos[rows[:, None], self._episodes.fingers[self._scenes_of(rows)]]

    def instructions(self, slots: Sequence[int] | np.ndarray | None = None) -> tuple[str, ...]:
        """Return what the policy is told in each of `slots`."""
        return self._episodes.instructions(episode_rows(self, slots))

    def action_latency(self, slots: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return [B] control steps by which actions take effect late."""
        return self._slots.latency[episode_rows(self, slots)]

    def camera_poses(
        self, slots: Sequence[int] | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the policy's cameras: positions [B, C, 3] (m, world), matrices [B, C, 3, 3]."""
        rows = episode_rows(self, slots)
        ids = [[s.model.camera(c).id for c in self.suite.cameras] for s in self.suite.scenes]
        cameras = np.array(ids)[self._scenes_of(rows)]
        position, rotation = self._slots.camera_pos, self._slots.camera_mat
        chosen = rotation[rows[:, None], cameras]
        return position[rows[:, None], cameras], chosen.reshape(*cameras.shape, 3, 3)

    def write_scene(self, slot: int, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Put what is seen of a slot into a model and an MjData of it, for MuJoCo's own renderer.

        Args:
            slot: Which one.
            model: A copy of `suite.model` of the slot's scene; gets the slot's colours, textures
                and lights.
            data: Gets the slot's state and its poses, also where robot or cameras are displaced.
        """
        rows = episode_rows(self, [slot])
        scene = int(self._scenes_of(rows)[0])
        wear(model, self._episodes.dress(model_appearance(self.suite.model(scene)), scene, rows))
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
        with self._workers.bench(scene) as bench:
            step_slots(self._worlds[scene], bench.scratch, slots, np.array([row]), by_slot)
            joint, speed = culprit(bench.model, physics, bench.data.qvel)
        return Divergence(
            suite=self.suite.name,
            task=self.suite.tasks[slots.task[row]].name,
            state_id=int(self._episodes.state_id[row]),
            joint=joint,
            speed=speed,
            physics=physics,
            actions=actions.copy(),
            variation=self.variation,
            num_steps=int(before["num_steps"]),
            controller=before["controller"],
            pending=before["pending"],
            tree_asleep=before["tree_asleep"],
        )
