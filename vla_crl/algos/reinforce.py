"""REINFORCE (Williams 1992): log-probabilities weighted by what followed, nothing clipped.

The gradient is taken through the ratio to the collecting policy, so that steps after the first of
an update stay unbiased; in the first it is exactly that of -A log pi.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval

from vla_crl.algos.advantages import discounted_returns, normalize_advantages
from vla_crl.algos.policy_gradient import PolicyGradient, RegularizedConfig
from vla_crl.algos.protocols import Rollout
from vla_crl.algos.ratios import Ratio
from vla_crl.config import Fraction


@dataclass(frozen=True, kw_only=True)
class REINFORCEConfig(RegularizedConfig):
    """Settings of `REINFORCE`."""

    kind: str = "reinforce"
    """Learning rule."""
    num_epochs: Annotated[int, Interval(ge=1, le=1000)] = 1
    """Passes over the rollout in one update."""
    gamma: Fraction = 0.99
    """Discount per chunk, not per control step."""
    normalize_advantage: bool = True
    """Subtract the mean of the returns of the whole rollout, and divide by their deviation."""


class REINFORCE(PolicyGradient):
    """Weigh every chunk by the discounted return that followed it; no value head."""

    config_class = REINFORCEConfig
    whole_episodes = True

    @property
    def ratio(self) -> Ratio:
        """That of the chunk."""
        return "chunk"

    @property
    def clip(self) -> None:
        """No limits."""
        return

    def prepare(self, data: Rollout, generator: torch.Generator) -> None:
        """Take returns as advantages."""
        returns = discounted_returns(data.rewards, data.valid, self.config.gamma)
        data.returns[:] = data.advantages[:] = returns
        if self.config.normalize_advantage:
            data.advantages[:] = normalize_advantages(returns, data.valid)
