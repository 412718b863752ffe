"""Who may act in a simulation: a policy, or the scripted expert."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from vla_crl.models.policy import ActionChunk, VLAPolicy
from vla_crl.rollout.lanes import lane_generator
from vla_crl.sim.backends import expert_of
from vla_crl.sim.simulation import Simulation

Act = Callable[[np.ndarray], np.ndarray]
"""From slots [B] to their next actions [B, K, A]."""


class Agent(Protocol):
    """Takes its place in a simulation; what it draws there is the lane's own."""

    @property
    def image_size(self) -> int:
        """Height and width, in pixels, of the camera images that it has to be shown."""
        ...

    def __call__(self, sim: Simulation, lane: int = 0) -> Act:
        """Return what acts in `sim`."""
        ...


@dataclass(frozen=True)
class PolicyAgent:
    """Lets a policy act."""

    policy: VLAPolicy
    deterministic: bool
    """Follow the flow's ODE; otherwise sample as in training."""
    seed: int = 0
    """Of sampling; without effect on deterministic actions."""

    @property
    def image_size(self) -> int:
        """What the policy was built for."""
        return self.policy.config.image_size

    def __call__(self, sim: Simulation, lane: int = 0) -> Act:
        """Return what acts in `sim`."""
        generator = lane_generator(self.seed, lane)

        @torch.no_grad()
        def act(slots: np.ndarray) -> np.ndarray:
            context = self.policy.encode(sim.observe(slots))
            chunk = self.policy.act(context, deterministic=self.deterministic, generator=generator)
            return executed(self.policy, chunk)

        return act


class ExpertAgent:
    """Lets the scripted expert act, one control step at a time."""

    image_size = 64
    """It looks at no picture."""

    def __call__(self, sim: Simulation, lane: int = 0) -> Act:
        """Return what acts in `sim`."""
        expert = expert_of(sim)
        return lambda slots: expert.act(slots)[:, None]


def executed(policy: VLAPolicy, chunk: ActionChunk) -> np.ndarray:
    """Return the actions [B, K, A] of chunks that are executed, where simulations take them."""
    return chunk.actions[:, : policy.config.execution_horizon].cpu().numpy()
