"""Policy gradients without a critic: episodes are judged beside others of the same beginning."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from vla_crl.algos.advantages import GroupEstimate, group_advantages
from vla_crl.algos.policy_gradient import PolicyGradient
from vla_crl.algos.protocols import Batch, Rollout
from vla_crl.config import Settings

logger = logging.getLogger(__name__)

GroupSize = Annotated[int, Interval(ge=2, le=2**16)]


@dataclass(frozen=True, kw_only=True)
class GroupConfig(Settings):
    """Settings of learners whose episodes come in groups."""

    group_size: GroupSize = 8
    """Episodes of a group: one task, one initial state. It divides the environments of a lane."""
    num_resamples: Annotated[int, Interval(ge=0, le=1000)] = 0
    """How often, in an iteration, groups without differing returns are played anew from other
    states, which spends episodes; 0 is never."""
    scale_by_std: bool = True
    """Divide the advantages of a group by the standard deviation of its returns."""


class GroupRelative(PolicyGradient):
    """One advantage an episode: its return beside those of its group, see `group_advantages`.

    Groups whose returns are all equal leave the update altogether, so its means are over what is
    left. They can be replaced before, see `GroupConfig.num_resamples`.
    """

    whole_episodes = True
    episodes_stay_together = False
    _has_warned = False

    @classmethod
    def group_size(cls, config: Any) -> int:
        """Return what the settings say."""
        return config.group_size

    def prepare(self, data: Rollout, generator: torch.Generator) -> None:
        """Estimate advantages by groups; warn where most tell nothing."""
        self._estimate = self._estimated(data)
        data.advantages[:] = self._estimate.advantages
        num, useful = self._estimate.num_groups, self._estimate.num_useful
        if 2 * useful < num and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s iteration %d: in %d of %d groups all episodes have the same return (mean %.2f "
                "over all), so nothing is learnt from them. Where the policy hardly ever succeeds, "
                "begin with a better one or learn by PPO; else raise learner.group_size or "
                "learner.num_resamples. Said once a stage; see useful_groups in metrics.jsonl",
                self.name, self.iteration, num - useful, num,
                float(data.episode_returns[data.valid].nanmean()),
            )  # fmt: skip

    def unused_slots(self, rollout: Rollout, times: int) -> Tensor:
        """Return those of groups whose returns are all equal."""
        if times >= self.config.num_resamples:
            return super().unused_slots(rollout, times)
        counted = self._estimated(rollout).counted.any(dim=0)
        return (~counted).nonzero().flatten().cpu()

    def minibatches(self, data: Rollout, generator: torch.Generator) -> Iterator[Batch]:
        """Yield what counts."""
        return data.minibatches(
            self.config.minibatch_size,
            generator,
            chosen=self._estimate.counted,
            whole_episodes=self.episodes_stay_together,
        )

    def summary(self, data: Rollout) -> dict[str, float]:
        """Return the part of the groups that told something."""
        return {"useful_groups": self._estimate.num_useful / max(self._estimate.num_groups, 1)}

    def _estimated(self, rollout: Rollout) -> GroupEstimate:
        return group_advantages(
            rollout.episode_returns,
            rollout.groups,
            rollout.episodes,
            rollout.valid,
            scale=self.config.scale_by_std,
        )
