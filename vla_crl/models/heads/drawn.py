"""Heads whose chance can be drawn before they sample, as a program without this package needs."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch

from vla_crl.models.context import Context
from vla_crl.models.heads.head import ActionHead, Sampled
from vla_crl.rows import Rows


class DrawnHead(ActionHead):
    """A head that samples chunks from a context and numbers drawn on the CPU.

    `vla-crl export --torch-export` makes programs of such heads: they take the numbers as inputs.

    Attributes:
        draws_class: What is drawn; its fields are tensors, in order inputs of a program. The first
            is [B, H, A], zeros where nothing is left to chance.
    """

    draws_class: ClassVar[type[Rows]]

    def sample(
        self, context: Context, *, deterministic: bool, generator: torch.Generator | None
    ) -> Sampled:
        """Draw, and walk."""
        draws = self.draw(len(context), generator, deterministic=deterministic)
        return self.walk(context, draws.to(context.features.device))

    @abstractmethod
    def draw(
        self, num_rows: int, generator: torch.Generator | None, *, deterministic: bool
    ) -> Rows:
        """Draw all that is random in B chunks, on the CPU; without noise where deterministic."""

    @abstractmethod
    def walk(self, context: Context, draws: Any) -> Sampled:
        """Sample chunks for B contexts with what was drawn for them."""

    def chunk_shape(self, num_rows: int) -> tuple[int, int, int]:
        """Return [B, H, A] of B chunks."""
        return num_rows, self.sizes.action_horizon, self.sizes.num_numbers
