"""On-policy collection: N slots of one task, refilled at once, T chunks an iteration."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from vla_crl.errors import ConfigError
from vla_crl.models.context import Context
from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.storage import RolloutStorage
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.vector_sim import VectorSim

PARTS = ("render", "policy", "physics")


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
        physics_s: Part spent on stepping and resetting worlds.
    """

    episodes: int
    successes: int
    num_steps: int
    divergences: tuple[Divergence, ...]
    wall_s: float
    render_s: float
    policy_s: float
    physics_s: float


class Collector:
    """Fills a storage with the policy's own experience on one task.

    Episodes run on across iterations. Initial states come in a random order of the training ids,
    each used once before any is used again.
    """

    def __init__(
        self, policy: VLAPolicy, sim: VectorSim, task: str, *, config: CollectorConfig, seed: int
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
        with torch.no_grad():
            context = policy.encode(sim.observe())
            chunk = policy.act(context, deterministic=True)
        self._seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.storage = RolloutStorage(
            config.num_chunks, sim.num_slots, context=context, chunk=chunk
        )

    def collect(self) -> CollectionStatistics:
        """Run T chunks in every slot and leave them, finished, in `storage`."""
        started, policy, sim = perf_counter(), self._policy, self._sim
        self._seconds = dict.fromkeys(PARTS, 0.0)
        horizon, num_chunks = policy.config.execution_horizon, self._config.num_chunks
        episodes = successes = num_steps = 0
        next_values = torch.zeros(num_chunks, sim.num_slots)
        ended = torch.zeros(sim.num_slots, dtype=torch.bool)
        with torch.no_grad():
            for step in range(num_chunks):
                context = self._encode()
                with self._timed("policy"):
                    chunk = policy.act(context, deterministic=False, generator=self._generator)
                if step:
                    next_values[step - 1, ~ended] = chunk.value[~ended]
                with self._timed("physics"):
                    result = sim.step_chunk(chunk.actions[:, :horizon].numpy())
                self.storage.add(
                    step,
                    context,
                    chunk,
                    reward=result.reward,
                    terminated=result.terminated,
                    truncated=result.truncated,
                )
                timed_out = np.flatnonzero(result.truncated)
                if len(timed_out):  # the episode's own last observation, before the refill
                    next_values[step, timed_out] = self._value_of(timed_out)
                ended = torch.from_numpy(result.terminated | result.truncated)
                with self._timed("physics"):
                    self._restart(np.flatnonzero(ended))
                episodes += int(ended.sum())
                successes += int(result.success.sum())
                num_steps += int(result.num_steps.sum())
            running = np.flatnonzero(~ended)
            if len(running):
                next_values[-1, running] = self._value_of(running)
        self.storage.finish(next_values)
        divergences = tuple(sim.divergences)
        sim.divergences.clear()
        wall_s = perf_counter() - started
        parts = {f"{part}_s": seconds for part, seconds in self._seconds.items()}
        return CollectionStatistics(
            episodes, successes, num_steps, divergences, wall_s=wall_s, **parts
        )

    def _encode(self, slots: np.ndarray | None = None) -> Context:
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
        self._seconds[part] += perf_counter() - started

    def _restart(self, slots: np.ndarray) -> None:
        while len(self._queue) < len(slots):
            self._queue += self._rng.permutation(self._sim.suite.train_ids).tolist()
        ids, self._queue = self._queue[: len(slots)], self._queue[len(slots) :]
        self._sim.reset(slots, tasks=np.full(len(slots), self._task), state_ids=ids)
