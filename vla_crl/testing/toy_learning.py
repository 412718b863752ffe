"""Policies of a few weights and the rollouts that they play, to try learners and methods on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_crl.algos.protocols import LabelledBatch
from vla_crl.density import CategoricalDensity, Density, Evaluation, GaussianDensity
from vla_crl.rollout.storage import RolloutStorage, Step
from vla_crl.rows import Rows

NUM_FEATURES, NUM_ACTIONS, NUM_BINS = 3, 2, 5


@dataclass(frozen=True)
class Features(Rows):
    """What a toy sees, and its context.

    Attributes:
        features: [B, F].
    """

    features: Tensor


@dataclass(frozen=True)
class ToyTrace(Rows):
    """What a toy has sampled.

    Attributes:
        sample: [B, 1, 2] numbers, or [B, 2] int64 tokens.
    """

    sample: Tensor


class Toy(nn.Module, ABC):
    """What toys share: they look at features alone, and of these a linear value head learns."""

    value_head: nn.Linear
    learnt_exploration: tuple[str, ...] = ()

    def encode(self, seen: Features, /) -> Features:
        """Return what is seen."""
        return seen

    def evaluate_actions(self, context: Any, trace: Any, /) -> Evaluation:
        """Return density and value."""
        value = self.value_head(context.features).squeeze(-1)
        return Evaluation(self.density(context, trace), value)

    def imitation(
        self,
        context: Any,
        actions: Tensor,
        mask: Tensor,
        generator: torch.Generator | None = None,
        /,
    ) -> Tensor:
        """Return the supervised loss [B]."""
        return self.imitated(context, actions, mask)

    @torch.no_grad()
    def step(
        self,
        seen: Features,
        trace: ToyTrace,
        *,
        reward: Tensor,
        ends: Tensor,
        success: Tensor,
        task: Tensor,
        episode: Tensor,
        group: Tensor,
    ) -> Step:
        """Return what a rollout keeps of chunks, in episodes with one reward, at the end."""
        context = self.encode(seen)
        found = self.evaluate_actions(context, trace)
        return Step(
            seen=seen, context=context, trace=trace, actions=self.actions(trace),
            log_probs=found.density.log_prob(), values=found.value, reward=reward,
            terminated=ends, truncated=torch.zeros_like(ends), success=success,
            episode_return=reward, task=task, state_id=group, episode=episode, group=group,
        )  # fmt: skip

    @abstractmethod
    def density(self, context: Features, trace: ToyTrace) -> Density:
        """Return the density of traces."""

    @abstractmethod
    def imitated(self, context: Features, actions: Tensor, mask: Tensor) -> Tensor:
        """Return the supervised loss [B] of actions [B, 1, 2]."""

    @abstractmethod
    def sample(self, context: Features, generator: torch.Generator) -> ToyTrace:
        """Draw."""

    @abstractmethod
    def actions(self, trace: ToyTrace) -> Tensor:
        """Return the actions [B, 1, 2] of traces."""


class NormalToy(Toy):
    """Base of toys with normal actions, which are one part."""

    log_std: Tensor

    @abstractmethod
    def mean(self, context: Features) -> Tensor:
        """Return the mean [B, 1, 2] of the actions."""

    def density(self, context: Features, trace: ToyTrace) -> GaussianDensity:
        """Return that of numbers."""
        mean = self.mean(context)
        return GaussianDensity(trace.sample, mean, self.log_std.exp().expand_as(mean))

    @torch.no_grad()
    def sample(self, context: Features, generator: torch.Generator) -> ToyTrace:
        """Draw."""
        mean = self.mean(context)
        noise = torch.randn(mean.shape, generator=generator)
        return ToyTrace(mean + self.log_std.exp() * noise)

    def imitated(self, context: Features, actions: Tensor, mask: Tensor) -> Tensor:
        """Return the squared error of the mean; the size of the noise has no part in it."""
        return ((self.mean(context) - actions).square().mean(dim=2) * mask).mean(dim=1)

    def actions(self, trace: ToyTrace) -> Tensor:
        """Return [B, 1, 2]."""
        return trace.sample


class GaussianToy(NormalToy):
    """Two actions, linear in three features, with noise of a learnt size."""

    learnt_exploration = ("log_std",)

    def __init__(self, seed: int = 0) -> None:
        """Begin near zero."""
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(NUM_FEATURES, NUM_ACTIONS)
        self.log_std = nn.Parameter(torch.full((NUM_ACTIONS,), -1.0))
        self.value_head = nn.Linear(NUM_FEATURES, 1)

    def mean(self, context: Features) -> Tensor:
        """Return [B, 1, 2]."""
        return self.linear(context.features)[:, None]


class TokenToy(Toy):
    """Two tokens of five bins each, with logits linear in three features: two parts."""

    def __init__(self, seed: int = 0) -> None:
        """Begin near equal probabilities."""
        super().__init__()
        torch.manual_seed(seed)
        self.logits = nn.Linear(NUM_FEATURES, NUM_ACTIONS * NUM_BINS)
        self.value_head = nn.Linear(NUM_FEATURES, 1)

    def density(self, context: Features, trace: ToyTrace) -> CategoricalDensity:
        """Return that of bins."""
        everywhere = torch.ones_like(trace.sample, dtype=torch.bool)
        return CategoricalDensity(trace.sample, self._logits(context), everywhere)

    def imitated(self, context: Features, actions: Tensor, mask: Tensor) -> Tensor:
        """Return the cross-entropy of the bins."""
        bins = ((actions[:, 0] + 1.0) / 2.0 * (NUM_BINS - 1)).round().long().clamp(0, NUM_BINS - 1)
        logits = self._logits(context).flatten(0, 1)
        losses = functional.cross_entropy(logits, bins.flatten(), reduction="none")
        return losses.view(bins.shape).mean(dim=1) * mask[:, 0]

    @torch.no_grad()
    def sample(self, context: Features, generator: torch.Generator) -> ToyTrace:
        """Draw."""
        chances = self._logits(context).softmax(dim=-1).flatten(0, 1)
        drawn = torch.multinomial(chances, 1, generator=generator)
        return ToyTrace(drawn.view(len(context), NUM_ACTIONS))

    def actions(self, trace: ToyTrace) -> Tensor:
        """Return [B, 1, 2]: the middles of the bins."""
        return (trace.sample / (NUM_BINS - 1) * 2.0 - 1.0)[:, None]

    def _logits(self, context: Features) -> Tensor:
        return self.logits(context.features).unflatten(1, (NUM_ACTIONS, NUM_BINS))


def target(features: Tensor) -> Tensor:
    """Return the actions [B, 1, 2] that a toy should learn."""
    weights = torch.tensor([[0.5, -0.5, 0.0], [0.0, 0.5, 0.5]])
    return (features @ weights.T)[:, None].clamp(-1.0, 1.0)


def play(
    policy: Toy,
    generator: torch.Generator,
    *,
    num_steps: int = 3,
    num_slots: int = 32,
    group_size: int = 4,
) -> RolloutStorage:
    """Let a toy play one episode in every slot; those of every other group end a chunk earlier.

    All of a group see the same. An episode succeeds, with a reward of 1 at its end, where its
    actions were nearer to `target` than a distance of 1.1 on average.

    Args:
        policy: Acts by sampling.
        generator: Of what is seen and drawn.
        num_steps: T, at least 2.
        num_slots: N, a multiple of the group size.
        group_size: Slots that see the same.
    """
    group = torch.arange(num_slots) // group_size
    length = num_steps - group % 2
    distance, storage = torch.zeros(num_slots), None
    for step in range(num_steps):
        slots = (step < length).nonzero().flatten()
        seen = torch.randn(int(group[-1]) + 1, NUM_FEATURES, generator=generator)[group[slots]]
        trace = policy.sample(Features(seen), generator)
        error = (policy.actions(trace) - target(seen)).square().sum(dim=2).sqrt()
        distance[slots] += error[:, 0]
        ends = length[slots] == step + 1
        success = ends & (distance[slots] / length[slots] < 1.1)
        rows = policy.step(
            Features(seen),
            trace,
            reward=success.float(),
            ends=ends,
            success=success,
            task=torch.zeros_like(slots),
            episode=slots,
            group=group[slots],
        )
        storage = storage or RolloutStorage(num_steps, num_slots, rows)
        storage.add(step, rows, slots.numpy())
    assert storage is not None
    storage.finish(np.zeros((num_steps, num_slots)))
    return storage


class ToyLabels:
    """Demonstrations of `target`, as `Labels` of the protocols."""

    def __init__(self, policy: Toy, generator: torch.Generator, num: int = 64) -> None:
        """Draw what is seen."""
        self._policy = policy
        self._features = torch.randn(num, NUM_FEATURES, generator=generator)

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[LabelledBatch]:
        """Yield all, in random order."""
        for index in torch.randperm(len(self._features), generator=generator).split(size):
            seen = Features(self._features[index])
            trace = self._policy.sample(seen, generator)
            with torch.no_grad():
                found = self._policy.evaluate_actions(seen, trace)
            zero = torch.zeros(len(index))
            yield LabelledBatch(
                index=index, seen=seen, context=seen, trace=trace, actions=target(seen.features),
                log_probs=found.density.log_prob(), values=found.value, advantages=zero,
                returns=zero, reward=zero, task=index * 0, state_id=index * 0, episode=index,
                group=index, episode_return=zero + 1, success=zero + 1,
                mask=torch.ones(len(index), 1, dtype=torch.bool),
            )  # fmt: skip
