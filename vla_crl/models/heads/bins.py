"""Actions as tokens: what heads share that choose a bin of [-1, 1] for every number of a chunk.

Bins are equal and their number odd, so that one is centred on 0: a robot can be told to rest. An
action is the centre of its bin.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional

from vla_crl.density import CategoricalDensity
from vla_crl.errors import ConfigError
from vla_crl.models.context import Context
from vla_crl.models.heads.head import ActionHead, HeadConfig, Sampled
from vla_crl.models.token_heads import to_bins
from vla_crl.rows import Rows


@dataclass(frozen=True, kw_only=True)
class BinConfig(HeadConfig):
    """Settings of a head that chooses bins."""

    num_bins: Annotated[int, Interval(ge=3, le=2**16 - 1)] = 33
    """Bins of [-1, 1] for every number, an odd number."""
    temperature: Annotated[float, Interval(gt=0, le=100)] = 1.0
    """Of sampling: logits are divided by it. Below 1 likely bins become more likely."""

    def __post_init__(self) -> None:
        """Check that a bin is centred on 0."""
        super().__post_init__()
        if self.num_bins % 2 == 0:
            raise ConfigError(
                f"num_bins = {self.num_bins} has no bin for 0, the action of a robot at rest; "
                f"choose an odd number such as {self.num_bins + 1}"
            )


@dataclass(frozen=True)
class BinTrace(Rows):
    """Chosen bins.

    Attributes:
        bins: [B, H, A] int64.
    """

    bins: Tensor


class BinHead(ActionHead):
    """Base of heads that continue the backbone's text model behind the context to choose bins."""

    exploration: ClassVar[tuple[str, ...]] = ("temperature",)
    is_normalized: ClassVar[bool] = False

    @abstractmethod
    def logits(self, context: Context, bins: Tensor) -> Tensor:
        """Return what the head says of bins that were chosen.

        Args:
            context: Of B observations.
            bins: [B, h, A] of the first h actions of chunks, of which a head may look at those
                before each when it says what it thinks of that.

        Returns:
            [B, h, A, bins], before the temperature.
        """

    def density(self, context: Context, trace: BinTrace) -> CategoricalDensity:
        """Return the density of the bins of the executed actions."""
        executed = BinTrace(trace.bins[:, : self.sizes.execution_horizon])
        return self._density(executed, self.logits(context, executed.bins))

    def imitation(
        self, context: Context, actions: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return the cross-entropy of the actions' bins [B, H], the mean over their numbers."""
        bins = to_bins((actions + 1.0) / 2.0, self.config.num_bins)
        logits = self.logits(context, bins)
        return functional.cross_entropy(logits.movedim(-1, 1), bins, reduction="none").mean(dim=-1)

    def _sampled(self, bins: Tensor, logits: Tensor) -> Sampled:
        """Return chosen bins [B, H, A] with the density of those that are executed."""
        num = self.sizes.execution_horizon
        density = self._density(BinTrace(bins[:, :num]), logits[:, :num])
        return Sampled(to_actions(bins, self.config.num_bins), BinTrace(bins), density)

    def _density(self, trace: BinTrace, logits: Tensor) -> CategoricalDensity:
        """Return the density of bins [B, E, A] with logits [B, E, A, bins], before temperature."""
        sample = trace.bins.flatten(1)
        tempered = logits.flatten(1, 2) / self.config.temperature
        return CategoricalDensity(sample, tempered, torch.ones_like(sample, dtype=torch.bool))


def to_actions(bins: Tensor, num_bins: int) -> Tensor:
    """Return the centres, in [-1, 1], of bins of any shape."""
    return (2.0 * bins + 1.0) / num_bins - 1.0


def choose(logits: Tensor, temperature: float, uniform: Tensor | None) -> Tensor:
    """Return bins [...] of logits [..., bins].

    Args:
        logits: Before the temperature.
        temperature: Of sampling.
        uniform: [...] random numbers in [0, 1), one for each choice; None takes the likeliest bin.
    """
    if uniform is None:
        return logits.argmax(dim=-1)
    cumulative = (logits / temperature).softmax(dim=-1).cumsum(dim=-1)
    # Divided by itself the last one is 1 and above every drawn number.
    return (cumulative / cumulative[..., -1:] <= uniform[..., None]).sum(dim=-1)
