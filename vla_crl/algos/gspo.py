"""Group sequence policy optimisation (arXiv 2507.18071, eq. 5 and 13): one ratio an episode."""

from dataclasses import dataclass

from vla_crl.algos.group_relative import GroupConfig, GroupRelative
from vla_crl.algos.policy_gradient import Clip, ClipConfig, RegularizedConfig
from vla_crl.algos.ratios import Ratio


@dataclass(frozen=True, kw_only=True)
class GSPOConfig(ClipConfig, RegularizedConfig, GroupConfig):
    """Settings of `GSPO`."""

    kind: str = "gspo"
    """Learning rule."""
    clip_low: Clip = 0.02
    """How far the ratio of an episode, a geometric mean over its parts, may fall below 1."""
    clip_high: Clip = 0.02
    """How far it may rise above 1."""


class GSPO(GroupRelative):
    """As GRPO, with one ratio an episode, whose chunks stay together in minibatches."""

    config_class = GSPOConfig
    episodes_stay_together = True

    @property
    def ratio(self) -> Ratio:
        """That of the episode."""
        return "sequence"
