"""What goes into the backbone for one batch of observations, and what it leaves behind."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import torch
from annotated_types import Interval
from torch import Tensor

from vla_crl.rows import Rows

Insulation = Literal["full", "none"] | Annotated[float, Interval(gt=0, lt=1)]


@dataclass(frozen=True)
class TokenizedObservation(Rows):
    """B observations as tensors on the policy's device, the sentences as numbers.

    Attributes:
        images: [B, C, H, W, 3] uint8.
        state: [B, S] raw state.
        token_ids: [B, W] int64 from the policy's tokenizer.
        word_mask: [B, W] bool.
    """

    images: Tensor
    state: Tensor
    token_ids: Tensor
    word_mask: Tensor

    def compact(self) -> Self:
        """Return views without the words that none of the rows has."""
        if torch.compiler.is_exporting():  # a program's shapes cannot depend on what it is given
            return self
        num_words = int(self.word_mask.sum(dim=1).max())
        return replace(
            self, token_ids=self.token_ids[:, :num_words], word_mask=self.word_mask[:, :num_words]
        )


@dataclass(frozen=True)
class Context(Rows):
    """Keys and values of the prefix: all that action expert and value head ever read.

    Their layers lie one after the other in memory, so that nothing is copied to read one. L is that
    of the longest instruction allowed, whatever the instructions are; padding comes last.

    Attributes:
        keys: [B, layers, kv_heads, L, head_dim], after the rotary embedding.
        values: Same shape.
        padding_mask: [B, L] bool, True at valid prefix tokens.
        next_position: [B] int64, first free position = number of valid prefix tokens.
        features: [B, F] mean over the valid tokens of the last hidden state, then the state
            token's last hidden state; for the value head.
    """

    keys: Tensor
    values: Tensor
    padding_mask: Tensor
    next_position: Tensor
    features: Tensor

    def compact(self) -> Self:
        """Return views without the padding that none of the rows needs."""
        if torch.compiler.is_exporting():
            return self
        length = int(self.next_position.max())
        return replace(
            self,
            keys=self.keys[..., :length, :],
            values=self.values[..., :length, :],
            padding_mask=self.padding_mask[:, :length],
        )

    def insulate(self, insulation: Insulation) -> Self:
        """Return the same values with the gradient to the backbone stopped, kept or scaled.

        Knowledge insulation, arXiv 2505.23705, eq. 5-6: the action expert reads sg(K) and sg(V).
        No prefix token attends to it, so detaching both here equals the paper's stop inside the
        joint attention. A number g in (0, 1) scales the gradient: g z + (1 - g) sg(z).
        """
        if insulation == "none":
            return self
        if insulation == "full":
            return replace(self, keys=self.keys.detach(), values=self.values.detach())
        return replace(
            self,
            keys=_scale_gradient(self.keys, insulation),
            values=_scale_gradient(self.values, insulation),
        )


def _scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    stopped = tensor.detach()
    # Written as a difference that is exactly zero, so that the forward value does not change.
    return stopped + factor * (tensor - stopped)
