"""Proximal policy optimisation of a flow policy on stored contexts.

Where the reinforcement gradient ends at the policy's context (knowledge insulation), the update
never runs the backbone: it re-evaluates the one stochastic flow step that was stored.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, cast

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from vla_crl.algos.advantages import explained_variance, normalize_advantages
from vla_crl.algos.gradient_norms import gradient_norms, gradient_ratios
from vla_crl.algos.metric_log import MetricLog, read_numbers
from vla_crl.algos.protocols import ActorCritic, ParamGroup, Rollout, UpdateHooks
from vla_crl.config import Fraction, Settings, Size
from vla_crl.errors import CheckpointError, ConfigError, SpecError
from vla_crl.files.state_dicts import require_like

ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}


@dataclass(frozen=True, kw_only=True)
class PPOConfig(Settings):
    """Settings of `PPO`."""

    learning_rate: Annotated[float, Interval(gt=0, le=1)] = 5e-4
    """Adam step size of the policy's trainable parameters."""
    value_learning_rate: Annotated[float, Interval(gt=0, le=1)] = 1e-3
    """Adam step size of the value head."""
    gamma: Fraction = 0.99
    """Discount per chunk, not per control step."""
    gae_lambda: Fraction = 0.95
    """GAE lambda per chunk."""
    clip_range: Annotated[float, Interval(gt=0, le=1e6)] = 0.2
    """How far the probability ratio of one chunk may move from 1 before its gradient stops."""
    value_clip_range: Annotated[float, Interval(gt=0, le=1e6)] | None = 0.2
    """How far a value may move from the stored one before its gradient stops; None is off."""
    num_epochs: Annotated[int, Interval(ge=1, le=1000)] = 8
    """Passes over the rollout in one update."""
    minibatch_size: Size = 256
    """Chunks per optimizer step."""
    max_grad_norm: Annotated[float, Interval(gt=0, le=1e12)] = 0.5
    """Gradient norm limit, for the policy and for the value head separately."""
    target_kl: Annotated[float, Interval(gt=0, le=1e6)] | None = 0.1
    """A minibatch with a larger KL ends the update before its step; None is off."""
    vf_coef: Annotated[float, Interval(ge=0, le=1e6)] = 0.5
    """Weight of the value loss. Matters where policy and value share parameters."""
    normalize_advantage: bool = True
    """Bring the advantages of the whole rollout to mean 0 and standard deviation 1."""
    value_warmup_iterations: Annotated[int, Interval(ge=0, le=10**6)] = 2
    """First updates that train the value head alone."""


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


def param_groups(policy: ActorCritic, config: PPOConfig) -> list[ParamGroup]:
    """Return what is trained in two groups, "policy" and "value"; an empty one is left out."""
    groups = (
        ParamGroup("policy", policy_parameters(policy), config.learning_rate),
        ParamGroup("value", value_parameters(policy), config.value_learning_rate),
    )
    return [group for group in groups if group.parameters]


