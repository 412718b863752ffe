"""Supervised training of a VLA: weighted losses, warm-up and cosine schedule, clipped Adam."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Interval, MinLen
from torch import Tensor, nn

from vla_crl.config import Count, Fraction, Settings, Size


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(Settings):
    """Optimisation settings."""

    num_updates: Count
    """Optimiser steps."""
    batch_size: Size = 32
    """Samples per step."""
    learning_rate: Annotated[float, Interval(gt=0, le=1)] = 1e-3
    """Peak of the schedule."""
    num_warmup_updates: Annotated[int, Interval(ge=0, le=10**9)] = 200
    """Linear rise from zero."""
    final_fraction: Fraction = 0.05
    """The cosine ends at this fraction of the peak."""
    max_grad_norm: Annotated[float, Interval(gt=0, le=1e12)] = 1.0
    """Gradient clipping."""
    loss_weights: Annotated[dict[str, Annotated[float, Interval(gt=0, le=1e6)]], MinLen(1)] = field(
        default_factory=lambda: {
            "imitation": 1.0,
            "action_tokens": 1.0,
            "answer_tokens": 1.0,
            "pointer": 1.0,
            "presence": 5.0,
            "offset": 1.0,
            "named_offset": 1.0,
        }
    )
    """Weight of each loss; a loss that is not named is not computed."""


class SupervisedLearner:
    """Applies one update per call; the caller computes the losses."""

    def __init__(self, model: nn.Module, config: SupervisedConfig) -> None:
        """Prepare Adam for all trainable parameters of `model`."""
        self.config = config
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(
            self._parameters, lr=config.learning_rate, betas=(0.9, 0.98), fused=True
        )
        self._num_done = 0

    def learning_rate(self) -> float:
        """Return the rate of the next update: linear warm-up, then half a cosine."""
        config = self.config
        if self._num_done < config.num_warmup_updates:
            return config.learning_rate * (self._num_done + 1) / config.num_warmup_updates
        span = max(config.num_updates - config.num_warmup_updates, 1)
        phase = min((self._num_done - config.num_warmup_updates) / span, 1.0)
        cosine = 0.5 * (1.0 + math.cos(math.pi * phase))
        return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)

    def update(self, losses: Mapping[str, Tensor]) -> float:
        """Take one step on the weighted sum and return it.

        Raises:
            FloatingPointError: The sum is not finite; no weight has been changed.
        """
        total = torch.stack(
            [self.config.loss_weights[name] * loss for name, loss in losses.items()]
        ).sum()
        if not torch.isfinite(total):
            values = ", ".join(f"{name} {loss.item():.3g}" for name, loss in losses.items())
            raise FloatingPointError(
                f"supervised update {self._num_done}: loss is not finite ({values})"
            )
        self._optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self._optimizer.step()
        self._num_done += 1
        return total.item()
