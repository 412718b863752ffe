"""Proximal policy optimisation (arXiv 1707.06347): GAE with a critic, a clipped ratio a chunk.

Where the reinforcement gradient ends at the policy's context (knowledge insulation), the update
never runs the backbone: it evaluates again what was stored of the chunk's sampling.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from vla_crl.algos.advantages import explained_variance, normalize_advantages
from vla_crl.algos.learner import Terms, value_parameters
from vla_crl.algos.policy_gradient import Clip, PolicyGradient, RatioConfig
from vla_crl.algos.protocols import ActorCritic, Batch, ParamGroup, Rollout
from vla_crl.config import Fraction
from vla_crl.density import Evaluation


@dataclass(frozen=True, kw_only=True)
class PPOConfig(RatioConfig):
    """Settings of `PPO`."""

    kind: str = "ppo"
    """Learning rule."""
    value_learning_rate: Annotated[float, Interval(gt=0, le=1)] = 1e-3
    """Adam step size of the value head."""
    gamma: Fraction = 0.99
    """Discount per chunk, not per control step."""
    gae_lambda: Fraction = 0.95
    """GAE lambda per chunk."""
    value_clip_range: Clip | None = 0.2
    """How far a value may move from the stored one before its gradient stops; None is off."""
    vf_coef: Annotated[float, Interval(ge=0, le=1e6)] = 0.5
    """Weight of the value loss. Matters where policy and value share parameters."""
    normalize_advantage: bool = True
    """Bring the advantages of the whole rollout to mean 0 and standard deviation 1."""
    value_warmup_iterations: Annotated[int, Interval(ge=0, le=10**6)] = 2
    """First updates that train the value head alone."""


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


class PPO(PolicyGradient):
    """Clipped updates on advantages that a value head estimates, after a warm-up of that head."""

    config_class = PPOConfig
    needs_value = True

    @classmethod
    def param_groups(cls, policy: ActorCritic, config: PPOConfig) -> list[ParamGroup]:
        """Return policy and value head."""
        value = ParamGroup("value", value_parameters(policy), config.value_learning_rate)
        return [*super().param_groups(policy, config), value]

    @classmethod
    def num_warmup_iterations(cls, config: PPOConfig) -> int:
        """Return what the settings say."""
        return config.value_warmup_iterations

    def prepare(self, data: Rollout, generator: torch.Generator) -> None:
        """Estimate advantages and returns by GAE."""
        config = self.config
        data.compute_advantages(gamma=config.gamma, gae_lambda=config.gae_lambda)
        if config.normalize_advantage:
            data.advantages[:] = normalize_advantages(data.advantages, data.valid)

    def terms(self, batch: Batch, evaluation: Evaluation) -> Terms:
        """Return the clipped losses of policy and value."""
        terms = super().terms(batch, evaluation)
        value_loss = clipped_value_loss(
            evaluation.value, batch.values, batch.returns, self.config.value_clip_range
        )
        terms.others = {"value_loss": (value_loss.mean(), self.config.vf_coef)} | terms.others
        return terms

    def summary(self, data: Rollout) -> dict[str, float]:
        """Return the explained variance of the stored values."""
        explained = explained_variance(data.values[data.valid], data.returns[data.valid])
        return {"explained_variance": explained}
