"""Bins one after another, each with a token of its own: autoregressive actions.

After OpenVLA, arXiv 2406.09246, section 3.2: every number of an action is a bin, and the backbone
predicts the next one from the context and all bins before. Deviations: equal bins of [-1, 1]
instead of quantiles of the data, embeddings of their own instead of seldom used words, and, as the
context is stored, several actions a context.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_crl.models.backbone import Past
from vla_crl.models.context import Context
from vla_crl.models.heads.bins import BinConfig, BinHead, choose
from vla_crl.models.heads.head import HeadConfig, HeadSizes, Sampled


@dataclass(frozen=True, kw_only=True)
class TokensConfig(BinConfig):
    """Settings of the tokens head."""

    kind: str = "tokens"
    """Name of the head."""


class TokensHead(BinHead):
    """A token says which bin was chosen last and which number comes next."""

    config_class: ClassVar[type[HeadConfig]] = TokensConfig

    def __init__(self, config: TokensConfig, sizes: HeadSizes) -> None:
        """Build embeddings and output."""
        super().__init__(config, sizes)
        width, length = sizes.backbone.width, sizes.action_horizon * sizes.num_numbers
        self.numbers = nn.Parameter(0.02 * torch.randn(length, width))
        self.bins = nn.Parameter(0.02 * torch.randn(config.num_bins, width))
        self.output = nn.Linear(width, config.num_bins)

    def sample(
        self, context: Context, *, deterministic: bool, generator: torch.Generator | None
    ) -> Sampled:
        """Choose one bin after another; keys and values of those before are kept."""
        shape = len(context), self.sizes.action_horizon, self.sizes.num_numbers
        uniform = None if deterministic else torch.rand(shape, generator=generator).flatten(1)
        uniform = None if uniform is None else uniform.to(context.keys.device)
        past, bins, logits = Past(), list[Tensor](), list[Tensor]()
        for index in range(len(self.numbers)):
            token = self.numbers[index].expand(len(context), -1)
            token = token + self.bins[bins[-1]] if bins else token
            hidden = self.extend(context, token[:, None], causal=True, past=past)
            logits.append(self.output(hidden[:, 0]))
            drawn = None if uniform is None else uniform[:, index]
            bins.append(choose(logits[-1], self.config.temperature, drawn))
        chosen = torch.stack(bins, dim=1).unflatten(1, shape[1:])
        return self._sampled(chosen, torch.stack(logits, dim=1).unflatten(1, shape[1:]))

    def logits(self, context: Context, bins: Tensor) -> Tensor:
        """Return [B, h, A, bins], for each bin of what comes before it, in one pass."""
        flat = bins.flatten(1)
        before = functional.pad(self.bins[flat[:, :-1]], (0, 0, 1, 0))
        tokens = self.numbers[: flat.shape[1]] + before
        hidden = self.extend(context, tokens, causal=True)
        return self.output(hidden).unflatten(1, bins.shape[1:])
