"""One stage of a run: training on its task, and the state of it that can be stored."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from vla_crl.algos.learner import Learner, LearnerConfig
from vla_crl.algos.learner_checks import groups_of
from vla_crl.algos.learners import find_learner
from vla_crl.algos.protocols import ParamGroup, Rollout
from vla_crl.config import Count, Settings, from_mapping, to_mapping
from vla_crl.continual.experience import Experience, ExpertEpisodes, OwnEpisodes, contexts_of
from vla_crl.continual.generations import State
from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.method_checks import (
    method_groups,
    method_metrics,
    method_state,
    used_too_early,
)
from vla_crl.continual.method_stage import Stage
from vla_crl.continual.random_state import load_rng_state, rng_state
from vla_crl.continual.recipe import TrainConfig
from vla_crl.continual.reference import make_reference
from vla_crl.errors import ConfigError
from vla_crl.files.state_dicts import join_states, part_of
from vla_crl.models.adapters import load_trained_state_dict, trained_state_dict
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.routes import BankRecord
from vla_crl.rollout.collector import CollectionStatistics
from vla_crl.rollout.demonstrations import Demonstrations
from vla_crl.runs.records import Number
from vla_crl.sim.simulation import Simulation
from vla_crl.sim.task_suite import TaskSuite

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StageRecord(Settings):
    """What of a stage's state is no tensor."""

    stage: Count
    tasks: tuple[str, ...]
    iteration: Number
    """The last that is done."""
    episodes: Number
    """Of training, so far."""
    wall_s: Annotated[float, Interval(ge=0)]
    is_closed: bool
    adapters: BankRecord
    """All of the policy's adapters but their numbers."""


@dataclass(frozen=True, kw_only=True)
class RunShared:
    """What methods may use in every stage of a run; see `Stage`."""

    num_stages: int
    demonstrations: Callable[[str, int], Demonstrations]
    folder: Path


