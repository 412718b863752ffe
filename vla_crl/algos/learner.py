"""What all learning rules share: the loop over minibatches, the hooks of a method, and the step."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from annotated_types import Interval
from torch import Tensor, nn

from vla_crl.algos.gradient_norms import gradient_norms, gradient_ratios
from vla_crl.algos.learner_checks import (
    check_prepared,
    checked_batches,
    checked_summary,
    checked_terms,
    groups_of,
)
from vla_crl.algos.metric_log import MetricLog, is_reserved, read_numbers
from vla_crl.algos.optimizer import GroupedAdam
from vla_crl.algos.protocols import ActorCritic, Batch, ParamGroup, Reference, UpdateHooks
from vla_crl.algos.terms import Terms, as_tensors
from vla_crl.config import Settings, Size
from vla_crl.density import Evaluation
from vla_crl.errors import CheckpointError, ConfigError, SpecError


@dataclass(frozen=True, kw_only=True)
class LearnerConfig(Settings):
    """Settings that every learner has."""

    kind: str
    """Learning rule: one that 'vla-crl list learners' names, or package.module:Class."""
    learning_rate: Annotated[float, Interval(gt=0, le=1)] = 5e-4
    """Adam step size of the policy's trainable parameters."""
    num_epochs: Annotated[int, Interval(ge=1, le=1000)] = 8
    """Passes over the data of one update."""
    minibatch_size: Size = 256
    """Chunks per optimizer step."""
    max_grad_norm: Annotated[float, Interval(gt=0, le=1e12)] = 0.5
    """Gradient norm limit, for the policy and for the value head separately."""


