"""An action head on one batch of contexts, on which it is tried."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_crl.contracts import Observation
from vla_crl.density import Density
from vla_crl.errors import what_is
from vla_crl.models.heads.head import Sampled
from vla_crl.models.policy import VLAPolicy
from vla_crl.rows import Rows
from vla_crl.testing.requirements import requirement, seeded

NUM_ROWS = 6

_require = requirement("check_head")


class HeadTrial:
    """A head, what it sees, and what it has sampled of that.

    Attributes:
        policy: Which it is the head of.
        head: Tried.
        sizes: Of it.
        seen: What the policy sees.
        num_rows: How many observations.
        context: Of them, as insulated as the policy is.
        before: A copy of it, made before the head has seen it.
        sampled: Of the context, by seed 0.
    """

    def __init__(self, policy: VLAPolicy, observation: Observation | None) -> None:
        """Sample a first time.

        Args:
            policy: Whose head is tried.
            observation: What it sees; None takes noise for pictures.

        Raises:
            SpecError: What the head returns is no sample.
        """
        self.policy, self.head, self.sizes = policy, policy.head, policy.head.sizes
        self.seen = observation or _noise(policy)
        self.num_rows = len(self.seen)
        with torch.no_grad():
            self.context = policy.insulate(policy.encode(self.seen))
            self.before, self.sampled = copy.deepcopy(self.context), self.sample(seed=0)

    def sample(self, seed: int, *, deterministic: bool = False) -> Sampled:
        """Return a chunk of each row.

        Raises:
            SpecError: What came is no `Sampled`, or there is something else in it.
        """
        found: Any = self.head.sample(
            self.context, deterministic=deterministic, generator=seeded(seed)
        )
        expected = "expected Sampled(actions, trace, density)"
        _require(isinstance(found, Sampled), f"sample: returned {what_is(found)}, {expected}")
        for name, kind in (("actions", Tensor), ("trace", Rows), ("density", Density)):
            value = getattr(found, name)
            told = f"sample: the {name} of Sampled is {what_is(value)}, expected a {kind.__name__}"
            _require(isinstance(value, kind), told)
        return found

    def imitation(self) -> Tensor:
        """Return the supervised loss [B, H] of `demonstrated`, with the graph.

        Raises:
            SpecError: What came is of another shape or not finite.
        """
        loss: Any = self.head.imitation(self.context, self.demonstrated(), seeded(3))
        shape = [self.num_rows, self.sizes.action_horizon]
        told = f"imitation: the loss is {what_is(loss)}, expected a tensor of shape {shape}"
        _require(isinstance(loss, Tensor) and [*loss.shape] == shape, told)
        _require(bool(loss.isfinite().all()), "imitation: a loss is not finite")
        return loss

    def demonstrated(self) -> Tensor:
        """Return actions [B, H, A] as the head counts them."""
        shape = self.num_rows, self.sizes.action_horizon, self.sizes.num_numbers
        actions = 2.0 * torch.rand(shape, generator=seeded(4)) - 1.0
        actions = actions.to(self.policy.device)
        normalize = self.policy.norm_stats.normalize_action
        return normalize(actions) if self.head.is_normalized else actions


def _noise(policy: VLAPolicy) -> Observation:
    """Return observations of noise, with the first words that the policy knows."""
    random, example = np.random.default_rng(0), policy.example_observation()
    words = (*policy.config.vocabulary, *example.instruction)
    return Observation(
        random.integers(0, 256, (NUM_ROWS, *example.images.shape[1:]), dtype=np.uint8),
        random.standard_normal((NUM_ROWS, *example.state.shape[1:]), dtype=np.float32),
        tuple(words[row % len(words)] for row in range(NUM_ROWS)),
    )
