"""Worlds that are objects of their own, one in each slot: a `Simulation` made of `Episode`s."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

import numpy as np

from vla_crl.contracts import ChunkResult, Observation, check_actions
from vla_crl.errors import SpecError
from vla_crl.sim.calls import (
    begun_slots,
    checked_states,
    chosen_slots,
    chunk_result,
    require_counts,
    require_running,
    reset_arrays,
)
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.outcomes import DIVERGED, RUNNING, SUCCESS, TIME_LIMIT
from vla_crl.sim.simulation import Indices
from vla_crl.sim.task_suite import TaskSuite
from vla_crl.sim.threads import on_each, spread


class PhysicsError(ArithmeticError):
    """Physics became NaN or absurdly large."""

    def __init__(self, cause: str, state: dict[str, np.ndarray]) -> None:
        """Keep what a `Divergence` tells.

        Args:
            cause: What blew up, in words.
            state: What is known of the world before the chunk, arrays by name.
        """
        super().__init__(cause)
        self.cause, self.state = cause, state


class Episode(Protocol):
    """One episode; what it does depends on its task, initial state and actions alone."""

    def step_chunk(self, actions: np.ndarray, max_steps: int) -> tuple[bool, int]:
        """Execute actions until one succeeds.

        Args:
            actions: [K, A] in [-1, 1].
            max_steps: Control steps left to the episode, at least one.

        Returns:
            Whether the last step was a success, and the number of steps taken.

        Raises:
            PhysicsError: Physics blew up; what is seen and felt is still that before the chunk.
        """
        ...

    def state(self) -> np.ndarray:
        """Return [S] what the robot feels."""
        ...


AnySuite = TypeVar("AnySuite", bound=TaskSuite)
AnyEpisode = TypeVar("AnyEpisode", bound=Episode)


class EpisodeSim(ABC, Generic[AnySuite, AnyEpisode]):
    """N slots, each an `Episode` that threads step and draw; see `VectorSim` for the calls.

    A backend says how an episode begins and what it looks like. All of them can be filmed, and go
    on elsewhere by playing their actions again.
    """

    def __init__(
        self, suite: AnySuite, num_slots: int, *, num_threads: int = 2, image_size: int = 64
    ) -> None:
        """Allocate the slots; they must be reset before use.

        Args:
            suite: What to simulate.
            num_slots: N.
            num_threads: Threads for physics, and as many for drawing.
            image_size: Height and width of each camera image, pixels.

        Raises:
            ConfigError: A count is no whole number from 1 on.
        """
        require_counts(
            type(self).__name__,
            num_slots=num_slots,
            num_threads=num_threads,
            image_size=image_size,
        )
        self.suite, self.num_slots = suite, num_slots
        self.divergences: list[Divergence] = []
        """Every chunk under which physics blew up; whoever reads it may clear it."""
        self._image_size = image_size
        self._episodes: list[AnyEpisode | None] = [None] * num_slots
        self._task = np.zeros(num_slots, np.int64)
        self._state_id = np.full(num_slots, -1)
        self._num_steps = np.zeros(num_slots, np.int64)
        self._outcome = np.full(num_slots, RUNNING)
        self._actions = np.zeros((num_slots, suite.horizon, len(suite.embodiment.action)))
        self._physics = ThreadPoolExecutor(num_threads)
        self._drawing = ThreadPoolExecutor(num_threads)  # need not queue behind physics

    @abstractmethod
    def begin(self, slot: int, task: int, state_id: int) -> AnyEpisode:
        """Begin an episode in a slot; called from several threads.

        The episode that stands there goes on if this one is refused.
        """

    @abstractmethod
    def draw(
        self, task: int, episodes: Sequence[AnyEpisode], cameras: tuple[str, ...], pixels: int
    ) -> np.ndarray:
        """Draw B episodes of one task: [B, cameras, pixels, pixels, 3]; from several threads."""

    def close(self) -> None:
        """Stop the threads."""
        self._physics.shutdown()
        self._drawing.shutdown()

    @property
    def tasks(self) -> np.ndarray:
        """[N] task index of each slot."""
        return self._task.copy()

    @property
    def state_ids(self) -> np.ndarray:
        """[N] initial state id of each slot's episode; -1 before the first reset."""
        return self._state_id.copy()

    def episode(self, slot: int) -> AnyEpisode:
        """Return the episode of a slot.

        Raises:
            SpecError: It has none yet.
        """
        episode = self._episodes[slot]
        if episode is None:
            raise SpecError(f"{type(self).__name__}: slot {slot} has no episode; reset it first")
        return episode

    def reset(self, slots: Indices, *, tasks: Indices, state_ids: Indices) -> None:
        """Start a new episode in each of `slots`; see `VectorSim.reset`."""
        rows, task, ids = reset_arrays(self, slots, tasks, state_ids)

        def begin(row: int, task: int, state_id: int) -> None:
            self._episodes[row] = self.begin(row, task, state_id)

        on_each(self._physics, begin, rows.tolist(), task.tolist(), ids.tolist())
        self._task[rows], self._state_id[rows] = task, ids
        self._num_steps[rows], self._outcome[rows], self._actions[rows] = 0, RUNNING, 0.0

    def step_chunk(self, actions: np.ndarray, slots: Indices | None = None) -> ChunkResult:
        """Execute K actions in each slot; see `VectorSim.step_chunk`."""
        rows = chosen_slots(self, slots)
        checked = check_actions(actions, len(rows), self._actions.shape[-1])
        require_running(self, rows, self._outcome[rows])
        before = self._num_steps[rows]
        events = on_each(self._physics, self._step_slot, rows.tolist(), [*checked])
        self.divergences += filter(None, events)  # in the order of slots, not of threads
        return chunk_result(self._outcome[rows], self._num_steps[rows] - before)

    def observe(self, slots: Indices | None = None, *, images: bool = True) -> Observation:
        """Render the cameras of `slots` (all by default) and read their state and instruction."""
        rows = begun_slots(self, slots)
        size = self._image_size if images else 0
        drawn = self._draw(self.suite.embodiment.cameras, rows, size)
        state = np.array([self.episode(row).state() for row in rows.tolist()], np.float32)
        width = len(self.suite.embodiment.state)
        return Observation(drawn, state.reshape(-1, width), self.instructions(rows))

    def instructions(self, slots: Indices | None = None) -> tuple[str, ...]:
        """Return what the policy is told in each of `slots`."""
        tasks = self._task[begun_slots(self, slots)]
        return tuple(self.suite.tasks[task].instruction for task in tasks)

    def frames(self, camera: str, pixels: int, slots: Indices | None = None) -> np.ndarray:
        """Draw `slots` from a camera of their scenes, see `Filmed`."""
        return self._draw((camera,), begun_slots(self, slots), pixels)[:, 0]

    def get_states(self) -> dict[str, np.ndarray]:
        """Copy everything that the future of the slots depends on: what has been done so far."""
        return {
            "task": self.tasks,
            "state_id": self.state_ids,
            "num_steps": self._num_steps.copy(),
            "outcome": self._outcome.copy(),
            "actions": self._actions.copy(),
        }

    def set_states(self, states: dict[str, np.ndarray]) -> None:
        """Continue from what `get_states` of a simulation with as many slots returned.

        Episodes begin anew and play their actions again, which takes as long as it did.

        Raises:
            SpecError: They do not fit this suite and number of slots, or their actions do not lead
                to where they say; nothing has changed.
        """
        checked = checked_states(self, states, self.get_states())
        used = np.flatnonzero(checked["state_id"] >= 0)
        episodes: list[AnyEpisode | None] = [None] * self.num_slots

        def play(row: int) -> None:
            state = {name: values[row] for name, values in checked.items()}
            episodes[row] = self._play(row, state)

        on_each(self._physics, play, used.tolist())
        self._episodes = episodes
        for name, values in checked.items():
            getattr(self, f"_{name}")[:] = values

    def _play(self, row: int, state: dict[str, np.ndarray]) -> AnyEpisode:
        """Play a slot's episode again."""
        task, num_steps, outcome = (int(state[n]) for n in ("task", "num_steps", "outcome"))
        episode, success, taken = self.begin(row, task, int(state["state_id"])), False, 0
        try:
            if num_steps:
                success, taken = episode.step_chunk(state["actions"][:num_steps], num_steps)
        except PhysicsError:
            taken = -1  # a chunk that blew up is none of the steps that count
        stands = self._outcome_of(task, success, num_steps)
        said = RUNNING if outcome == DIVERGED else outcome
        if (taken, stands) != (num_steps, said):
            raise SpecError(
                f"{type(self).__name__}.set_states: task '{self.suite.tasks[task].name}' does not "
                f"stand where its {num_steps} steps are said to have led; use a simulation of the "
                "same suite, of the same version"
            )
        return episode

    def _draw(self, cameras: tuple[str, ...], rows: np.ndarray, pixels: int) -> np.ndarray:
        """Draw `rows` from cameras of their tasks: [B, C, pixels, pixels, 3]."""
        images = np.empty((len(rows), len(cameras), pixels, pixels, 3), np.uint8)

        def draw(task: int, block: np.ndarray) -> None:
            episodes = [self.episode(row) for row in rows[block].tolist()]
            images[block] = self.draw(task, episodes, cameras, pixels)

        if images.size:
            spread(self._drawing, draw, np.arange(len(rows)), self._task[rows])
        return images

    def _step_slot(self, row: int, actions: np.ndarray) -> Divergence | None:
        """Run a chunk in one slot, keep how it ended, and return what blew up."""
        task, done = int(self._task[row]), int(self._num_steps[row])
        try:
            success, taken = self.episode(row).step_chunk(
                actions, self.suite.tasks[task].horizon - done
            )
        except PhysicsError as error:
            self._outcome[row] = DIVERGED
            return Divergence(
                suite=self.suite.name,
                task=self.suite.tasks[task].name,
                state_id=int(self._state_id[row]),
                num_steps=done,
                cause=error.cause,
                actions=actions.copy(),
                state=error.state,
            )
        self._actions[row, done : done + taken] = actions[:taken]
        self._num_steps[row] = done + taken
        self._outcome[row] = self._outcome_of(task, success, done + taken)
        return None

    def _outcome_of(self, task: int, success: bool, num_steps: int) -> int:
        if success:
            return SUCCESS
        return TIME_LIMIT if num_steps == self.suite.tasks[task].horizon else RUNNING
