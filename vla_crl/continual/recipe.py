"""What a training recipe says: suite, policy, method, stream and budget."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Interval, MinLen

from vla_crl.algos.ppo import PPOConfig
from vla_crl.compute import ComputeConfig
from vla_crl.config import Count, Names, Seed, Settings, Size
from vla_crl.continual.loggers.loggers import LoggerName
from vla_crl.continual.stream import TaskStream
from vla_crl.errors import ConfigError
from vla_crl.models.context import Insulation
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.sites import Group
from vla_crl.rollout.collector import CollectorConfig
from vla_crl.sim.task_suite import TaskSuite
from vla_crl.sim.variation import VariationConfig

TRAINED: tuple[Group, ...] = ("head", "value")
"""What is trained where there are no adapters and a recipe does not say it."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Settings):
    """How the success matrix is measured."""

    num_episodes: Count = 100
    """Test episodes a task and stage; always the same test states."""
    num_sampled_episodes: Annotated[int, Interval(ge=0, le=10**9)] = 50
    """The same for the sampling policy, as it acts in training; 0 leaves it out."""
    num_envs: Size = 128
    """Environments stepped together."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """A recipe: suite x policy x method x stream x budget."""

    suite: str
    """Suite of the catalogue, also with a controller: NAME@joint_position."""
    policy: str
    """Preset or checkpoint directory of the base policy."""
    base: str | None = None
    """Where the policy lies whose adapters `policy` is, if `policy` is a checkpoint of another run
    and that one has been moved since."""
    episodes_per_task: Count
    """Training episodes of a stage; its last iteration runs to its end, so a few more."""
    method: str = "sequential"
    """Continual-learning method: one that 'vla-crl list methods' names, or package.module:Class."""
    method_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the method."""
    tasks: Names | None = None
    """Training tasks in order; the suite's training tasks if omitted."""
    heldout_tasks: tuple[str, ...] | None = None
    """Tasks only evaluated; the suite's held-out tasks if omitted."""
    rounds: Annotated[int, Interval(ge=1, le=10_000)] = 1
    """How often the training tasks are run through, in the same order."""
    seed: Seed = 0
    """Seeds everything."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """Devices, precision and threads."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Learning rule."""
    init: Literal["checkpoint", "random"] = "checkpoint"
    """Whether the run begins with the policy's weights, or with random ones in the same
    architecture, with the vocabulary and normalisation of the checkpoint; for lora = "None"."""
    lora: LoRAConfig | None = field(default_factory=LoRAConfig)
    """Adapters; "None" trains the weights themselves, see `train`."""
    train: Annotated[tuple[Group, ...], MinLen(1)] = TRAINED
    """Parts of the policy that are trained where there are no adapters; of each the weights on
    which actions or value depend."""
    insulation: Insulation = "full"
    """Gradient of the reward to the backbone: stopped, passed on ("none") or scaled by (0, 1).
    Other than "full" is for training the backbone, which then runs anew in every epoch."""
    exploration: dict[str, Any] = field(default_factory=dict)
    """How training samples actions: settings of the policy's head, such as noise_level; what is
    omitted is the policy's own."""
    variation: VariationConfig = field(default_factory=VariationConfig)
    """Domain randomisation: what training episodes vary, in tasks without a variation of their own.
    Evaluation does not."""
    collector: CollectorConfig = field(default_factory=CollectorConfig)
    """Size of an iteration."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Success matrix."""
    checkpoint_every: Annotated[int, Interval(ge=0, le=10**9)] = 5
    """Iterations after which the state is stored, so that a killed run goes on from there, episodes
    that run included. 0 stores stages only, when they are done: for a backend that cannot store
    the state of its worlds."""
    loggers: tuple[LoggerName, ...] = ()
    """Where else the training is shown: tensorboard, wandb (extras of these names)."""
    video_episodes: Annotated[int, Interval(ge=0, le=1000)] = 2
    """Episodes filmed of every training task, before and after the stream; 0 films nothing."""

    def __post_init__(self) -> None:
        """Check that nothing is said of what is not trained."""
        super().__post_init__()
        if self.lora is not None and self.train != TRAINED:
            raise ConfigError(
                f"train is {list(self.train)}, but adapters are trained; leave it out, or train "
                'the weights themselves with lora = "None"'
            )
        if self.lora is not None and self.init == "random":
            raise ConfigError(
                "init is 'random', but adapters of random weights that stay as they are learn "
                'little, and no file holds these; train the weights with lora = "None"'
            )

    def stream(self, suite: TaskSuite) -> TaskStream:
        """Resolve the stream against the suite.

        Raises:
            ConfigError: A task that the suite does not have.
        """
        tasks, heldout = self.tasks, self.heldout_tasks
        if tasks is None:
            tasks = tuple(task.name for task in suite.tasks_of("train"))
        if heldout is None:
            heldout = tuple(task.name for task in suite.tasks_of("heldout"))
        for name in (*tasks, *heldout):
            try:
                suite.task_index(name)
            except ConfigError as error:
                raise ConfigError(
                    f"{error} If the recipe's tasks are those of another suite, name some of this "
                    "one, or ask for all of its own: --tasks None --heldout-tasks None"
                ) from error
        return TaskStream(
            train_tasks=tasks, heldout_tasks=heldout, rounds=self.rounds,
            episodes_per_task=self.episodes_per_task,
        )  # fmt: skip
