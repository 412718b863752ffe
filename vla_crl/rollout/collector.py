"""On-policy collection: N slots of one task, refilled at once, T chunks an iteration."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch

from vla_crl.contracts import ChunkResult
from vla_crl.errors import ConfigError
from vla_crl.models.context import Context
from vla_crl.models.policy import ActionChunk, VLAPolicy
from vla_crl.rollout.storage import RolloutStorage
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.simulation import Simulation


@dataclass(frozen=True, kw_only=True)
class CollectorConfig:
    """Size of one iteration."""

    num_envs: int = 64
    """Environments stepped together (N)."""
    num_chunks: int = 12
    """Action chunks per environment and iteration (T)."""
    num_threads: int = 2
    """Threads for physics and rendering."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("num_envs", "num_chunks", "num_threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"collector.{name} is {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True)
class CollectionStatistics:
    """What happened in one iteration.

    Attributes:
        episodes: Episodes that ended.
        successes: Those that succeeded.
        num_steps: Control steps taken.
        divergences: Episodes ended because physics blew up (counted as failures).
        wall_s: Seconds spent.
        render_s: Part of it spent on drawing observations.
        policy_s: Part spent on the policy.
        wait_s: Part spent on nothing but waiting for physics.
        physics_s: Seconds spent on stepping worlds, beside the parts above.
    """

    episodes: int
    successes: int
    num_steps: int
    divergences: tuple[Divergence, ...]
    wall_s: float
    render_s: float
    policy_s: float
    wait_s: float
    physics_s: float


@dataclass
class _Half:
    """Slots that are stepped together, while the policy looks at the others.

    Attributes:
        slots: Neighbours.
        step: Chunk of the iteration that is being executed.
        context: What that chunk was chosen from.
        chunk: What was chosen.
        physics: Its execution.
        ended: [B] whether the chunk before ended an episode.
    """

    slots: slice
    step: int = 0
    context: Context | None = None
    chunk: ActionChunk | None = None
    physics: "Future[ChunkResult] | None" = None
    ended: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    @property
    def indices(self) -> np.ndarray:
        return np.arange(self.slots.start, self.slots.stop)


class Collector:
    """Fills a storage with the policy's own experience on one task.

    The slots are two halves: while the worlds of one half move, the policy looks at the other.
    Episodes run on across iterations. Initial states come in a random order of the training ids,
    each used once before any is used again.
    """

    def __init__(
        self, policy: VLAPolicy, sim: Simulation, task: str, *, config: CollectorConfig, seed: int
    ) -> None:
        """Start an episode in every slot.

        Args:
            policy: Acts by sampling; may change between iterations.
            sim: Its slots are reset.
            task: Name of the task.
            config: Size of an iteration.
            seed: Seed of the actions and of the order of initial states.
        """
        self._policy, self._sim, self._config = policy, sim, config
        self._task = sim.suite.task_index(task)
        self._rng = np.random.default_rng(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._queue: list[int] = []
        self._restart(np.arange(sim.num_slots))
        middle = (sim.num_slots + 1) // 2
        parts = (slice(0, middle), slice(middle, sim.num_slots))
        self._halves = [_Half(part) for part in parts if part.start < part.stop]
        self._worker = ThreadPoolExecutor(1)
        with torch.no_grad():
            context = policy.encode(sim.observe())
            chunk = policy.act(context, deterministic=True)
        self._seconds = _Seconds()
        self.storage = RolloutStorage(
            config.num_chunks, sim.num_slots, context=context, chunk=chunk
        )

    def close(self) -> None:
        """Stop the thread that steps the worlds; the simulation stays open."""
        self._worker.shutdown()

    @torch.no_grad()
    def collect(self) -> CollectionStatistics:
        """Run T chunks in every slot and leave them, finished, in `storage`."""
        started, sim, num_chunks = perf_counter(), self._sim, self._config.num_chunks
        self._seconds = _Seconds()
        self._next_values = torch.zeros(num_chunks, sim.num_slots)
        self._episodes = self._successes = self._num_steps = 0
        for step in range(num_chunks):
            for half in self._halves:
                self._settle(half)
                self._decide(half, step)
        for half in self._halves:
            self._settle(half)
            running = half.indices[~half.ended.numpy()]
            if len(running):
                self._next_values[-1, running] = self._value_of(running)
        self.storage.finish(self._next_values)
        divergences = tuple(sim.divergences)
        sim.divergences.clear()
        seconds = self._seconds
        return CollectionStatistics(
            self._episodes, self._successes, self._num_steps, divergences,
            wall_s=perf_counter() - started, render_s=seconds.render, policy_s=seconds.policy,
            wait_s=seconds.wait, physics_s=seconds.physics,
        )  # fmt: skip

    def _decide(self, half: _Half, step: int) -> None:
        """Look, choose the next chunk of a half and send it to the worlds."""
        half.context = self._encode(half.indices)
        with self._timed("policy"):
            half.chunk = self._policy.act(
                half.context, deterministic=False, generator=self._generator
            )
        if step:
            goes_on = half.indices[~half.ended.numpy()]
            self._next_values[step - 1, goes_on] = half.chunk.value[~half.ended]
        half.step = step
        horizon = self._policy.config.execution_horizon
        actions = half.chunk.actions[:, :horizon].numpy()
        half.physics = self._worker.submit(self._step_worlds, actions, half.indices)

    def _step_worlds(self, actions: np.ndarray, slots: np.ndarray) -> ChunkResult:
        with self._timed("physics"):
            return self._sim.step_chunk(actions, slots)

    def _settle(self, half: _Half) -> None:
        """Wait until the worlds of a half have moved, store what happened, refill its slots."""
        if half.physics is None or half.context is None or half.chunk is None:
            return
        with self._timed("wait"):
            result = half.physics.result()
        self.storage.add(
            half.step,
            half.context,
            half.chunk,
            reward=result.reward,
            terminated=result.terminated,
            truncated=result.truncated,
            slots=half.slots,
        )
        timed_out = half.indices[result.truncated]
        if len(timed_out):  # the episode's own last observation, before the refill
            self._next_values[half.step, timed_out] = self._value_of(timed_out)
        half.ended = torch.from_numpy(result.terminated | result.truncated)
        with self._timed("wait"):
            self._restart(half.indices[half.ended.numpy()])
        self._episodes += int(half.ended.sum())
        self._successes += int(result.success.sum())
        self._num_steps += int(result.num_steps.sum())
        half.physics = None

    def _encode(self, slots: np.ndarray) -> Context:
        with self._timed("render"):
            observation = self._sim.observe(slots)
        with self._timed("policy"):
            return self._policy.encode(observation)

    def _value_of(self, slots: np.ndarray) -> torch.Tensor:
        return self._policy.value(self._encode(slots))

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = perf_counter()
        yield
        setattr(self._seconds, part, getattr(self._seconds, part) + perf_counter() - started)

    def _restart(self, slots: np.ndarray) -> None:
        while len(self._queue) < len(slots):
            self._queue += self._rng.permutation(self._sim.suite.train_ids).tolist()
        ids, self._queue = self._queue[: len(slots)], self._queue[len(slots) :]
        self._sim.reset(slots, tasks=np.full(len(slots), self._task), state_ids=ids)


@dataclass
class _Seconds:
    """Where the time of an iteration went."""

    render: float = 0.0
    policy: float = 0.0
    wait: float = 0.0
    physics: float = 0.0
