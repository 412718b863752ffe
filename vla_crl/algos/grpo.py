"""Group relative policy optimisation (DeepSeekMath, arXiv 2402.03300, eq. 3) on action chunks.

Deviations: the KL from a reference is in closed form and off unless asked for; limits of the ratio
below and above 1 are separate (DAPO, arXiv 2503.14476, eq. 10); groups whose returns are all equal
leave numerator and denominator; the mean is over all chunks of a minibatch, not over the mean of
each episode.
"""

from dataclasses import dataclass

from vla_crl.algos.group_relative import GroupConfig, GroupRelative
from vla_crl.algos.policy_gradient import Clip, RatioConfig


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(RatioConfig, GroupConfig):
    """Settings of `GRPO`."""

    kind: str = "grpo"
    """Learning rule."""
    clip_high: Clip = 0.28
    """How far the ratio may rise above 1."""


class GRPO(GroupRelative):
    """Clipped updates on returns relative to episodes of the same beginning; no value head."""

    config_class = GRPOConfig
