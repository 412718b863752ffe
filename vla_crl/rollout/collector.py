"""On-policy collection: N slots of one task, refilled at once, T chunks an iteration."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from vla_crl.algos.protocols import Rollout
from vla_crl.errors import ConfigError
from vla_crl.models.context import Context, TokenizedObservation
from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.agents import executed
from vla_crl.rollout.lanes import check_lanes, lane_generator, run_lanes
from vla_crl.rollout.storage import RecomputedContexts, RolloutStorage
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.simulation import Simulation

_PARTS = ("render", "policy", "physics")


@dataclass(frozen=True, kw_only=True)
class CollectorConfig:
    """Size of one iteration."""

    num_envs: int = 64
    """Environments stepped together (N)."""
    num_chunks: int = 12
    """Action chunks per environment and iteration (T)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("num_envs", "num_chunks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"collector.{name} is {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True)
class CollectionStatistics:
    """What happened in one iteration.

    The seconds of the parts are means over the lanes; together they are `wall_s`.

    Attributes:
        episodes: Episodes that ended.
        successes: Those that succeeded.
        success: Fraction of successes among the latest episodes that have had the time to fail,
            at least one a slot: those begun an episode's greatest length ago or earlier. NaN until
            then. Among whatever ended lately successes would be too many, as they end early.
        num_steps: Control steps taken.
        divergences: Episodes ended because physics blew up (counted as failures).
        wall_s: Seconds spent.
        render_s: On drawing observations.
        policy_s: On the policy.
        physics_s: On stepping worlds and on beginning episodes.
        wait_s: On what remains: waiting for the slower lane, storing.
    """

    episodes: int
    successes: int
    success: float
    num_steps: int
    divergences: tuple[Divergence, ...]
    wall_s: float
    render_s: float
    policy_s: float
    physics_s: float
    wait_s: float


class Collector:
    """Fills a storage with the policy's own experience on one task.

    Every simulation is a lane, stepped by a thread of its own: while the worlds of one move, the
    policy looks at those of another. Episodes run on across iterations. Every lane has a share of
    the training ids and takes its initial states from them in random order, each once before any
    again.

    Attributes:
        storage: T chunks in each of N slots, written again by every `collect`.
        rollout: The same for an update, with contexts as it needs them.
    """

    def __init__(
        self,
        policy: VLAPolicy,
        sims: Sequence[Simulation],
        task: str,
        *,
        num_chunks: int,
        seed: int,
        recompute_contexts: bool = False,
    ) -> None:
        """Start an episode in every slot.

        Args:
            policy: Acts by sampling; may change between iterations.
            sims: Of the same suite; their slots are reset.
            task: Name of the task.
            num_chunks: T.
            seed: Seed of the actions and of the order of initial states.
            recompute_contexts: Keep observations instead of contexts, so that an update computes
                these with gradients: for a policy whose backbone learns from reward.

        Raises:
            ConfigError: No chunk, no simulation, one twice, or simulations of several suites.
        """
        if num_chunks < 1:
            raise ConfigError(f"Collector: num_chunks is {num_chunks}, expected at least 1")
        check_lanes("Collector", sims)
        self._num_chunks = num_chunks
        self._lanes = []
        num_slots = 0
        for index, sim in enumerate(sims):
            lane = _Lane(
                policy, sim, task,
                first_slot=num_slots,
                state_ids=sim.suite.train_ids[index :: len(sims)] or sim.suite.train_ids,
                seed=(seed, index),
            )  # fmt: skip
            self._lanes.append(lane)
            num_slots += sim.num_slots
        self._max_chunks = -(-sims[0].suite.horizon // policy.config.execution_horizon)
        with torch.no_grad():
            seen = policy.tokenize(sims[0].observe())
            context = policy.encode(seen)
            chunk = policy.act(context, deterministic=True)
        kept = seen if recompute_contexts else context
        self.storage = RolloutStorage(num_chunks, num_slots, context=kept, chunk=chunk)
        self.rollout: Rollout = self.storage
        if recompute_contexts:
            self.rollout = RecomputedContexts(self.storage, policy.encode)

    def collect(self) -> CollectionStatistics:
        """Run T chunks in every slot and leave them, finished, in `storage` and `rollout`."""
        started, storage, lanes = perf_counter(), self.storage, self._lanes
        next_values = torch.zeros(self._num_chunks, storage.num_slots)
        recompute = self.rollout is not storage
        run_lanes(lambda lane: lane.collect(storage, next_values, recompute), lanes)
        storage.finish(next_values)
        wall_s = perf_counter() - started
        seconds = {part: sum(lane.seconds[part] for lane in lanes) / len(lanes) for part in _PARTS}
        return CollectionStatistics(
            episodes=sum(lane.episodes for lane in lanes),
            successes=sum(lane.successes for lane in lanes),
            success=self._recent_success(),
            num_steps=sum(lane.num_steps for lane in lanes),
            divergences=tuple(event for lane in lanes for event in lane.take_divergences()),
            wall_s=wall_s,
            render_s=seconds["render"],
            policy_s=seconds["policy"],
            physics_s=seconds["physics"],
            wait_s=wall_s - sum(seconds.values()),
        )

    def _recent_success(self) -> float:
        """Return the success of the latest episodes that must be over by now."""
        outcomes = [outcome for lane in self._lanes for outcome in lane.outcomes]
        latest_start = self._lanes[0].clock - self._max_chunks
        begun = sorted(start for start, _ in outcomes if start <= latest_start)
        if len(begun) < self.storage.num_slots:
            return float("nan")
        first, last = begun[-self.storage.num_slots], begun[-1]
        for lane in self._lanes:
            lane.outcomes = [outcome for outcome in lane.outcomes if outcome[0] >= first]
        latest = [success for start, success in outcomes if first <= start <= last]
        return sum(latest) / len(latest)


class _Lane:
    """A simulation and its columns of the storage.

    Attributes:
        episodes: Of the last iteration, as are the other numbers.
        successes: See `CollectionStatistics`.
        num_steps: Likewise.
        seconds: By part.
        clock: Chunks so far, of all iterations.
        outcomes: Of recent episodes: number of the chunk with which one began, success.
    """

    def __init__(
        self, policy: VLAPolicy, sim: Simulation, task: str, *, first_slot: int,
        state_ids: Sequence[int], seed: tuple[int, int],
    ) -> None:  # fmt: skip
        self._policy, self._sim = policy, sim
        self._task = sim.suite.task_index(task)
        self._columns = slice(first_slot, first_slot + sim.num_slots)
        self._state_ids, self._queue = state_ids, []
        self._rng = np.random.default_rng(seed)
        self._generator = lane_generator(*seed)
        self.clock, self._begun = 0, np.zeros(sim.num_slots, np.int64)
        self.outcomes: list[tuple[int, bool]] = []
        self._clear()
        self._restart(np.arange(sim.num_slots))

    def collect(
        self, storage: RolloutStorage, next_values: torch.Tensor, keep_observations: bool = False
    ) -> Iterator[None]:
        """Fill the lane's columns of the storage and of `next_values` [T, N].

        `keep_observations` puts what was seen in the place of contexts.
        """
        self._clear()
        next_values = next_values[:, self._columns]
        ended = torch.zeros(self._sim.num_slots, dtype=torch.bool)
        for step in range(storage.num_steps):
            seen, context = self._look()
            with self._timed("policy"):
                chunk = self._policy.act(context, deterministic=False, generator=self._generator)
            if step:
                next_values[step - 1, ~ended] = chunk.value[~ended]
            actions = executed(self._policy, chunk)
            with self._timed("physics"):
                result = self._sim.step_chunk(actions)
            storage.add(
                step,
                seen if keep_observations else context,
                chunk,
                reward=result.reward,
                terminated=result.terminated,
                truncated=result.truncated,
                slots=self._columns,
            )
            # The value of the episode's own last observation, before the refill.
            self._evaluate(np.flatnonzero(result.truncated), next_values[step])
            ended = torch.from_numpy(result.terminated | result.truncated)
            over = np.flatnonzero(ended)
            begun, success = self._begun[over].tolist(), result.success[over].tolist()
            self.outcomes += zip(begun, success, strict=True)
            self.clock += 1
            self._restart(over)
            self.episodes += len(over)
            self.successes += int(result.success.sum())
            self.num_steps += int(result.num_steps.sum())
            yield
        self._evaluate(np.flatnonzero(~ended), next_values[-1])

    def take_divergences(self) -> list[Divergence]:
        """Return what blew up, and forget it."""
        events = [*self._sim.divergences]
        self._sim.divergences.clear()
        return events

    def _clear(self) -> None:
        self.episodes = self.successes = self.num_steps = 0
        self.seconds: dict[str, float] = dict.fromkeys(_PARTS, 0.0)

    def _look(self, slots: np.ndarray | None = None) -> tuple[TokenizedObservation, Context]:
        with self._timed("render"):
            observation = self._sim.observe(slots)
        with self._timed("policy"):
            seen = self._policy.tokenize(observation)
            return seen, self._policy.encode(seen)

    def _evaluate(self, slots: np.ndarray, values: torch.Tensor) -> None:
        """Put the values of what `slots` show now into `values` [N]."""
        if len(slots):
            values[slots] = self._policy.value(self._look(slots)[1])

    def _restart(self, slots: np.ndarray) -> None:
        while len(self._queue) < len(slots):
            self._queue += self._rng.permutation(self._state_ids).tolist()
        ids, self._queue = self._queue[: len(slots)], self._queue[len(slots) :]
        with self._timed("physics"):
            self._sim.reset(slots, tasks=np.full(len(slots), self._task), state_ids=ids)
        self._begun[slots] = self.clock

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = perf_counter()
        yield
        self.seconds[part] += perf_counter() - started
