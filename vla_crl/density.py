"""Distributions of what was sampled for a chunk of actions, in parts, as every action head has one.

A sample falls into P parts that are conditionally independent given what the head was told: the
one stochastic step of a flow (P = 1), all steps of a noisy flow, or the tokens of a chunk. What
never reached the world, such as actions behind the execution horizon, is in no part.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vla_crl.errors import SpecError
from vla_crl.rows import Rows


class Density(Rows, ABC):
    """Of B samples; `detach`, indexing and `flatten` are those of `Rows`, so it can be stored."""

    @abstractmethod
    def log_prob(self) -> Tensor:
        """Return [B, P] the log-density of each part of the samples; 0 where there is no part."""

    @abstractmethod
    def kl(self, other: Any) -> Tensor:
        """Return [B] KL(self || other) in closed form, summed over the parts.

        Args:
            other: Of the same kind, of the same samples.

        Raises:
            SpecError: It is of another kind or shape.
        """

    @abstractmethod
    def entropy(self) -> Tensor:
        """Return [B], summed over the parts."""

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """What the policy says about the samples, with the graph, each [B, P, ...]."""

    @property
    def parts(self) -> Tensor:
        """[B, P] bool, False where there is no part."""
        return torch.ones_like(self.log_prob(), dtype=torch.bool)

    def _require_like(self, other: Any) -> None:
        mine, its = self._shape(), other._shape() if isinstance(other, Density) else ()
        if type(other) is not type(self) or mine != its:
            raise SpecError(
                f"KL of a {type(self).__name__} of shape {mine} from a {type(other).__name__} "
                f"{its}: both have to be of one head and of the same samples"
            )

    def _shape(self) -> tuple[int, ...]:
        return tuple(next(iter(self.parameters.values())).shape)


@dataclass(frozen=True)
class GaussianDensity(Density):
    """Independent normal numbers.

    Attributes:
        sample: [B, P, ...].
        mean: Same shape.
        std: The same, or with 1 where it does not vary.
    """

    sample: Tensor
    mean: Tensor
    std: Tensor

    def log_prob(self) -> Tensor:
        """Return [B, P], summed over the numbers of a part."""
        deviation = (self.sample - self.mean) / self.std
        density = -0.5 * deviation.square() - torch.log(self.std) - 0.5 * math.log(2.0 * math.pi)
        return density.flatten(2).sum(dim=2)

    def kl(self, other: "GaussianDensity") -> Tensor:
        """Return [B] the sum of log(s'/s) + (s^2 + (m - m')^2) / (2 s'^2) - 1/2."""
        self._require_like(other)
        ratio = self.std / other.std
        distance = (self.mean - other.mean) / other.std
        numbers = 0.5 * (ratio.square() + distance.square() - 1.0) - torch.log(ratio)
        return numbers.flatten(1).sum(dim=1)

    def entropy(self) -> Tensor:
        """Return [B] the sum of log(s) + (1 + log(2 pi)) / 2."""
        numbers = torch.log(self.std) + 0.5 * (1.0 + math.log(2.0 * math.pi))
        return numbers.expand_as(self.mean).flatten(1).sum(dim=1)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Mean and standard deviation."""
        return {"mean": self.mean, "std": self.std}


@dataclass(frozen=True)
class CategoricalDensity(Density):
    """One of V tokens in each part.

    Attributes:
        sample: [B, P] int64 chosen tokens.
        logits: [B, P, V], of the distribution that was sampled from: after the temperature.
        mask: [B, P] bool, False where there is no part, e.g. behind the end of a sequence.
    """

    sample: Tensor
    logits: Tensor
    mask: Tensor

    def log_prob(self) -> Tensor:
        """Return [B, P]."""
        log_probs = functional.log_softmax(self.logits, dim=-1)
        return self._valid(log_probs.gather(-1, self.sample[..., None]).squeeze(-1))

    def kl(self, other: "CategoricalDensity") -> Tensor:
        """Return [B] the sum of p (log p - log p')."""
        self._require_like(other)
        own = functional.log_softmax(self.logits, dim=-1)
        log_ratio = own - functional.log_softmax(other.logits, dim=-1)
        return self._valid((own.exp() * log_ratio).sum(dim=-1)).sum(dim=-1)

    def entropy(self) -> Tensor:
        """Return [B] the sum of -p log p."""
        own = functional.log_softmax(self.logits, dim=-1)
        return self._valid(-(own.exp() * own).sum(dim=-1)).sum(dim=-1)

    @property
    def parts(self) -> Tensor:
        """The mask."""
        return self.mask

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Logits."""
        return {"logits": self.logits}

    def _valid(self, parts: Tensor) -> Tensor:
        return parts.masked_fill(~self.mask, 0.0)


@dataclass(frozen=True)
class Evaluation:
    """What a policy says today about chunks that it, or another one, has chosen.

    Attributes:
        density: Of the chunks' traces.
        value: [B] of the observations.
    """

    density: Density
    value: Tensor
