"""What an episode is rewarded for: its end alone, or every step towards it."""

from dataclasses import replace
from typing import Literal, cast, get_args

import numpy as np

from vla_crl.contracts import ChunkResult
from vla_crl.errors import unknown_name
from vla_crl.sim.simulation import Indices, Shaped, Simulation, require

Reward = Literal["sparse", "dense"]


def check_reward(sim: Simulation, reward: str) -> None:
    """Check before the work that a simulation can be rewarded so.

    Raises:
        ConfigError: There is no such reward, or the backend does not measure progress.
    """
    if reward not in get_args(Reward):
        raise unknown_name(f"suite '{sim.suite.name}'", "reward", reward, get_args(Reward))
    if reward == "dense":
        require(sim, Shaped, "rewarded densely")


def step_rewarded(
    sim: Simulation, actions: np.ndarray, slots: Indices | None, reward: Reward
) -> ChunkResult:
    """Call `step_chunk`, with a reward of one's choice.

    "sparse" is what the simulation says: 1 for success. "dense" adds how much further the goal has
    come, r = success + progress(s') - progress(s), so that an episode adds up to success +
    progress(end) - progress(beginning): to dawdle or to go back and forth earns nothing. That is
    potential-based shaping (Ng, Harada & Russell 1999, "Policy invariance under reward
    transformations", eq. 2) without its discount, which would let standing still cost something.

    Args:
        sim: One that `check_reward` accepts.
        actions: [B, K, A], see `Simulation.step_chunk`.
        slots: [B]; all by default.
        reward: Which.
    """
    if reward == "sparse":
        return sim.step_chunk(actions, slots)
    shaped = cast(Shaped, sim)
    before = shaped.goal_progress(slots)
    result = sim.step_chunk(actions, slots)
    gain = shaped.goal_progress(slots) - before
    return replace(result, reward=(result.success + gain).astype(np.float32))