class StageTraining:
    """Training on the tasks of a stage; between two iterations it can be stored.

    Attributes:
        number: From 1 on.
        tasks: Names.
        budget: Episodes of training.
        episodes: Of these, so far.
        wall_s: Seconds that the run has taken so far.
        is_closed: Whether `close` was called, so that nothing is left to be trained.
    """

    def __init__(
        self,
        config: TrainConfig,
        policy: VLAPolicy,
        method: ContinualMethod,
        sims: Sequence[Simulation],
        *,
        number: int,
        tasks: tuple[str, ...],
        shared: RunShared,
        wall_s: float,
    ) -> None:
        """Let the method prepare, and begin an episode in every slot.

        Args:
            config: The recipe.
            policy: As the stage before left it.
            method: Likewise.
            sims: Worlds of training.
            number: Of the stage.
            tasks: To be trained.
            shared: What the method may use of the run.
            wall_s: Seconds of the run until now.
        """
        self.number, self.tasks = number, tasks
        self.budget = config.episodes_per_task * len(tasks)
        self.episodes, self.wall_s, self.is_closed = 0, wall_s, False
        self._config, self._policy, self._method = config, policy, method
        seed, suite = stage_seed(config.seed, number), sims[0].suite
        torch.manual_seed(seed)  # for what methods draw
        self._rng = np.random.default_rng([config.seed, number])
        draws = torch.Generator().manual_seed(int(self._rng.integers(2**63)))
        self._stage = Stage(
            number=number,
            num_stages=shared.num_stages,
            tasks=tasks,
            suite=suite,
            collect=self._collect_fresh,
            train=self._train_more,
            demonstrations=shared.demonstrations,
            generator=draws,
            rng=self._rng,
            folder=shared.folder,
        )
        self._experience: Experience | None = None
        method.before_task(policy, self._stage)
        self._sims, self._tasks = sims, [suite.task_index(task) for task in tasks]
        learner_class = find_learner(config.learner.kind)
        groups = groups_of(learner_class, policy, config.learner)
        groups = method_groups(method, config.method, policy, [*groups])
        self._learner = make_learner(config, policy, suite, groups)
        if learner_class.data == "demonstrations":
            self._experience = ExpertEpisodes(policy, sims, self._tasks, seed)
        else:
            self._experience = self._own_episodes()
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def iteration(self) -> int:
        """How many there were."""
        return self._learner.iteration

    @property
    def is_spent(self) -> bool:
        """Whether the budget of episodes is used up."""
        return self.episodes >= self.budget

    def iterate(self) -> tuple[CollectionStatistics, dict[str, Any]]:
        """Collect and update once; return what happened, and the line of metrics.jsonl on it."""
        statistics, data = self._begun.gather(self._learner)
        started = perf_counter()
        metrics = self._learner.update(data, self._method, self._generator)
        update_s = perf_counter() - started
        self.episodes += statistics.episodes
        self.wall_s += statistics.wall_s + update_s
        row = {
            "stage": self.number,
            "task": " + ".join(self.tasks),
            "iteration": self.iteration,
            "episodes": self.episodes,
            "success": statistics.success,
            "return": statistics.success,
            "diverged": len(statistics.divergences),
            **metrics,
            "steps_per_s": statistics.num_steps / (statistics.wall_s + update_s),
            "collect_s": statistics.wall_s,
            "render_s": statistics.render_s,
            "policy_s": statistics.policy_s,
            "wait_s": statistics.wait_s,
            "physics_s": statistics.physics_s,
            "update_s": update_s,
            "wall_s": self.wall_s,
        }
        return statistics, {**row, **method_metrics(self._method, self._config.method, row)}

    def close(self) -> None:
        """Let the method close the stage.

        Raises:
            ConfigError: Nothing but the value head was trained.
        """
        learner = self._learner
        if not learner.optimizer.has_trained_policy:
            if warmup := learner.num_warmup_iterations(learner.config):
                raise ConfigError(
                    f"stage {self.number}: its {self.episodes} episodes were used up by "
                    f"{self.iteration} iterations, which train the value head alone "
                    f"(learner.value_warmup_iterations = {warmup}); raise episodes_per_task"
                )
            logger.warning(
                "stage %d: the policy is as it was, as the %s of none of its %d episodes taught "
                "anything. A policy that never succeeds cannot be improved so: begin with a better "
                "one, or learn by PPO or SFT",
                self.number, learner.name, self.episodes,
            )  # fmt: skip
        self._method.after_task(self._policy, self._stage)
        self.is_closed = True

    def state(self) -> State:
        """Return all that the stage's future depends on; see `load_state`.

        Raises:
            ConfigError: Backend or method cannot be stored.
        """
        parts: dict[str, Mapping[str, Tensor]] = {
            "policy": trained_state_dict(self._policy),
            "method": method_state(self._method, self._config.method),
            "global": {"generator": torch.get_rng_state()},
        }
        if not self.is_closed:
            parts |= {
                "learner": self._learner.state_dict(),
                "minibatches": {"generator": self._generator.get_state()},
                "experience": self._begun.state_dict(),
                "stage": {
                    "generator": self._stage.generator.get_state(),
                    "rng": rng_state(self._rng),
                },
            }
        record = StageRecord(
            stage=self.number,
            tasks=self.tasks,
            iteration=self.iteration,
            episodes=self.episodes,
            wall_s=self.wall_s,
            is_closed=self.is_closed,
            adapters=self._policy.adapters.record(),
        )
        return State(to_mapping(record), join_states(parts))

    def load_state(self, state: State) -> None:
        """Go on from where another process was in this stage.

        Raises:
            ConfigError: It is that of adapters that the policy cannot have.
            SpecError: It is that of other weights or worlds.
            CheckpointError: Other parameters are trained.
        """
        record, tensors = state.record, state.tensors
        adapters = from_mapping(BankRecord, record["adapters"], "adapters")
        if self._policy.adapters.record() != adapters:
            trained = [n for n, p in self._policy.named_parameters() if p.requires_grad]
            self._policy.adapters.arrange(adapters)
            for name, parameter in self._policy.named_parameters():
                parameter.requires_grad_(name in trained)
        load_trained_state_dict(self._policy, part_of(tensors, "policy"))
        self._method.load_state_dict(part_of(tensors, "method"))
        self.episodes, self.wall_s = record["episodes"], record["wall_s"]
        self.is_closed = record["is_closed"]
        if not self.is_closed:
            self._learner.load_state_dict(part_of(tensors, "learner"))
            self._generator.set_state(tensors["minibatches/generator"])
            self._begun.load_state_dict(part_of(tensors, "experience"))
            self._stage.generator.set_state(tensors["stage/generator"])
            load_rng_state(self._rng, tensors["stage/rng"])
        torch.set_rng_state(tensors["global/generator"])

    @property
    def _begun(self) -> Experience:
        """What the learner learns of, once there is something."""
        if self._experience is None:
            raise used_too_early(self._config.method)
        return self._experience

    def _collect_fresh(self) -> Rollout:
        own = self._begun
        if not isinstance(own, OwnEpisodes):
            own = self._own_episodes()
        own.collector.collect()
        self._learner.prepare(own.collector.rollout, self._generator)
        return own.collector.rollout

    def _own_episodes(self) -> OwnEpisodes:
        seed, keeps_seen = (
            stage_seed(self._config.seed, self.number),
            self._method.needs_observations,
        )
        return OwnEpisodes(
            self._config, self._policy, self._sims, self._tasks, seed, keeps_seen=keeps_seen
        )

    def _train_more(self, num_episodes: int) -> None:
        done = 0
        while done < num_episodes:
            statistics, data = self._begun.gather(self._learner)
            self._learner.update(data, self._method, self._generator)
            done += statistics.episodes


def make_learner(
    config: TrainConfig,
    policy: VLAPolicy,
    suite: TaskSuite,
    groups: Sequence[ParamGroup] | None = None,
) -> Learner:
    """Build the recipe's learner, for the parameters that are trainable now.

    Args:
        config: The recipe.
        policy: What learns.
        suite: On which.
        groups: Of parameters; by default the learner's own.

    Raises:
        ConfigError: There is nothing to train, or the reference does not fit the policy.
        CheckpointError: The reference is missing or damaged.
    """
    learner_class, reference = find_learner(config.learner.kind), None
    if which := learner_class.reference_of(config.learner):
        reference = make_reference(
            which,
            policy,
            config.compute,
            contexts_of(config, suite, policy).contexts,
            tasks={suite.task_index(task): task for task in config.stream(suite).train_tasks},
            setting=_setting_of(config.learner, which),
        )
    return learner_class(policy, config.learner, groups, reference=reference)


def _setting_of(config: LearnerConfig, value: str) -> str:
    """Return the setting of a learner that has a value, as a recipe calls it."""
    found = (field.name for field in fields(config) if getattr(config, field.name) == value)
    return f"learner.{next(found, 'reference')}"


def stage_seed(seed: int, stage: int) -> int:
    """Give every stage its own random stream, so that a resumed stage repeats itself."""
    return 1_000 * seed + stage