class Learner(ABC):
    """Base of all learning rules: a subclass says what the loss of a minibatch is.

    One iteration, with what a subclass may have of its own marked with `->`:

        data = collect()                                # fresh, by the policy as it is
     -> learner.prepare(data, generator)                # e.g. fill advantages and returns
        hooks.before_update(policy, data)
        for epoch in range(config.num_epochs):
         -> for batch in learner.minibatches(data, generator):
                evaluation = policy.evaluate_actions(batch.context, batch.trace)
             -> terms = learner.terms(batch, evaluation)
             -> if learner.is_far(metrics of the terms): end the update
                loss = mean(hooks.sample_weights(batch, evaluation) * terms.policy_loss)
                     + the other terms + all of hooks.losses(policy, batch, evaluation)
                backward; hooks.transform_grads(policy); clip; step; hooks.after_step(policy)

    Every term is logged under its name, and of the first minibatch how hard it pulls, as
    `<name>_grad_norm` and, beside the policy loss, `<name>_grad_ratio`.

    A new object starts with fresh Adam moments. Build it after the parameters to train have been
    chosen (`requires_grad`).

    Attributes:
        config_class: Of its settings, a subclass of `LearnerConfig`.
        data: What it learns of: the policy's own "rollout", or "demonstrations" of an expert.
        needs_value: Whether the value head is trained and has to be.
        whole_episodes: Whether a rollout has to be of complete episodes, one a slot.
        policy: What learns.
        config: Its settings.
        reference: What another policy says about a batch, where `reference_of` asks for one.
        iteration: Number of updates made.
    """

    config_class: ClassVar[type[LearnerConfig]]
    data: ClassVar[Literal["rollout", "demonstrations"]] = "rollout"
    needs_value: ClassVar[bool] = False
    whole_episodes: ClassVar[bool] = False

    def __init__(
        self,
        policy: ActorCritic,
        config: Any,
        groups: Sequence[ParamGroup] | None = None,
        *,
        reference: Reference | None = None,
    ) -> None:
        """Begin.

        Args:
            policy: With `requires_grad` as it is to be trained.
            config: An instance of `config_class`.
            groups: What learns, and how fast; by default `param_groups`.
            reference: See `reference_of`.

        Raises:
            ConfigError: There is nothing to train, a group is wrong, or a reference is missing.
        """
        self.policy, self.config, self.reference = policy, config, reference
        self.iteration = 0
        self.generator: torch.Generator | None = None
        value_head = set(policy.value_head.parameters())
        groups = groups_of(type(self), policy, config) if groups is None else groups
        limit = config.max_grad_norm
        self.optimizer = GroupedAdam(groups, value_head, max_grad_norm=limit, where=self.name)
        if not self.optimizer.policy:
            raise ConfigError(
                f"{self.name}: the policy has no trainable parameter outside its value head; "
                "add an adapter or unfreeze a part of it"
            )
        if self.needs_value and not self.optimizer.value:
            raise ConfigError(
                f"{self.name}: the value head has no trainable parameter; unfreeze it"
            )
        if (which := self.reference_of(config)) and reference is None:
            raise ConfigError(f"{self.name}: got no reference, expected what '{which}' says")

    @classmethod
    def param_groups(cls, policy: ActorCritic, config: Any) -> list[ParamGroup]:
        """Return what is trained: the policy, and of some learners the value head."""
        return [ParamGroup("policy", policy_parameters(policy), config.learning_rate)]

    @classmethod
    def group_size(cls, config: Any) -> int:
        """Return how many episodes share a task and an initial state; 1 is no groups."""
        return 1

    @classmethod
    def num_warmup_iterations(cls, config: Any) -> int:
        """Return how many updates leave the policy as it is, see `warming_up`."""
        return 0

    @classmethod
    def reference_of(cls, config: Any) -> str | None:
        """Return which policy `reference` has to be.

        Returns:
            "base", "previous_task" or a checkpoint's folder; None where there is none.
        """
        return None

    @property
    def name(self) -> str:
        """What errors call it."""
        return type(self).__name__

    @property
    def warming_up(self) -> bool:
        """Whether the next update trains the value head alone, by the term "value_loss"."""
        return self.iteration < self.num_warmup_iterations(self.config)

    def prepare(self, data: Any, generator: torch.Generator) -> None:  # noqa: B027 - may be left out
        """Look at all data before the first step; may fill advantages and returns."""

    def unused_slots(self, rollout: Any, times: int) -> Tensor:
        """Say in which slots episodes are to be played anew, as nothing is learnt from them.

        Args:
            rollout: Of whole episodes.
            times: How often that was done in this iteration.

        Returns:
            Numbers of slots, of whole groups; none ends the collection.
        """
        return torch.zeros(0, dtype=torch.int64)

    def minibatches(self, data: Any, generator: torch.Generator) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        return data.minibatches(self.config.minibatch_size, generator)

    @abstractmethod
    def terms(self, batch: Batch, evaluation: Evaluation) -> Terms:
        """Return the loss of a minibatch.

        Args:
            batch: B chunks.
            evaluation: What the policy says about them now, with the graph.
        """

    def is_far(self, numbers: Mapping[str, float]) -> bool:
        """Say whether the update ends before this step, of losses and metrics of a minibatch."""
        return False

    def summary(self, data: Any) -> dict[str, float]:
        """Return numbers of the whole update for metrics.jsonl."""
        return {}

    def loss(self, batch: Batch, evaluation: Evaluation) -> Tensor:
        """Return the learner's own loss of any batch, a scalar, without what a method adds."""
        terms = self._checked(batch, evaluation)
        return _total({"policy_loss": terms.policy_loss.mean()} | _weighed(terms.others))

    def update(self, data: Any, hooks: UpdateHooks, generator: torch.Generator) -> dict[str, float]:
        """Improve the policy on fresh data.

        While `warming_up` the policy stays as it is and no hook is called.

        Args:
            data: A finished `Rollout` of the policy as it is now; or `Labels`.
            hooks: The continual-learning method.
            generator: On the CPU; draws the minibatches, and whatever else is random.

        Returns:
            Means over minibatches: all terms, kl, clip_fraction, and before clipping grad_norm and
            value_grad_norm. Of the first minibatch, before its step and before clipping, what each
            term adds to the gradient, coefficients included: <term>_grad_norm, <term>_grad_ratio.
            Of the whole update: ratio_error (max |ratio - 1| before the first step; more than
            rounding means that the update does not see what the collection saw), epochs
            (completed), optimizer_steps, and what `summary` has. NaN where the learner has none.

        Raises:
            FloatingPointError: A loss or gradient is not finite; the step was not applied.
            SpecError: The learner or a hook returned what an update cannot use, such as a loss of
                another shape than it should have.
            ConfigError: A trainable parameter has no path to the loss, and is not learnt to
                explore with.
        """
        self.generator = generator
        self._prepare(data, generator)
        if not self.warming_up:
            hooks.before_update(self.policy, data)
        log, epochs = MetricLog(), 0
        while epochs < self.config.num_epochs and self._run_epoch(data, hooks, generator, log):
            epochs += 1
        metrics = log.means() | checked_summary(type(self), self.config, self.summary(data))
        self.iteration += 1
        if errors := log.values["ratio_error"]:
            metrics["ratio_error"] = errors[0]
        return metrics | {"epochs": float(epochs), "optimizer_steps": float(log.num_steps)}

    def _run_epoch(
        self, data: Any, hooks: UpdateHooks, generator: torch.Generator, log: MetricLog
    ) -> bool:
        """Take one step per minibatch; return False where `is_far` ended the update."""
        found = self.minibatches(data, generator)
        for batch in checked_batches(type(self), self.config, found):
            evaluation = self.policy.evaluate_actions(batch.context, batch.trace)
            terms = self._checked(batch, evaluation)
            metrics = as_tensors(terms.metrics)
            losses = {"policy_loss": terms.policy_loss.mean()}
            losses |= {name: term for name, (term, _) in terms.others.items()}
            added: dict[str, Tensor] = {}
            if not self.warming_up:
                weights = hooks.sample_weights(batch, evaluation)
                _require_shape("sample_weights", weights, terms.policy_loss.shape)
                losses["policy_loss"] = (weights * terms.policy_loss).mean()
                added = self._added(hooks.losses(self.policy, batch, evaluation), losses)
            numbers = self._require_finite(
                {"log_prob": evaluation.density.log_prob().sum()} | metrics | losses | added
            )
            log.append(losses | added | metrics)
            if self.is_far(numbers):
                return False
            pulling = {"policy_loss": losses["policy_loss"]} | _weighed(terms.others) | added
            idle = {name: torch.zeros(()) for name in pulling if self.warming_up}
            if self.warming_up:
                pulling = {"value_loss": pulling["value_loss"]}
            if log.num_steps == 0:  # each norm takes a backward pass: once an update
                norms = gradient_norms(idle | pulling, self.optimizer.parameters.values())
                log.append(norms | gradient_ratios(norms))
            log.append(self._step(pulling, hooks))
            log.num_steps += 1
        return True

    def _prepare(self, data: Any, generator: torch.Generator) -> None:
        found = cast(Any, self.prepare)(data, generator)
        check_prepared(type(self), self.config, found, data)

    def _checked(self, batch: Batch, evaluation: Evaluation) -> Terms:
        found = self.terms(batch, evaluation)
        learns = not self.warming_up
        return checked_terms(type(self), self.config, found, len(batch), learns_policy=learns)

    def _added(self, losses: object, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the terms of a method."""
        if not isinstance(losses, Mapping):
            raise SpecError(
                f"method: losses is a {type(losses).__name__}, expected a dictionary of scalars"
            )
        added = dict(cast(Mapping[str, Tensor], losses))
        for name, term in added.items():
            if name in own or is_reserved(name):
                raise SpecError(
                    f"method: losses has '{name}', which is the name of another number of an "
                    "update; choose another one"
                )
            _require_shape(f"losses['{name}']", term, torch.Size())
        return added

    def _step(self, losses: Mapping[str, Tensor], hooks: UpdateHooks) -> dict[str, Tensor]:
        """Apply one optimizer step and return the gradient norms before clipping."""
        self.optimizer.zero_grad()
        if self.warming_up:
            losses["value_loss"].backward(inputs=[*self.optimizer.value.values()])
        else:
            _total(losses).backward()
            self._require_gradients()
            hooks.transform_grads(self.policy)
        norms = self.optimizer.clip()
        self._require_finite(norms)
        self.optimizer.step()
        if not self.warming_up:
            hooks.after_step(self.policy)
        return norms

    def state_dict(self) -> dict[str, Tensor]:
        """Return what `load_state_dict` needs to go on as if never stopped: flat, no pickle.

        Keys are "iteration" and those of `GroupedAdam.state_dict`.
        """
        return {"iteration": torch.tensor(self.iteration)} | self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            CheckpointError: The state does not belong to the parameters trained here.
            SpecError: A tensor of it is of another shape or type, or not finite.
        """
        if "iteration" not in state:
            raise CheckpointError(f"{self.name} state: 'iteration' is missing; it is not complete")
        moments = {name: tensor for name, tensor in state.items() if name != "iteration"}
        self.optimizer.load_state_dict(moments)
        self.iteration = int(state["iteration"])

    def _require_gradients(self) -> None:
        explores = self.policy.learnt_exploration
        for name, parameter in self.optimizer.parameters.items():
            if parameter.grad is None and not name.startswith(explores):
                raise ConfigError(
                    f"{self.name}: parameter '{name}' is trainable but has no path to the loss; "
                    "freeze it (requires_grad = False), or let gradients reach it (insulation)"
                )

    def _require_finite(self, quantities: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the numbers, read from the device at once."""
        numbers = dict(zip(quantities, read_numbers([*quantities.values()]), strict=True))
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise FloatingPointError(
                    f"{self.name} iteration {self.iteration}: {name} is {number}, expected a "
                    "finite number; the step was not applied. Lower learning_rate, or check the "
                    "rollout's rewards and values and what the method adds"
                )
        return numbers


def policy_parameters(policy: ActorCritic) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name, without those of the value head."""
    value = set(policy.value_head.parameters())
    return {
        name: parameter
        for name, parameter in policy.named_parameters()
        if parameter.requires_grad and parameter not in value
    }


def value_parameters(policy: ActorCritic) -> dict[str, nn.Parameter]:
    """Return the trainable parameters of the value head, by their name in the policy."""
    value = set(policy.value_head.parameters())
    return {
        name: parameter
        for name, parameter in policy.named_parameters()
        if parameter.requires_grad and parameter in value
    }


def _weighed(terms: Mapping[str, tuple[Tensor, float]]) -> dict[str, Tensor]:
    return {name: coefficient * term for name, (term, coefficient) in terms.items()}


def _total(terms: Mapping[str, Tensor]) -> Tensor:
    return sum(terms.values(), torch.zeros(()))


def _require_shape(hook: str, tensor: object, expected: torch.Size) -> None:
    if not isinstance(tensor, Tensor):
        raise SpecError(
            f"method: {hook} is a {type(tensor).__name__}, expected a tensor of shape "
            f"{list(expected)}"
        )
    if tensor.shape != expected:
        raise SpecError(
            f"method: {hook} has shape {list(tensor.shape)}, expected {list(expected)}; any other "
            "would be broadcast to a wrong loss"
        )
