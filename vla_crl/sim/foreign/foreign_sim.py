"""Many environments of somebody else, with the contract of `VectorSim`."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import numpy as np

from vla_crl.errors import ConfigError, ForeignError, SpecError
from vla_crl.sim.calls import require_no_variation
from vla_crl.sim.episode_sim import EpisodeSim, PhysicsError
from vla_crl.sim.foreign.foreign_episode import EpisodeSpec
from vla_crl.sim.foreign.process import WorkerFailedError, WorkerProcess
from vla_crl.sim.foreign.suite import ForeignSuite
from vla_crl.sim.foreign.worker import seed_of
from vla_crl.sim.task_suite import TaskSuite
from vla_crl.sim.threads import on_each
from vla_crl.sim.variation import VariationConfig

logger = logging.getLogger(__name__)


class RemoteEpisode:
    """An episode that a worker plays; where the worker lost it, it is played again."""

    def __init__(
        self, worker: WorkerProcess, slot: int, suite: TaskSuite, task: int, state_id: int
    ) -> None:
        """Begin it."""
        self._worker, self._slot, self._state_id = worker, slot, state_id
        self._task, self._task_name = task, suite.tasks[task].name
        self._played = np.empty((0, len(suite.embodiment.action)))
        self._state: np.ndarray | None = None
        self._told(lambda: None)

    def __str__(self) -> str:
        """Say which it is."""
        return f"task '{self._task_name}', initial state {self._state_id}"

    def step_chunk(self, actions: np.ndarray, max_steps: int) -> tuple[bool, int]:
        """Execute actions until one succeeds, see `Episode`."""
        success, taken = self._told(lambda: self._step(actions[:max_steps]))
        self._played = np.concatenate([self._played, actions[:taken]])
        return success, taken

    def state(self) -> np.ndarray:
        """Return [S] what the robot feels."""
        assert self._state is not None
        return self._state

    def images(self, cameras: tuple[str, ...], pixels: int) -> np.ndarray:
        """Draw [C, pixels, pixels, 3] what cameras see."""

        def draw() -> np.ndarray:
            self._worker.call("images", self._slot, cameras=cameras, pixels=pixels)
            return self._worker.shared.images(len(cameras), pixels).copy()

        return self._told(draw)

    def _told(self, work: Callable[[], Any]) -> Any:
        """Do something with the worker, once more in a new one if it fails.

        Raises:
            ForeignError: It failed both times.
        """
        worker = self._worker
        with worker.lock:
            try:
                return self._there(work)
            except WorkerFailedError as error:
                logger.warning("%s. It is started again, and its episodes played again", error)
                worker.restart()
            try:
                return self._there(work)
            except WorkerFailedError as error:
                worker.restart()  # for the episodes of other slots
                raise ForeignError(
                    f"{error}. It did so when the episode was played again"
                ) from error

    def _there(self, work: Callable[[], Any]) -> Any:
        """Do something where the worker's slot stands at the end of what was played."""
        holds = self._worker.holds
        with ExitStack() as failed:  # then it is played again to where it was, when asked for
            failed.callback(holds.pop, self._slot, None)
            if holds.get(self._slot) is not self:
                holds[self._slot] = self
                self._begin()
            before = self.state()
            try:
                done = work()
            except PhysicsError as error:
                raise PhysicsError(error.cause, {"state": before}) from error
            failed.pop_all()
        return done

    def _begin(self) -> None:
        """Begin, and play again what was played.

        Raises:
            SpecError: It does not lead to where it did.
        """
        worker, before = self._worker, self._state
        seed = seed_of(self._task_name, self._state_id)
        try:
            worker.call("begin", self._slot, task=self._task, state_id=self._state_id, seed=seed)
            self._state = worker.shared.state.copy()
            if len(self._played):
                self._step(self._played)
            repeats = before is None or np.array_equal(before, self._state)
        except PhysicsError as error:
            if before is None:
                raise SpecError(f"{self}: its initial state is broken: {error.cause}") from error
            repeats = False
        if not repeats:
            self._state = before
            raise SpecError(
                f"{self}, slot {self._slot}: played again, the robot feels other things; what an "
                "episode does must depend on task, state id and actions alone"
            )

    def _step(self, actions: np.ndarray) -> tuple[bool, int]:
        worker = self._worker
        worker.shared.actions[: len(actions)] = actions
        reply = worker.call("step", self._slot, num_steps=len(actions))
        self._state = worker.shared.state.copy()
        return reply["success"], reply["num_steps"]