def clipped_policy_loss(ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Return the negated clipped objective per sample (arXiv 1707.06347, eq. 7).

    Args:
        ratio: [B] pi_new / pi_old.
        advantages: [B].
        clip_range: epsilon.
    """
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None
) -> Tensor:
    """Return the squared error per sample, the larger of the free and the clipped value's.

    Args:
        values: [B] predicted now.
        old_values: [B] predicted while collecting.
        returns: [B] to be predicted.
        clip_range: How far the clipped value may be from the old one; None is no clipping.
    """
    error = (values - returns).square()
    if clip_range is None:
        return error
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return torch.maximum(error, (clipped - returns).square())


class PPO:
    """Clipped policy updates with one probability ratio per action chunk.

    Policy and value head have their own step size and their own gradient norm limit: under
    insulation they share no parameter, and in a joint norm the large value errors of a new task
    would only shrink the policy's step.

    A new object starts with fresh Adam moments and a new value warm-up. Build it after the
    parameters to train have been chosen (`requires_grad`).

    Attributes:
        iteration: Number of updates made.

    Raises:
        ConfigError: The policy or its value head has no trainable parameter.
    """

    def __init__(
        self,
        policy: ActorCritic,
        config: PPOConfig,
        groups: Sequence[ParamGroup] | None = None,
    ) -> None:
        self.policy = policy
        self.config = config
        self.iteration = 0
        self._policy_parameters = policy_parameters(policy)
        self._value_parameters = value_parameters(policy)
        if not self._policy_parameters:
            raise ConfigError(
                "PPO: the policy has no trainable parameter outside its value head; "
                "add an adapter or unfreeze a part of it"
            )
        if not self._value_parameters:
            raise ConfigError("PPO: the value head has no trainable parameter; unfreeze it")
        groups = param_groups(policy, config) if groups is None else groups
        self._grouped = {name: p for group in groups for name, p in group.parameters.items()}
        self._optimizer = torch.optim.Adam(
            [{"params": [*g.parameters.values()], "lr": g.learning_rate} for g in groups],
            fused=True,  # one call for all of them: many small ones take a tenth of an update
        )

    @property
    def warming_up(self) -> bool:
        """Whether the next update trains the value head alone."""
        return self.iteration < self.config.value_warmup_iterations

    def update(
        self, rollout: Rollout, hooks: UpdateHooks, generator: torch.Generator
    ) -> dict[str, float]:
        """Improve the policy on one finished rollout.

        While `warming_up` the policy stays as it is and no hook is called.

        Args:
            rollout: Collected by the policy as it is now.
            hooks: The continual-learning method.
            generator: Draws the minibatches.

        Returns:
            Means over minibatches: policy_loss, value_loss, the method's terms, clip_fraction,
            kl (against the collecting policy, before each step), and before clipping grad_norm
            and value_grad_norm. Of the first minibatch, before its step and before clipping:
            <term>_grad_norm of all terms, the norm of what each adds to the gradient,
            coefficients included, and of the method's <term>_grad_ratio, that norm divided by
            the policy loss's. Of the whole update: ratio_error
            (max |ratio - 1| before the first step; more than rounding means that the update does
            not see what the collection saw), explained_variance (of the stored values), epochs
            (completed), optimizer_steps.

        Raises:
            FloatingPointError: A loss or gradient is not finite; the step was not applied.
            SpecError: A hook returned no tensor, or one of another shape than it should.
            ConfigError: A trainable parameter has no path to the loss.
        """
        config = self.config
        rollout.compute_advantages(gamma=config.gamma, gae_lambda=config.gae_lambda)
        advantages = rollout.advantages
        if config.normalize_advantage:
            advantages = normalize_advantages(advantages, rollout.valid)
        if not self.warming_up:
            hooks.before_update(self.policy, rollout)
        log = MetricLog()
        epochs = 0
        while epochs < config.num_epochs and self._run_epoch(
            rollout, advantages.flatten(), hooks, generator, log
        ):
            epochs += 1
        log.read()
        self.iteration += 1
        return log.means() | {
            "ratio_error": log.values["ratio_error"][0],
            "explained_variance": explained_variance(
                rollout.values[rollout.valid], rollout.returns[rollout.valid]
            ),
            "epochs": float(epochs),
            "optimizer_steps": float(log.num_steps),
        }

    def _run_epoch(
        self,
        rollout: Rollout,
        advantages: Tensor,
        hooks: UpdateHooks,
        generator: torch.Generator,
        log: MetricLog,
    ) -> bool:
        """Take one step per minibatch; return False where the KL ended the update."""
        config = self.config
        for batch in rollout.minibatches(config.minibatch_size, generator):
            evaluation = self.policy.evaluate_actions(batch.context, batch.trace)
            log_prob, value = evaluation.density.log_prob(), evaluation.value
            log_ratio = (log_prob - batch.log_probs).sum(dim=1)
            ratio = log_ratio.exp()
            # k3 of Schulman's "Approximating KL divergence": unbiased and never negative.
            kl = (ratio - 1 - log_ratio).mean()
            policy_loss = clipped_policy_loss(ratio, advantages[batch.index], config.clip_range)
            value_loss = clipped_value_loss(
                value, batch.values, batch.returns, config.value_clip_range
            )
            losses = {"policy_loss": policy_loss.mean(), "value_loss": value_loss.mean()}
            own: dict[str, Tensor] = {}
            if not self.warming_up:
                weights = hooks.sample_weights(batch, evaluation)
                _require_shape("sample_weights", weights, policy_loss.shape)
                losses["policy_loss"] = (weights * policy_loss).mean()
                own = _checked(hooks.losses(self.policy, batch, evaluation))
                losses |= own
            numbers = self._require_finite({"log_prob": log_prob.sum(), "kl": kl} | losses)
            deviation = (ratio - 1).abs()
            clip_fraction = (deviation > config.clip_range).float().mean()
            metrics = {"kl": kl, "clip_fraction": clip_fraction, "ratio_error": deviation.max()}
            log.append(losses | metrics)
            if config.target_kl is not None and numbers["kl"] > config.target_kl:
                return False
            losses["value_loss"] = config.vf_coef * losses["value_loss"]
            if log.num_steps == 0:  # each norm takes a backward pass: once an update
                terms = {"value_loss": losses["value_loss"]} if self.warming_up else losses
                norms = gradient_norms(terms, self._parameters.values())
                log.append(norms | gradient_ratios(norms, own))
            log.append(self._step(losses, hooks))
            log.num_steps += 1
        return True

    def _step(self, losses: Mapping[str, Tensor], hooks: UpdateHooks) -> dict[str, Tensor]:
        """Apply one optimizer step and return the gradient norms before clipping."""
        policy, value = self._policy_parameters.values(), self._value_parameters.values()
        limit = self.config.max_grad_norm
        self._optimizer.zero_grad()
        if self.warming_up:
            losses["value_loss"].backward(inputs=list(value))
        else:
            sum(losses.values(), torch.zeros(())).backward()
            self._require_gradients()
            hooks.transform_grads(self.policy)
        norms = {
            "grad_norm": clip_grad_norm_(policy, limit),
            "value_grad_norm": clip_grad_norm_(value, limit),
        }
        self._require_finite(norms)
        self._optimizer.step()
        if not self.warming_up:
            hooks.after_step(self.policy)
        return norms

    def state_dict(self) -> dict[str, Tensor]:
        """Return what `load_state_dict` needs to go on as if never stopped: flat, no pickle.

        Keys are "iteration" and, per trained parameter, "exp_avg/<name>", "exp_avg_sq/<name>" and
        "step/<name>". Learning rates are not in it: they come from the config.
        """
        state = {"iteration": torch.tensor(self.iteration)}
        for name, parameter in self._parameters.items():
            moments = self._optimizer.state.get(parameter, {})
            state |= {f"{kind}/{name}": moment.clone() for kind, moment in moments.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            CheckpointError: The state does not belong to the parameters trained here.
            SpecError: A tensor of it is of another shape or type, or not finite.
        """
        parameters = self._parameters
        scalar = torch.zeros(())
        own = {
            f"{kind}/{name}": scalar if kind == "step" else parameter
            for name, parameter in parameters.items()
            for kind in ADAM_STATE
        }
        moments: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            if key == "iteration":
                continue
            if key not in own:
                raise CheckpointError(f"PPO state: '{key}' belongs to no parameter trained here")
            require_like({key: tensor}, {key: own[key]}, "PPO state")
            moments[name][kind] = tensor.clone()
        complete = {"iteration"} | {f"{kind}/{name}" for name in moments for kind in ADAM_STATE}
        if missing := complete - set(state):
            raise CheckpointError(f"PPO state: '{min(missing)}' is missing; it is not complete")
        index = {name: i for i, name in enumerate(parameters)}
        self._optimizer.load_state_dict(
            {
                "state": {index[name]: kinds for name, kinds in moments.items()},
                "param_groups": self._optimizer.state_dict()["param_groups"],
            }
        )
        self.iteration = int(state["iteration"])

    @property
    def _parameters(self) -> dict[str, nn.Parameter]:
        """All trained parameters, in the optimizer's order."""
        return self._grouped

    def _require_gradients(self) -> None:
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                raise ConfigError(
                    f"PPO: parameter '{name}' is trainable but has no path to the loss; freeze it "
                    "(requires_grad = False), or let gradients reach it (insulation)"
                )

    def _require_finite(self, quantities: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the numbers, read from the device at once."""
        numbers = dict(zip(quantities, read_numbers([*quantities.values()]), strict=True))
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise FloatingPointError(
                    f"PPO iteration {self.iteration}: {name} is {number}, expected a "
                    "finite number; the step was not applied. Lower learning_rate, or check the "
                    "rollout's rewards and values and what the method adds"
                )
        return numbers


def _checked(losses: object) -> dict[str, Tensor]:
    """Return what a method's `losses` gave, if it is scalars by names that are free."""
    if not isinstance(losses, Mapping):
        raise SpecError(
            f"method: losses is a {type(losses).__name__}, expected a dictionary of scalars"
        )
    own = cast(Mapping[str, Tensor], losses)
    for name, loss in own.items():
        if name in MetricLog.NAMES:
            raise SpecError(
                f"method: losses['{name}'] has the name of another number of the update; choose "
                f"a name that is none of {', '.join(MetricLog.NAMES)}"
            )
        _require_shape(f"losses['{name}']", loss, torch.Size())
    return dict(own)


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
