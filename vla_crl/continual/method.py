"""What a continual-learning method can do, and where: hooks of the update and of the stages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vla_crl.algos.learner import Learner
from vla_crl.algos.protocols import ActorCritic, Batch, ParamGroup, Rollout
from vla_crl.config import Settings
from vla_crl.continual.method_stage import Stage
from vla_crl.continual.stream import TaskStream
from vla_crl.density import Evaluation


@dataclass(frozen=True, kw_only=True)
class NoSettings(Settings):
    """Settings of a method that has none."""


class ContinualMethod:
    """Base of all methods; every hook does nothing here, which is sequential fine-tuning.

    The calling loop, hooks marked with `->`:

     -> stream = method.stream(stream)
     -> method.check(policy, learner, evaluation)      # may refuse; nothing is written yet
        for number, tasks in stream.stages():
            stage = Stage(...)                         # what the method may use of it
         -> method.before_task(policy, stage)
         -> groups = method.param_groups(policy, groups)
            learner = ...                              # trains what `requires_grad` now says
            while episodes remain:
                rollout = collect()                    # of the rest nothing in a value warm-up
             -> method.before_update(policy, rollout)  # advantages are there
                for batch in ...:
                    evaluation = policy.evaluate_actions(batch.context, batch.trace)
                 -> loss = mean(method.sample_weights(batch, evaluation) * policy loss) + ...
                 -> loss += sum of method.losses(policy, batch, evaluation)
                    backward
                 -> method.transform_grads(policy)
                    clip the gradients, step
                 -> method.after_step(policy)
             -> row of metrics.jsonl |= method.metrics()
         -> method.after_task(policy, stage)
            evaluate all tasks
         -> save method.state_dict()                   # and load_state_dict on resuming

    Stage 0, before any `before_task`, is evaluated and saved too. On resuming, `load_state_dict`
    comes first and stages that are done are not repeated. In the middle of a stage the state of its
    beginning is loaded, `before_task` called, and then the state of the moment loaded; so all that
    changes in a stage belongs into it, the random numbers of `stage.generator`, `stage.rng` and of
    torch's own generator on the CPU excepted, which are put back too. Contexts come without
    gradient, except where adapters of the backbone are trained: there each minibatch has fresh ones
    with the graph, so detach what is kept.

        class Anchor(ContinualMethod):                # my_methods.py, in a folder that the variable
            config_class = AnchorConfig               # VLA_CRL_PATH (or PYTHONPATH) lists;
            ...                                       # frozen dataclass: strength: float = 1.0

        vla-crl train demo --method my_methods:Anchor --method-settings.strength 3

    A method changes the policy's trainable parameters (the dictionary name -> parameter that
    `vla_crl.algos.learner.policy_parameters(policy)` returns), never the value head: protecting the
    critic hurts (Continual World, arXiv 2105.10919). Subclasses with settings name their frozen
    dataclass in `config_class` and get an instance as `self.config`. docs/writing_a_method.md is a
    walk through one of them.

    Attributes:
        config: The settings.
    """

    config_class: ClassVar[type] = NoSettings
    paper: ClassVar[str] = ""
    """Where it was published, e.g. "arXiv 1612.00796"."""
    stores: ClassVar[str] = "nothing"
    """What it keeps from one task to the next, in a few words."""
    needs_task_id: ClassVar[bool] = False
    """Whether the policy has to be told in which task it acts, beyond the instruction."""
    needs_observations: ClassVar[bool] = False
    """Whether rollouts hold the observations (`seen`) also where contexts are stored."""
    owns_adapters: ClassVar[bool] = False
    """Whether it adds adapters and says which act; of several composed methods one may."""
    isolates_tasks: ClassVar[bool] = False
    """Whether what a task trains acts in no other task."""
    needs_shared_parameters: ClassVar[bool] = False
    """Whether it holds something of earlier tasks in the weights that the present one trains, so
    that it is nothing beside a method that isolates tasks."""
    needs_rollouts: ClassVar[bool | None] = None
    """Whether it looks at episodes that the policy has played, which some learners do not let it.
    None: if it has a `before_update`."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def stream(self, stream: TaskStream) -> TaskStream:
        """Return the stream to be trained, e.g. with its tasks joined."""
        return stream

    def check(self, policy: ActorCritic, learner: Learner, evaluation: Evaluation) -> None:
        """Refuse what the method cannot work with; called once when a run begins or goes on.

        Args:
            policy: As the run begins with it, with `requires_grad` as the recipe says.
            learner: Of the recipe, as built for it.
            evaluation: What the policy says of some chunk of its own, for the kind of its density.

        Raises:
            ConfigError: It says what was expected, and what to do.
        """

    def param_groups(self, policy: ActorCritic, groups: list[ParamGroup]) -> list[ParamGroup]:
        """Return the groups of parameters, each with its step size; called after `before_task`.

        A method without a `before_task` is also asked when a run begins.

        Args:
            policy: With `requires_grad` as it will be trained.
            groups: As the learning rule makes them.

        Returns:
            Every trainable parameter in exactly one of them.
        """
        return groups

    def before_task(self, policy: ActorCritic, stage: Stage) -> None:
        """Prepare a stage: choose which adapters to train, divide the replay memory."""

    def before_update(self, policy: ActorCritic, rollout: Rollout) -> None:
        """Look at a whole rollout before its update: fill a memory, follow its statistics.

        Args:
            policy: As it collected it.
            rollout: With advantages, not normalised; written over by the next one.
        """

    def sample_weights(self, batch: Batch, evaluation: Evaluation) -> Tensor:
        """Return the factor [B] on each chunk's policy loss.

        Args:
            batch: What is trained on.
            evaluation: What the policy says of it now, with the graph: detach what becomes a
                weight.
        """
        return torch.ones_like(batch.advantages)

    def losses(
        self, policy: ActorCritic, batch: Batch, evaluation: Evaluation
    ) -> dict[str, Tensor]:
        """Return scalars to add to the loss, by name, with gradients to the policy.

        metrics.jsonl has each under its name, <name>_grad_norm, the norm of its gradient at the
        iteration's first minibatch, and <name>_grad_ratio, the same divided by the policy loss's: a
        coefficient that is not felt shows there. Coefficients belong into the scalars.

        Args:
            policy: To be trained.
            batch: What is trained on.
            evaluation: Of it, with the graph; no second forward pass is needed.
        """
        return {}

    def transform_grads(self, policy: ActorCritic) -> None:
        """Change `.grad` of the policy's parameters in place, after backward, before clipping.

        A gradient of zero stops an entry only as long as Adam has no memory of an earlier one,
        so decide what is frozen before the stage begins; `.grad = None` stops a whole parameter.
        """

    def after_step(self, policy: ActorCritic) -> None:
        """Look at the policy after an optimizer step: path integrals, averages, multipliers."""

    def after_task(self, policy: ActorCritic, stage: Stage) -> None:
        """Close a stage: estimate importance, fill the memory, prune or average adapters."""

    def metrics(self) -> dict[str, float]:
        """Return numbers about the method itself for every line of metrics.jsonl, by name."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Return what has to survive a restart, flat and by name; also asked for in mid-stage."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned; the tensors are on the CPU."""
