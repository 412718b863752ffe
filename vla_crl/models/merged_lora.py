"""A layer that adds a low-rank adapter to its weights instead of to its output."""

from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.nn import functional

MAX_MERGED_NUMBERS = 2**16
"""Of a layer's weights. In a wider one, adding up weights, and their whole gradient, would take
longer than the narrow products of the adapter, and much memory."""


class MergedLinear(Linear):
    """A linear layer with an adapter, y = (W + (alpha / rank) B A) x.

    peft computes W x + (alpha / rank) B (A x), which in a narrow layer takes most of the time:
    products of few columns and two more passes over the output. Gradients are the same up to
    rounding.
    """

    kept: tuple[Tensor, Tensor | None] | None = None
    """Weights with the adapter, and biases, where they are known not to change."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map [..., in] to [..., out]."""
        # A sum rounded to bfloat16 would lose the adapter.
        is_exact = x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
        if self.kept is not None and is_exact and not self.disable_adapters:
            return functional.linear(x, *self.kept)
        if self.disable_adapters or not is_exact or not self.is_narrow:
            return super().forward(x, *args, **kwargs)
        return functional.linear(x, self.merged_weight(), self._base.bias)

    def keep(self) -> None:
        """Add up the weights, once until `kept` is None again."""
        if self.is_narrow and not self.disable_adapters:
            with torch.no_grad():
                self.kept = self.merged_weight(), self._base.bias

    @property
    def is_narrow(self) -> bool:
        """Whether it is a layer for which adding up the weights pays."""
        weight = self._base.weight
        return weight.numel() <= MAX_MERGED_NUMBERS and weight.dtype == torch.float32

    def merged_weight(self) -> Tensor:
        """Return W + (alpha / rank) B A, [out, in]."""
        (name,) = self.active_adapters
        down, up = (cast(nn.Linear, layers[name]) for layers in (self.lora_A, self.lora_B))
        return torch.addmm(self._base.weight, up.weight, down.weight, alpha=self.scaling[name])

    @property
    def _base(self) -> nn.Linear:
        return cast(nn.Linear, self.base_layer)
