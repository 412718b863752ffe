"""What a run takes, estimated before it begins."""

from dataclasses import dataclass

from vla_crl.algos.learners import find_learner
from vla_crl.continual.experience import chunks_of
from vla_crl.continual.recipe import TrainConfig
from vla_crl.continual.stream import TaskStream
from vla_crl.errors import ConfigError
from vla_crl.hardware import available_memory, require_memory
from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.contexts import ContextPlan
from vla_crl.sim.task_suite import TaskSuite

ADAM_BYTES = 12
"""For each trained number its gradient and two averages, float32."""
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """What is still to be taken when policy and suite are loaded.

    Attributes:
        num_parameters: Of the policy.
        num_trained: Of these.
        contexts: Of a rollout.
        picture_bytes: Of what all worlds show at once.
        training_steps: Control steps of training, if every episode takes as long as it may.
        evaluation_steps: Likewise.
    """

    num_parameters: int
    num_trained: int
    contexts: ContextPlan
    picture_bytes: int
    training_steps: int
    evaluation_steps: int

    @property
    def num_bytes(self) -> int:
        """Of contexts, pictures and the optimiser."""
        trained = self.num_trained * ADAM_BYTES
        return self.contexts.num_bytes + self.picture_bytes + trained

    def require_memory(self, device: str) -> None:
        """Check that there is room.

        Raises:
            ConfigError: There is not.
        """
        require_memory(self.num_bytes, str(self.contexts), self.contexts.advice, device)

    def describe(self, device: str) -> str:
        """Say it in two lines."""
        free = available_memory(device) / GIB
        return (
            f"{self.contexts}\n"
            f"policy of {self.num_parameters:,} parameters, {self.num_trained:,} of them trained; "
            f"the run takes about {self.num_bytes / GIB:.2f} GiB more of {free:.1f}, and at most "
            f"{self.training_steps:,} control steps of training and {self.evaluation_steps:,} of "
            "evaluation"
        )


def estimate_cost(
    config: TrainConfig,
    suite: TaskSuite,
    stream: TaskStream,
    policy: VLAPolicy,
    contexts: ContextPlan,
) -> RunCost:
    """Estimate what a run takes.

    Args:
        config: The recipe.
        suite: Its suite.
        stream: Its tasks.
        policy: With `requires_grad` as it will be trained.
        contexts: Of a rollout.
    """
    evaluation, num_rows = config.evaluation, 1 + sum(1 for _ in stream.stages())
    episodes = evaluation.num_episodes + evaluation.num_sampled_episodes
    picture = 3 * len(policy.embodiment.cameras) * policy.config.image_size**2
    return RunCost(
        num_parameters=sum(p.numel() for p in policy.parameters()),
        num_trained=sum(p.numel() for p in policy.parameters() if p.requires_grad),
        contexts=contexts,
        picture_bytes=picture * (config.collector.num_envs + evaluation.num_envs),
        training_steps=stream.num_stages * config.episodes_per_task * suite.horizon,
        evaluation_steps=num_rows * len(stream.tasks) * episodes * suite.horizon,
    )


def check_budget(config: TrainConfig, suite: TaskSuite, policy: VLAPolicy) -> None:
    """Refuse a budget that the warm-up of the value head would use up.

    Raises:
        ConfigError: It would.
    """
    warmup = find_learner(config.learner.kind).num_warmup_iterations(config.learner)
    longest = -(-suite.horizon // policy.config.execution_horizon)
    least = config.collector.num_envs * chunks_of(config, suite, policy) / longest
    if config.episodes_per_task <= least * warmup:
        raise ConfigError(
            f"episodes_per_task is {config.episodes_per_task}, but an iteration takes at least "
            f"{least:.0f} episodes and the first {warmup} train "
            "the value head alone, so the policy would not be trained; raise it, or lower "
            "learner.value_warmup_iterations, collector.num_envs or collector.num_chunks"
        )
