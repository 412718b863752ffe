"""Advantages of action chunks: generalised advantage estimation over a dense [T, N] rollout."""

import torch
from torch import Tensor


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    *,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Estimate advantages and returns by GAE, one decision per chunk.

    Schulman et al. 2016 (arXiv 1506.02438), eq. 16, where gamma and lambda are per *chunk*:

        delta_t = r_t + gamma V'_t (1 - terminated_t) - V_t
        A_t     = delta_t + gamma lambda (1 - terminated_t) (1 - truncated_t) A_{t+1}

    An episode that ran out of time is cut, not over: the value of its own last observation
    stands in for what would have followed, but no advantage crosses into the next episode.
    A chunk that is both terminated and truncated counts as terminated.

    Args:
        rewards: [T, N] sum of the rewards of the chunk's steps.
        values: [T, N] V of the observation the chunk was chosen from.
        next_values: [T, N] V' of the observation that followed the chunk, in the same episode.
            Ignored where terminated.
        terminated: [T, N] bool, the episode reached a final state during the chunk.
        truncated: [T, N] bool, the episode hit its time limit during the chunk.
        gamma: Discount per chunk.
        gae_lambda: 0 is one-step temporal difference, 1 is Monte Carlo.

    Returns:
        Advantages [T, N] and returns [T, N], the latter advantages + values.
    """
    # `where` and not a product: what stands at a terminated chunk may be anything, even NaN.
    bootstrap = torch.where(terminated, torch.zeros_like(next_values), next_values)
    deltas = rewards + gamma * bootstrap - values
    carry = gamma * gae_lambda * (~(terminated | truncated)).to(values.dtype)
    advantages = torch.empty_like(values)
    following = torch.zeros_like(values[0])
    for t in reversed(range(len(values))):
        following = deltas[t] + carry[t] * following
        advantages[t] = following
    return advantages, advantages + values


def normalize_advantages(advantages: Tensor, valid: Tensor) -> Tensor:
    """Bring a whole rollout to mean 0 and standard deviation 1; all equal become all 0.

    Args:
        advantages: [T, N].
        valid: [T, N] bool; the others do not count.
    """
    centred = advantages - advantages[valid].mean()
    return centred / (centred[valid].std(correction=0) + 1e-8)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """Return 1 - Var[returns - values] / Var[returns]; 1 is perfect, 0 is a constant guess.

    Returns:
        A number in (-inf, 1]; 0.0 where the returns are all equal and nothing is to be explained.
    """
    variance = returns.var(correction=0)
    if variance == 0:
        return 0.0
    return float(1 - (returns - values).var(correction=0) / variance)
