"""Elastic weight consolidation: weights on which earlier tasks depend are held where they were.

Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3, and its online form, Schwarz et al. 2018,
arXiv 1805.06370, section 3.1. The Fisher information is that of the policy's own actions at the end
of a task: a mean of squared per-sample gradients on fresh rollouts (`vla_crl.continual.fisher`).
Deviation: the value head is not held, as protecting the critic hurts (arXiv 2105.10919).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from vla_crl.algos.learner import Learner, policy_parameters
from vla_crl.algos.protocols import ActorCritic, Batch
from vla_crl.config import Count, Fraction, Settings, Size
from vla_crl.continual.fisher import gaussian_fisher, require_normal, sampled_fisher
from vla_crl.continual.method import ContinualMethod
from vla_crl.continual.method_stage import Stage
from vla_crl.density import Evaluation
from vla_crl.errors import ConfigError
from vla_crl.files.state_dicts import join_states, part_of


@dataclass(frozen=True, kw_only=True)
class EWCConfig(Settings):
    """Settings of `EWC`."""

    strength: Annotated[float, Interval(ge=0, le=1e12)] = 10.0
    """Lambda, the factor on the penalty. With this its gradient reaches about half of the policy
    loss's after one update of `tiny` (penalty_grad_ratio in metrics.jsonl)."""
    variant: Literal["separate", "online"] = "separate"
    """Whether each task holds the weights where that task left them, or all where the last did."""
    decay: Fraction = 0.9
    """Gamma of the variant "online": what a task leaves of the importance before it."""
    fisher: Literal["sampled", "gaussian"] = "sampled"
    """Importance by the actions that were sampled, or in closed form, which is exact, for normal
    densities only, and takes many times as long."""
    num_chunks: Count = 512
    """Fresh chunks of actions of which the importance is the mean."""
    batch_size: Size = 32
    """Chunks that are differentiated at once; those of a trained backbone are one by one."""


class EWC(ContinualMethod):
    """Hold weights on which earlier tasks depend, by their Fisher information.

    Penalties of single tasks add up to one around their weighted mean, but for a constant:
    sum_t F_t (theta - theta_t)^2 = F (theta - a)^2 + const with F = sum_t F_t and
    a = sum_t F_t theta_t / F.
    """

    config_class = EWCConfig
    config: EWCConfig
    paper = "arXiv 1612.00796"
    stores = "two numbers a trained weight"
    needs_shared_parameters = True

    def __init__(self, config: EWCConfig) -> None:
        """Begin with nothing to hold."""
        super().__init__(config)
        self._importance: dict[str, Tensor] = {}
        self._anchor: dict[str, Tensor] = {}

    def check(self, policy: ActorCritic, learner: Learner, evaluation: Evaluation) -> None:
        """Refuse the closed form of the Fisher information where there is none.

        Raises:
            ConfigError: It is asked for, but the policy's density is not normal.
        """
        if self.config.fisher == "gaussian":
            require_normal(evaluation.density)

    def before_task(self, policy: ActorCritic, stage: Stage) -> None:
        """Bring what is held to the policy's device.

        Raises:
            ConfigError: Weights that are held have another shape now.
        """
        for name, parameter in policy_parameters(policy).items():
            if name not in self._anchor:
                continue
            if self._anchor[name].shape != parameter.shape:
                raise ConfigError(
                    f"method 'ewc': '{name}' has shape {list(parameter.shape)}, but what is held "
                    f"of it {list(self._anchor[name].shape)}; train the same weights in all stages"
                )
            self._anchor[name] = self._anchor[name].to(parameter.device)
            self._importance[name] = self._importance[name].to(parameter.device)

    def losses(
        self, policy: ActorCritic, batch: Batch, evaluation: Evaluation
    ) -> dict[str, Tensor]:
        """Return lambda / 2 sum_p F_p (theta_p - a_p)^2, eq. 3 of arXiv 1612.00796."""
        held = [
            (self._importance[name] * (parameter - self._anchor[name]).square()).sum()
            for name, parameter in policy_parameters(policy).items()
            if name in self._anchor
        ]
        return {"penalty": 0.5 * self.config.strength * torch.stack(held).sum()} if held else {}

    def after_task(self, policy: ActorCritic, stage: Stage) -> None:
        """Estimate what the task depends on, and hold it."""
        parameters = policy_parameters(policy)
        find = sampled_fisher if self.config.fisher == "sampled" else gaussian_fisher
        fresh = find(policy, parameters, self._chunks(stage))
        for name, parameter in parameters.items():
            self._hold(name, parameter.detach(), fresh[name])

    def metrics(self) -> dict[str, float]:
        """Return how many weights are held, and the sum of their importance."""
        total = sum(float(importance.sum()) for importance in self._importance.values())
        num_held = sum(importance.numel() for importance in self._importance.values())
        return {"importance": total, "num_held": float(num_held)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return importance and anchor by name."""
        return join_states({"importance": self._importance, "anchor": self._anchor})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        self._importance, self._anchor = part_of(state, "importance"), part_of(state, "anchor")

    def _chunks(self, stage: Stage) -> Iterator[Batch]:
        """Yield as many fresh chunks as the importance is of, rollout by rollout."""
        num_left = self.config.num_chunks
        while num_left:
            for batch in stage.collect().minibatches(self.config.batch_size, stage.generator):
                yield batch[:num_left]
                num_left -= min(len(batch), num_left)
                if not num_left:
                    break

    def _hold(self, name: str, value: Tensor, fresh: Tensor) -> None:
        old = self._importance.get(name, torch.zeros_like(fresh))
        if self.config.variant == "online":
            old = self.config.decay * old  # arXiv 1805.06370: F <- gamma F + F_t
            self._anchor[name] = value.clone()
        else:
            total = old + fresh
            anchor = self._anchor.get(name, value)
            share = torch.where(total > 0, fresh / total, 1.0)
            self._anchor[name] = anchor + share * (value - anchor)
        self._importance[name] = old + fresh
