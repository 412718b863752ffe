"""Who may act in a simulation: a policy, or the scripted expert."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from vla_crl.models.policy import VLAPolicy
from vla_crl.rollout.lanes import lane_generator
from vla_crl.sim.backends import expert_of
from vla_crl.sim.simulation import Simulation

Act = Callable[[np.ndarray], np.ndarray]
"""From slots [B] to their next actions [B, K, A]."""


class Agent(Protocol):
    """Takes its place in a simulation; what it draws there is the lane's own."""

    def __call__(self, sim: Simulation, lane: int = 0) -> Act:
        """Return what acts in `sim`."""
        ...


def policy_agent(policy: VLAPolicy, *, deterministic: bool, seed: int = 0) -> Agent:
    """Let a policy act.

    Args:
        policy: The policy.
        deterministic: Follow the flow's ODE; otherwise sample as in training.
        seed: Seed of sampling; without effect on deterministic actions.
    """

    def start(sim: Simulation, lane: int = 0) -> Act:
        generator = lane_generator(seed, lane)

        @torch.no_grad()
        def act(slots: np.ndarray) -> np.ndarray:
            context = policy.encode(sim.observe(slots))
            chunk = policy.act(context, deterministic=deterministic, generator=generator)
            return chunk.actions[:, : policy.config.execution_horizon].numpy()

        return act

    return start


def expert_agent(sim: Simulation, lane: int = 0) -> Act:
    """Let the scripted expert act, one control step at a time."""
    expert = expert_of(sim)
    return lambda slots: expert.act(slots)[:, None]
