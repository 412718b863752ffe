"""On-policy collection: N slots, T chunks an iteration."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from time import perf_counter
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from vla_crl.config import Settings, Size
from vla_crl.errors import ConfigError
from vla_crl.files.state_dicts import join_states, part_of
from vla_crl.models.adapters import adapters_merged
from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.collector_lane import PARTS, CollectorLane
from vla_crl.rollout.contexts import Contexts
from vla_crl.rollout.episodes import EpisodeSource
from vla_crl.rollout.lanes import check_lanes, run_lanes
from vla_crl.rollout.outcomes import Outcomes, RecentSuccess
from vla_crl.rollout.storage import RolloutStorage, Step
from vla_crl.sim.divergence import Divergence
from vla_crl.sim.simulation import Simulation


@dataclass(frozen=True, kw_only=True)
class CollectorConfig(Settings):
    """Size of one iteration."""

    num_envs: Size = 64
    """Environments stepped together (N)."""
    num_chunks: Size = 12
    """Action chunks per environment and iteration (T). Learners of whole episodes take as many as
    the longest episode has."""
    contexts: Contexts | None = None
    """What the update gets of the backbone: the contexts "stored" while collecting, or fresh ones
    in "every_epoch" from stored observations, which takes far less memory and more time. None: in
    every epoch where the backbone is trained, which is the only way then, or where stored contexts
    would take more than `max_stored_gib`; else stored."""
    max_stored_gib: Annotated[float, Interval(ge=0, le=1e6)] = 8.0
    """Memory that stored contexts may take unasked, GiB."""


@dataclass(frozen=True)
class CollectionStatistics:
    """What happened in one iteration.

    The seconds of the parts are means over the lanes; together they are `wall_s`.

    Attributes:
        outcomes: Episodes that ended.
        success: Of `RecentSuccess`, or of all of them where episodes are whole.
        num_steps: Control steps taken.
        divergences: Episodes ended because physics blew up (counted as failures).
        wall_s: Seconds spent.
        render_s: On drawing observations.
        policy_s: On the policy.
        physics_s: On stepping worlds and on beginning episodes.
        wait_s: On what remains: waiting for the slower lane, storing.
    """

    outcomes: Outcomes
    success: float
    num_steps: int
    divergences: tuple[Divergence, ...]
    wall_s: float
    render_s: float
    policy_s: float
    physics_s: float
    wait_s: float

    @property
    def episodes(self) -> int:
        """How many ended."""
        return len(self.outcomes)

    def joined(self, more: "CollectionStatistics") -> "CollectionStatistics":
        """Return what happened in both; the success is that of all outcomes."""
        outcomes = Outcomes.cat([self.outcomes, more.outcomes])
        clock = {field.name: getattr(self, field.name) + getattr(more, field.name)
                 for field in fields(self) if field.name.endswith("_s")}  # fmt: skip
        return replace(
            self,
            outcomes=outcomes,
            success=float(outcomes.success.float().mean()),
            num_steps=self.num_steps + more.num_steps,
            divergences=self.divergences + more.divergences,
            **clock,
        )


class Collector:
    """Fills a rollout with the policy's own experience.

    Every simulation is a lane, stepped by a thread of its own: while the worlds of one move, the
    policy looks at those of another. A slot whose episode has ended gets the next one of its lane's
    source at once, and episodes run on across iterations; or, with `whole_episodes`, every slot
    plays one episode an iteration and then rests.

    Attributes:
        rollout: At most T chunks in each of N slots, written again by every `collect`.
    """

    def __init__(
        self,
        policy: VLAPolicy,
        sims: Sequence[Simulation],
        sources: Sequence[EpisodeSource],
        *,
        num_chunks: int,
        seed: int,
        contexts: Contexts = "stored",
        keeps_seen: bool = False,
        whole_episodes: bool = False,
    ) -> None:
        """Start an episode in every slot.

        Args:
            policy: Acts by sampling; may change between iterations.
            sims: Of the same suite; their slots are reset.
            sources: What is played, one for every simulation.
            num_chunks: T.
            seed: Seed of the actions.
            contexts: "stored", or "every_epoch" for a policy whose backbone learns from reward.
            keeps_seen: Keep observations beside stored contexts, too.
            whole_episodes: See above.

        Raises:
            ConfigError: No chunk, or too few for an episode that is to be whole; no simulation, one
                twice, or simulations of several suites; another number of sources.
        """
        check_lanes("Collector", sims)
        if len(sources) != len(sims):
            raise ConfigError(f"Collector: {len(sources)} sources for {len(sims)} simulations")
        max_chunks = -(-sims[0].suite.horizon // policy.config.execution_horizon)
        least = max_chunks if whole_episodes else 1
        if num_chunks < least:
            whole = f", which the longest episode of '{sims[0].suite.name}' takes"
            raise ConfigError(
                f"Collector: num_chunks is {num_chunks}, expected at least {least}"
                f"{whole if whole_episodes else ''}"
            )
        self._policy, self._whole_episodes = policy, whole_episodes
        self._lanes, num_slots = [], 0
        for index, (sim, source) in enumerate(zip(sims, sources, strict=True)):
            lane = CollectorLane(
                policy,
                sim,
                source,
                first_slot=num_slots,
                place=(index, len(sims)),
                seed=seed,
                keeps_seen=keeps_seen or contexts == "every_epoch",
                keeps_context=contexts == "stored",
            )
            self._lanes.append(lane)
            num_slots += sim.num_slots
        if not whole_episodes:
            self.restart()
        encode = policy.encode if contexts == "every_epoch" else None
        example = _example_step(policy, contexts, keeps_seen=keeps_seen)
        self.rollout = RolloutStorage(num_chunks, num_slots, example, encode=encode)
        self._recent = RecentSuccess(num_slots, max_chunks)

    def restart(self) -> None:
        """Begin new episodes in all slots; those that run there are given up."""
        for lane in self._lanes:
            lane.begin_all()

    def collect(self) -> CollectionStatistics:
        """Play, and leave what happened, finished, in `rollout`."""
        rollout = self.rollout
        if self._whole_episodes:
            return self.play_again(torch.arange(rollout.num_slots))
        next_values = torch.zeros_like(rollout.next_values)
        statistics = self._run(lambda lane: lane.collect(rollout, next_values), next_values)
        success = self._recent.update(statistics.outcomes, self._lanes[0].clock)
        return replace(statistics, success=success)

    def play_again(self, slots: Tensor) -> CollectionStatistics:
        """Play the next whole episodes in some slots; what others have in `rollout` stays.

        Args:
            slots: [S] int64 numbers, ascending. Where sources have groups: of whole groups.
        """
        rollout, chosen = self.rollout, slots.numpy()
        next_values = rollout.next_values.clone()
        next_values[:, slots] = 0.0
        return self._run(lambda lane: lane.collect_whole(rollout, next_values, chosen), next_values)

    def _run(
        self, work: Callable[[CollectorLane], Iterator[None]], next_values: Tensor
    ) -> CollectionStatistics:
        """Let all lanes work, and say what happened; the success is that of all outcomes."""
        started, lanes = perf_counter(), self._lanes
        with adapters_merged(self._policy):
            run_lanes(work, lanes)
        self.rollout.finish(next_values)
        wall_s = perf_counter() - started
        seconds = {part: sum(lane.seconds[part] for lane in lanes) / len(lanes) for part in PARTS}
        outcomes = Outcomes.cat([lane.outcomes for lane in lanes])
        return CollectionStatistics(
            outcomes=outcomes,
            success=float(outcomes.success.float().mean()),
            num_steps=sum(lane.num_steps for lane in lanes),
            divergences=tuple(event for lane in lanes for event in lane.take_divergences()),
            wall_s=wall_s,
            render_s=seconds["render"],
            policy_s=seconds["policy"],
            physics_s=seconds["physics"],
            wait_s=wall_s - sum(seconds.values()),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return what `load_state_dict` needs to go on between two iterations, the policy excepted.

        Raises:
            ConfigError: The backend cannot store its state.
        """
        lanes = {f"lane{index}": lane.state_dict() for index, lane in enumerate(self._lanes)}
        return join_states(lanes | {"recent": self._recent.outcomes.flatten()})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` of a collector made in the same way returned.

        Raises:
            SpecError: It is that of other worlds.
        """
        for index, lane in enumerate(self._lanes):
            lane.load_state_dict(part_of(state, f"lane{index}"))
        self._recent.outcomes = Outcomes.none().unflatten(part_of(state, "recent"))


@torch.no_grad()
def _example_step(policy: VLAPolicy, contexts: Contexts, *, keeps_seen: bool) -> Step:
    """Return a step of one robot, as it is stored."""
    seen = policy.tokenize(policy.example_observation())
    context = policy.encode(seen)
    chunk = policy.act(context, deterministic=True, generator=torch.Generator())
    number = chunk.value
    flag, whole = number.new_zeros(1, dtype=torch.bool), number.new_zeros(1, dtype=torch.int64)
    return Step(
        seen=seen if keeps_seen or contexts == "every_epoch" else None,
        context=context if contexts == "stored" else None,
        trace=chunk.trace,
        actions=chunk.actions,
        log_probs=chunk.log_prob,
        values=number,
        reward=number,
        terminated=flag,
        truncated=flag,
        success=flag,
        episode_return=number,
        task=whole,
        state_id=whole,
        episode=whole,
        group=whole,
    )
