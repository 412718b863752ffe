"""Bins of all numbers of a chunk at once, in one pass of the backbone behind the context.

After OpenVLA-OFT, arXiv 2502.19645, section IV: placeholder tokens stand for the actions and see
the context and one another in both directions. Deviation: a token stands for an action, not for a
number, so a chunk takes H tokens instead of H times A.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vla_crl.models.context import Context
from vla_crl.models.heads.bins import BinConfig, BinHead, choose
from vla_crl.models.heads.head import HeadConfig, HeadSizes, Sampled


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(BinConfig):
    """Settings of the parallel head."""

    kind: str = "parallel"
    """Name of the head."""


class ParallelHead(BinHead):
    """A learned token for each action; the numbers of a chunk are independent given the context."""

    config_class: ClassVar[type[HeadConfig]] = ParallelConfig

    def __init__(self, config: ParallelConfig, sizes: HeadSizes) -> None:
        """Build tokens and output."""
        super().__init__(config, sizes)
        width = sizes.backbone.width
        self.queries = nn.Parameter(0.02 * torch.randn(sizes.action_horizon, width))
        self.output = nn.Linear(width, sizes.num_numbers * config.num_bins)

    def sample(
        self, context: Context, *, deterministic: bool, generator: torch.Generator | None
    ) -> Sampled:
        """Choose all bins at once."""
        logits, uniform = self._all_logits(context), None
        if not deterministic:
            uniform = torch.rand(logits.shape[:-1], generator=generator).to(logits.device)
        return self._sampled(choose(logits, self.config.temperature, uniform), logits)

    def logits(self, context: Context, bins: Tensor) -> Tensor:
        """Return [B, h, A, bins], whatever the bins are."""
        return self._all_logits(context)[:, : bins.shape[1]]

    def _all_logits(self, context: Context) -> Tensor:
        tokens = self.queries.expand(len(context), -1, -1)
        hidden = self.extend(context, tokens, causal=False)
        return self.output(hidden).unflatten(-1, (self.sizes.num_numbers, self.config.num_bins))
