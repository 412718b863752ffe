"""A Gaussian around a chunk that the action expert tells in one pass.

The classical policy of continuous control, as in stable-baselines3: a mean for each number, and a
deviation that is learnt but does not depend on what is seen. With one pass of the expert it acts as
fast as a chunk can be had, and its supervised loss is that of ACT (arXiv 2304.13705), |a_hat - a|.
"""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor, nn

from vla_crl.density import GaussianDensity
from vla_crl.models.action_expert import ActionExpertConfig
from vla_crl.models.context import Context
from vla_crl.models.heads.drawn import DrawnHead
from vla_crl.models.heads.flow import denoise, make_expert
from vla_crl.models.heads.head import HeadConfig, HeadSizes, Sampled
from vla_crl.rows import Rows


@dataclass(frozen=True, kw_only=True)
class GaussianConfig(HeadConfig):
    """Training and sampling of a Gaussian."""

    kind: str = "gaussian"
    """Name of the head."""
    std: Annotated[float, Interval(gt=0, le=100)] = 0.3
    """Deviation of every number before reward has changed it, in normalised actions. What is learnt
    is a factor for each number of an action, 1 at first, so another `std` scales them all."""
    expert: ActionExpertConfig = field(default_factory=ActionExpertConfig)
    """Action expert."""


@dataclass(frozen=True)
class GaussianTrace(Rows):
    """A sampled chunk.

    Attributes:
        actions: [B, H, A], normalised.
    """

    actions: Tensor


@dataclass(frozen=True)
class GaussianDraws(Rows):
    """All that is random in a chunk.

    Attributes:
        noise: [B, H, A] standard normal numbers, or zeros for the mean.
    """

    noise: Tensor


class GaussianHead(DrawnHead):
    """An action expert asked once, with nothing (x = 0) at the noisy end of the flow (t = 1)."""

    config_class: ClassVar[type[HeadConfig]] = GaussianConfig
    draws_class: ClassVar[type[Rows]] = GaussianDraws
    exploration: ClassVar[tuple[str, ...]] = ("std",)
    exploration_parameters: ClassVar[tuple[str, ...]] = ("log_factor",)

    def __init__(self, config: GaussianConfig, sizes: HeadSizes) -> None:
        """Build the expert.

        Raises:
            ConfigError: It does not fit the backbone or the chunks.
        """
        super().__init__(config, sizes)
        self.expert = make_expert(config.expert, sizes)
        self.log_factor = nn.Parameter(torch.zeros(sizes.num_numbers))

    def draw(
        self, num_rows: int, generator: torch.Generator | None, *, deterministic: bool
    ) -> GaussianDraws:
        """Draw the noise of all numbers."""
        shape = self.chunk_shape(num_rows)
        noise = torch.zeros(shape) if deterministic else torch.randn(shape, generator=generator)
        return GaussianDraws(noise)

    def walk(self, context: Context, draws: GaussianDraws) -> Sampled:
        """Add the noise to the mean."""
        mean, std = self._mean(context, draws.noise), self._std()
        trace = GaussianTrace(mean + std * draws.noise)
        return Sampled(trace.actions, trace, self._density(trace, mean, std))

    def density(self, context: Context, trace: GaussianTrace) -> GaussianDensity:
        """Run the expert once."""
        return self._density(trace, self._mean(context, trace.actions), self._std())

    def imitation(
        self, context: Context, actions: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return |a_hat - a|, the mean over numbers."""
        return (self._mean(context, actions) - actions).abs().mean(dim=-1)

    def _mean(self, context: Context, like: Tensor) -> Tensor:
        """Return the mean of chunks of the shape of `like`, [B, H, A]."""
        x = torch.zeros_like(like)
        return denoise(self.expert, self.expert.remember(context), x, torch.ones_like(x[:, 0, 0]))

    def _std(self) -> Tensor:
        """Return the deviation [A] of each number of an action."""
        return self.config.std * self.log_factor.exp()

    def _density(self, trace: GaussianTrace, mean: Tensor, std: Tensor) -> GaussianDensity:
        """Return one part of the executed actions."""
        executed = self.sizes.execution_horizon
        sample, mean = (x[:, None, :executed] for x in (trace.actions, mean))
        return GaussianDensity(sample, mean, std.expand_as(mean[:, :, :1]))
