"""Policy gradients with a clipped probability ratio: what PPO, GRPO, GSPO and REINFORCE share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from vla_crl.algos.learner import Learner, LearnerConfig, Terms
from vla_crl.algos.protocols import Batch
from vla_crl.algos.ratios import (
    Ratio,
    chunk_ratio,
    kl_estimate,
    part_weights,
    sequence_ratio,
)
from vla_crl.density import Density, Evaluation
from vla_crl.errors import ConfigError

Clip = Annotated[float, Interval(gt=0, le=1e6)]
Coefficient = Annotated[float, Interval(ge=0, le=1e6)]


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig(LearnerConfig):
    """Settings of every policy gradient."""

    target_kl: Annotated[float, Interval(gt=0, le=1e6)] | None = 0.1
    """A minibatch with a larger KL from the collecting policy ends the update before its step;
    None is off."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig(PolicyGradientConfig):
    """Settings of those that clip the ratio."""

    clip_low: Clip = 0.2
    """How far the probability ratio may fall below 1 before its gradient stops."""
    clip_high: Clip = 0.2
    """How far it may rise above 1."""


@dataclass(frozen=True, kw_only=True)
class RegularizedConfig(PolicyGradientConfig):
    """Settings of those that may reward entropy and nearness to another policy."""

    entropy_coef: Coefficient = 0.0
    """Weight of the entropy that is rewarded. For heads whose noise is learnt, or of tokens."""
    kl_coef: Coefficient = 0.0
    """Weight of the KL from `reference`, which is evaluated anew in every minibatch."""
    reference: str | None = None
    """Policy that is not to be left: "base" (without adapters), "previous_task" (as the stage began
    with it) or a checkpoint's folder. Needs kl_coef."""

    def __post_init__(self) -> None:
        """Check that reference and coefficient come together."""
        super().__post_init__()
        if bool(self.kl_coef) != bool(self.reference):
            raise ConfigError(
                f"kl_coef = {self.kl_coef} and reference = {self.reference}: the KL from a "
                "reference takes both; give a coefficient above 0 and a reference, or neither"
            )


@dataclass(frozen=True, kw_only=True)
class RatioConfig(ClipConfig, RegularizedConfig):
    """Settings of those that may clip chunks or their parts."""

    ratio: Literal["chunk", "part"] = "chunk"
    """What has a ratio of its own: the whole chunk, or each part of its density, such as a token.
    The same where there is one part, as with the head "flow"."""


def clipped_policy_loss(
    ratio: Tensor, advantages: Tensor, clip: tuple[float, float] | None
) -> Tensor:
    """Return the negated clipped objective (arXiv 1707.06347, eq. 7).

    Args:
        ratio: [...] pi_new / pi_old.
        advantages: The same, or what is broadcast to it.
        clip: How far below and above 1 the ratio may be; None is no clipping.
    """
    loss = -advantages * ratio
    if clip is None:
        return loss
    low, high = clip
    return torch.maximum(loss, -advantages * ratio.clamp(1 - low, 1 + high))


class PolicyGradient(Learner):
    """A subclass says how advantages are estimated, in `prepare`; and what else differs."""

    @property
    def ratio(self) -> Ratio:
        """What has a probability ratio of its own."""
        return self.config.ratio

    @property
    def clip(self) -> tuple[float, float] | None:
        """Limits of the ratio, below and above 1."""
        return self.config.clip_low, self.config.clip_high

    @classmethod
    def reference_of(cls, config: Any) -> str | None:
        """Return what the settings say."""
        return config.reference if isinstance(config, RegularizedConfig) else None

    def terms(self, batch: Batch, evaluation: Evaluation) -> Terms:
        """Return the clipped loss of each chunk, and what the settings add to it."""
        terms = self.clipped_terms(batch, evaluation.density, batch.advantages[:, None])
        if isinstance(self.config, RegularizedConfig):
            terms.others = self._regularization(self.config, batch, evaluation.density)
        return terms

    def clipped_terms(self, batch: Batch, density: Density, advantages: Tensor) -> Terms:
        """Return the clipped loss of each chunk.

        Args:
            batch: B chunks.
            density: What the policy says about them now.
            advantages: [B, 1], or [B, P] with one for each part.
        """
        log_ratio = density.log_prob() - batch.log_probs
        ratio, weights, parts = self._ratio(log_ratio, density, batch)
        losses = clipped_policy_loss(ratio, advantages, self.clip)
        if weights is not None:
            losses = weights * losses
        return Terms(losses.sum(dim=1), metrics=self._metrics(ratio, log_ratio, parts))

    def is_far(self, numbers: Mapping[str, float]) -> bool:
        """Compare the KL with its limit."""
        limit = self.config.target_kl
        return limit is not None and numbers["kl"] > limit

    def _ratio(
        self, log_ratio: Tensor, density: Density, batch: Batch
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return ratios, what each weighs in its chunk (None: 1), and where there is one."""
        if self.ratio == "chunk":
            ratio = chunk_ratio(log_ratio)
            return ratio, None, torch.ones_like(ratio, dtype=torch.bool)
        if self.ratio == "part":
            return log_ratio.exp(), part_weights(density.parts), density.parts
        return *sequence_ratio(log_ratio, density.parts, batch.episode), density.parts

    def _metrics(self, ratio: Tensor, log_ratio: Tensor, parts: Tensor) -> dict[str, Tensor]:
        above = ratio - 1
        metrics = {
            "kl": kl_estimate(log_ratio),
            "ratio_error": above.abs().max(),
        }
        if self.clip is not None:
            is_clipped = ((above > self.clip[1]) | (-above > self.clip[0])) & parts
            metrics["clip_fraction"] = is_clipped.sum() / parts.sum()
        return metrics

    def _regularization(
        self, config: RegularizedConfig, batch: Batch, density: Density
    ) -> dict[str, tuple[Tensor, float]]:
        terms: dict[str, tuple[Tensor, float]] = {}
        if config.kl_coef and self.reference is not None:
            terms["reference_kl"] = density.kl(self.reference(batch)).mean(), config.kl_coef
        if config.entropy_coef:
            entropy = density.entropy().mean()
            if not entropy.requires_grad:
                raise ConfigError(
                    f"{self.name}: entropy_coef is {config.entropy_coef}, but the noise of this "
                    "policy's head is fixed, so that its entropy cannot be learnt; leave it out, "
                    "or choose a head with learnt noise or of tokens"
                )
            terms["entropy"] = entropy, -config.entropy_coef
        return terms
