"""On-policy distillation: a teacher judges what the student does, on the student's own rollouts.

VLA-OPD (arXiv 2603.26666), reverse KL: each part of a sample has the advantage

    A_t = log pi_T(a_t | s_t) - sg[log pi_S(a_t | s_t)]

in a clipped policy loss; pi_S is the collecting student. The hybrid with reward takes it where an
episode failed and the advantage of its group where that succeeded:

    A = g A_group + (1 - g) lambda Norm(log pi_T - log pi_S),        g = 1[return > 0]

where Norm brings the rollout's to mean 0 and standard deviation 1. `exact` minimises
KL(student || teacher) itself, in closed form, at what the student has seen and sampled.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from vla_crl.algos.advantages import group_advantages
from vla_crl.algos.learner import Terms
from vla_crl.algos.policy_gradient import ClipConfig, PolicyGradient
from vla_crl.algos.protocols import Batch, Rollout
from vla_crl.algos.ratios import Ratio
from vla_crl.density import Density, Evaluation
from vla_crl.errors import ConfigError

ALL_CHUNKS = 1024
"""Chunks that the teacher looks at together, before the update."""


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(ClipConfig):
    """Settings of `Distillation`."""

    kind: str = "distillation"
    """Learning rule."""
    teacher: str
    """Policy that teaches: "base" (without adapters), "previous_task" (as the stage began with it)
    or a checkpoint's folder, of the same robot and head."""
    exact: bool = False
    """Minimise the KL from the teacher in closed form, in the place of a policy gradient."""
    group_size: Annotated[int, Interval(ge=1, le=2**16)] = 1
    """Episodes of a group: one task, one initial state. Above 1 is the hybrid with reward."""
    teacher_coef: Annotated[float, Interval(gt=0, le=1e6)] = 0.3
    """Lambda of the hybrid."""
    num_epochs: Annotated[int, Interval(ge=1, le=1000)] = 2
    """Passes over the rollout in one update."""

    def __post_init__(self) -> None:
        """Check what the settings demand of each other."""
        super().__post_init__()
        if self.exact and self.group_size > 1:
            raise ConfigError(
                f"exact = true and group_size = {self.group_size}: the exact KL knows no reward; "
                "leave one of them out"
            )


class Distillation(PolicyGradient):
    """Learn of the policy's own episodes what a teacher says about them; no value head."""

    config_class = DistillationConfig
    whole_episodes = True

    @property
    def ratio(self) -> Ratio:
        """That of each part, as each has an advantage of its own."""
        return "part"

    @classmethod
    def group_size(cls, config: DistillationConfig) -> int:
        """Return what the settings say."""
        return config.group_size

    @classmethod
    def reference_of(cls, config: DistillationConfig) -> str:
        """Return the teacher."""
        return config.teacher

    @property
    def is_hybrid(self) -> bool:
        """Whether reward teaches too."""
        return self.config.group_size > 1

    def prepare(self, data: Rollout, generator: torch.Generator) -> None:
        """In the hybrid: estimate advantages by groups, and mean and deviation of the teacher's."""
        self._chosen = data.valid
        if not self.is_hybrid:
            return
        estimate = group_advantages(
            data.episode_returns, data.groups, data.episodes, data.valid, scale=True
        )
        data.advantages[:] = estimate.advantages
        # A success beside successes alone has an advantage of 0 from both: it does not count.
        self._chosen = estimate.counted | (data.episode_returns <= 0)
        gaps = [
            self._gap(batch, density)[density.parts]
            for batch in data.minibatches(ALL_CHUNKS, torch.Generator())
            for density in [self._teacher(batch)]
        ]
        self._std, self._mean = torch.std_mean(torch.cat(gaps), correction=0)

    def minibatches(self, data: Rollout, generator: torch.Generator) -> Iterator[Batch]:
        """Yield what counts."""
        size = self.config.minibatch_size
        return data.minibatches(size, generator, chosen=self._chosen)

    def terms(self, batch: Batch, evaluation: Evaluation) -> Terms:
        """Return the loss of each chunk."""
        teacher = self._teacher(batch)
        gap = advantages = self._gap(batch, teacher)
        if self.is_hybrid:
            told = (gap - self._mean) / (self._std + 1e-8)
            is_success = (batch.episode_return > 0)[:, None]
            advantages = torch.where(
                is_success, batch.advantages[:, None], self.config.teacher_coef * told
            )
        terms = self.clipped_terms(batch, evaluation.density, advantages)
        if self.config.exact:
            terms.policy_loss = evaluation.density.kl(teacher)
        terms.metrics["teacher_gap"] = gap.sum(dim=1).mean()
        return terms

    def _teacher(self, batch: Batch) -> Density:
        assert self.reference is not None  # the base class has asked for one
        return self.reference(batch)

    def _gap(self, batch: Batch, teacher: Density) -> Tensor:
        """Return [B, P] log pi_T - log pi_S; its mean is minus the KL from the teacher."""
        return teacher.log_prob() - batch.log_probs
