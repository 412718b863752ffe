"""Success-weighted behaviour cloning: the policy imitates its own episodes that succeeded.

Self-imitation (Oh et al. 2018, arXiv 1806.05635) with the outcome of the episode in the place of
the advantage; also known as filtered behaviour cloning.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval

from vla_crl.algos.learner import Learner, LearnerConfig, Terms
from vla_crl.algos.protocols import Batch, Rollout
from vla_crl.algos.ratios import kl_estimate
from vla_crl.config import Fraction
from vla_crl.density import Evaluation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CloningConfig(LearnerConfig):
    """Settings of `Cloning`."""

    kind: str = "cloning"
    """Learning rule."""
    num_epochs: Annotated[int, Interval(ge=1, le=1000)] = 2
    """Passes over the rollout in one update."""
    loss: Literal["likelihood", "imitation"] = "likelihood"
    """What makes chunks likely again: minus the log-density of how they were sampled, or the head's
    supervised loss of their actions. That of a flow also learns the exploration noise in them."""
    failure_weight: Fraction = 0.0
    """Weight of the chunks of episodes that failed, beside 1 of those that succeeded."""
    target_kl: Annotated[float, Interval(gt=0, le=1e6)] | None = None
    """A minibatch with a larger KL from the collecting policy ends the update before its step;
    None is off."""


class Cloning(Learner):
    """Imitate the policy's own successful episodes, chunk by chunk; no value head."""

    config_class = CloningConfig
    whole_episodes = True
    _has_warned = False

    def minibatches(self, data: Rollout, generator: torch.Generator) -> Iterator[Batch]:
        """Yield the chunks that weigh anything."""
        chosen = data.successes == 1 if self.config.failure_weight == 0 else data.valid
        if not chosen.any() and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s iteration %d: no episode succeeded, so there is nothing to imitate. Begin with "
                "a better policy, learn by PPO, or set learner.failure_weight. Said once a stage",
                self.name, self.iteration,
            )  # fmt: skip
        return data.minibatches(self.config.minibatch_size, generator, chosen=chosen)

    def terms(self, batch: Batch, evaluation: Evaluation) -> Terms:
        """Return the loss of each chunk, weighted by how its episode ended."""
        log_prob = evaluation.density.log_prob()
        if self.config.loss == "imitation":
            everywhere = torch.ones_like(batch.actions[..., 0], dtype=torch.bool)
            loss = self.policy.imitation(batch.context, batch.actions, everywhere, self.generator)
        else:
            loss = -log_prob.sum(dim=1)
        weights = torch.where(batch.success == 1, 1.0, self.config.failure_weight)
        kl = kl_estimate((log_prob - batch.log_probs).detach())
        return Terms(weights * loss, metrics={"kl": kl})

    def is_far(self, numbers: Mapping[str, float]) -> bool:
        """Compare the KL with its limit."""
        limit = self.config.target_kl
        return limit is not None and numbers["kl"] > limit