class ForeignSim(EpisodeSim[TaskSuite, RemoteEpisode]):
    """N slots that worker processes play, slot i in worker i modulo their number.

    See `VectorSim` for the calls. A worker is started again when its environment raises, hangs or
    dies, and what it played is played again; what fails twice is a `ForeignError`.
    """

    def __init__(
        self, suite: TaskSuite, num_slots: int, spec: EpisodeSpec, *, num_threads: int = 2,
        image_size: int = 64,
    ) -> None:  # fmt: skip
        """Start the workers; slots must be reset before use.

        Args:
            suite: What to simulate.
            num_slots: N.
            spec: How workers make episodes.
            num_threads: Worker processes, as many as there are slots at most.
            image_size: Height and width of each camera image, pixels.

        Raises:
            ConfigError: A count is no whole number from 1 on, or there is no such class.
        """
        # A thread of each slot does nothing but wait for its worker.
        super().__init__(suite, num_slots, num_threads=num_slots, image_size=image_size)
        self._waiting = ThreadPoolExecutor(num_slots)
        self._workers: list[WorkerProcess] = []
        try:
            for number in range(min(num_threads, num_slots)):
                self._workers.append(WorkerProcess(suite, spec, number, image_size))
            for worker in self._workers:
                worker.wait()
        except WorkerFailedError as error:
            self.close()
            raise ForeignError(str(error)) from error
        except ConfigError:
            self.close()
            raise

    def begin(self, slot: int, task: int, state_id: int) -> RemoteEpisode:
        """Begin an episode in the worker of its slot."""
        worker = self._workers[slot % len(self._workers)]
        return RemoteEpisode(worker, slot, self.suite, task, state_id)

    def draw(
        self, task: int, episodes: Sequence[RemoteEpisode], cameras: tuple[str, ...], pixels: int
    ) -> np.ndarray:
        """Draw B episodes: [B, cameras, pixels, pixels, 3]."""
        drawn = on_each(self._waiting, lambda episode: episode.images(cameras, pixels), [*episodes])
        return np.stack(drawn)

    def close(self) -> None:
        """Stop the threads and end the workers."""
        for worker in self._workers:
            worker.end()  # first: a thread may wait for it
        super().close()
        self._waiting.shutdown()
        for worker in self._workers:
            worker.close()
        self._workers = []


def simulate_foreign(
    suite: ForeignSuite, num_slots: int, *, num_threads: int = 2, image_size: int = 64,
    tasks: Sequence[int] | None = None, variation: VariationConfig | None = None,
) -> ForeignSim:  # fmt: skip
    """Simulate a suite whose file names a class of episodes.

    Args:
        suite: What to simulate.
        num_slots: N.
        num_threads: Worker processes.
        image_size: Height and width of each camera image, pixels.
        tasks: Which will be asked for; environments are made when they are, so it does not matter.
        variation: None, or one that varies nothing.

    Raises:
        ConfigError: A count is no whole number from 1 on, a package or the class is missing, or
            something is to vary.
    """
    require_no_variation(suite, variation)
    require_packages(suite)
    return ForeignSim(suite, num_slots, suite.spec, num_threads=num_threads, image_size=image_size)


def require_packages(suite: ForeignSuite) -> None:
    """Check that what a suite's file names as `packages` is installed.

    Raises:
        ConfigError: Something is not; says how to install it.
    """
    for package, install in suite.config.packages.items():
        if find_spec(package) is None:
            raise ConfigError(f"suite '{suite.name}' needs the package {package}: {install}")
