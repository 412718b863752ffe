"""What a stage's learner learns of: rollouts of the policy, or demonstrations of an expert."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import nan
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_crl.algos.learner import Learner
from vla_crl.algos.learner_checks import group_size_of
from vla_crl.algos.learners import find_learner
from vla_crl.continual.recipe import TrainConfig
from vla_crl.errors import ConfigError
from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.collector import CollectionStatistics, Collector
from vla_crl.rollout.contexts import ContextPlan, plan_contexts
from vla_crl.rollout.demonstrations import record_expert
from vla_crl.rollout.episodes import EpisodeSource, Groups, ShuffledStates, shuffled_lanes
from vla_crl.rollout.labels import LabelledSteps
from vla_crl.rollout.outcomes import Outcomes
from vla_crl.sim.simulation import Simulation
from vla_crl.sim.task_suite import TaskSuite


def chunks_of(config: TrainConfig, suite: TaskSuite, policy: VLAPolicy) -> int:
    """Return how many chunks a slot has in an iteration: as the recipe says, or a whole episode."""
    if find_learner(config.learner.kind).whole_episodes:
        return -(-suite.horizon // policy.config.execution_horizon)
    return config.collector.num_chunks


def contexts_of(config: TrainConfig, suite: TaskSuite, policy: VLAPolicy) -> ContextPlan:
    """Decide how updates get their contexts, of what is to be trained now."""
    settings = config.collector
    num_rows = settings.num_envs * chunks_of(config, suite, policy)
    return plan_contexts(policy, num_rows, settings.contexts, settings.max_stored_gib)


class Experience(ABC):
    """Gathers the data of one iteration after the other."""

    @abstractmethod
    def gather(self, learner: Learner) -> tuple[CollectionStatistics, Any]:
        """Return what happened, and the data for the learner."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Return what `load_state_dict` needs to go on between two iterations.

        Raises:
            ConfigError: The backend cannot store its state.
        """

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            SpecError: It is that of other worlds.
        """


class OwnEpisodes(Experience):
    """The policy's own."""

    def __init__(
        self,
        config: TrainConfig,
        policy: VLAPolicy,
        sims: Sequence[Simulation],
        tasks: Sequence[int],
        seed: int,
        *,
        keeps_seen: bool = False,
    ) -> None:
        """Begin an episode in every slot, unless the learner wants whole ones.

        Args:
            config: The recipe.
            policy: With `requires_grad` as it will be trained.
            sims: Worlds of training, one a lane.
            tasks: Indices of what is trained.
            seed: Of the stage.
            keeps_seen: Keep observations beside stored contexts, too.

        Raises:
            ConfigError: The size of groups does not divide the worlds of a lane.
        """
        suite, learner_class = sims[0].suite, find_learner(config.learner.kind)
        sources: Sequence[EpisodeSource] = shuffled_lanes(suite, tasks, len(sims), seed)
        if (size := group_size_of(learner_class, config.learner)) > 1:
            check_group_size(size, [sim.num_slots for sim in sims])
            sources = [Groups(source, size) for source in sources]
        self.collector = Collector(
            policy,
            sims,
            sources,
            num_chunks=chunks_of(config, suite, policy),
            seed=seed,
            contexts=contexts_of(config, suite, policy).contexts,
            whole_episodes=learner_class.whole_episodes,
            keeps_seen=keeps_seen,
        )

    def gather(self, learner: Learner) -> tuple[CollectionStatistics, Any]:
        """Collect, and play anew what the learner cannot use."""
        statistics, rollout = self.collector.collect(), self.collector.rollout
        times = 0
        while len(slots := learner.unused_slots(rollout, times)):
            statistics = statistics.joined(self.collector.play_again(slots))
            times += 1
        return statistics, rollout

    def state_dict(self) -> dict[str, Tensor]:
        """Return that of the collector."""
        return self.collector.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take it over."""
        self.collector.load_state_dict(state)


class ExpertEpisodes(Experience):
    """Those of the suite's scripted expert, on states of training, one a world and iteration."""

    def __init__(
        self, policy: VLAPolicy, sims: Sequence[Simulation], tasks: Sequence[int], seed: int
    ) -> None:
        """Begin at the first episode.

        Args:
            policy: Which is to learn of them.
            sims: Worlds of training.
            tasks: Indices of what is trained.
            seed: Of the stage.
        """
        self._policy, self._sims, self._seed = policy, sims, seed
        self._source = ShuffledStates(tasks, sims[0].suite.train_ids, seed)

    def gather(self, learner: Learner) -> tuple[CollectionStatistics, Any]:
        """Record the expert."""
        started, first = perf_counter(), self._source.num_drawn
        drawn = self._source.next(sum(sim.num_slots for sim in self._sims))
        demonstrations = record_expert(
            self._sims, drawn.task.numpy(), drawn.state_id.numpy(), seed=[self._seed, first]
        )
        ends = np.unique(demonstrations.episode_end)
        number = torch.arange(first, first + len(drawn))
        outcomes = Outcomes(
            begun=torch.zeros_like(number),
            episode=number,
            task=drawn.task,
            state_id=drawn.state_id,
            group=number,
            num_steps=torch.from_numpy(np.diff(ends, prepend=0)),
            success=torch.from_numpy(demonstrations.episode_success),
        )
        divergences = tuple(event for sim in self._sims for event in sim.divergences)
        for sim in self._sims:
            sim.divergences.clear()
        wall_s = perf_counter() - started
        statistics = CollectionStatistics(
            outcomes=outcomes,
            success=nan,  # the policy has not acted
            num_steps=len(demonstrations),
            divergences=divergences,
            wall_s=wall_s,
            render_s=0.0,
            policy_s=0.0,
            physics_s=wall_s,
            wait_s=0.0,
        )
        return statistics, LabelledSteps(self._policy, demonstrations)

    def state_dict(self) -> dict[str, Tensor]:
        """Return how many episodes there were: each is made of its number."""
        return {"num_drawn": torch.tensor(self._source.num_drawn)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take it over."""
        self._source.num_drawn = int(state["num_drawn"])


def check_group_size(size: int, num_slots: Sequence[int]) -> None:
    """Check that no group is torn between lanes or iterations.

    Args:
        size: Episodes of a group.
        num_slots: Worlds of each lane.

    Raises:
        ConfigError: The size does not divide one of them.
    """
    if any(num % size for num in num_slots):
        told = " and ".join(map(str, num_slots))
        fitting = size * len(num_slots) * max(1, round(sum(num_slots) / size / len(num_slots)))
        raise ConfigError(
            f"learner.group_size = {size} does not divide collector.num_envs = {sum(num_slots)}, "
            f"of which the lanes have {told}; choose collector.num_envs = {fitting}, or another "
            "group size"
        )
