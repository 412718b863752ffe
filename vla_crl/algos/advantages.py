"""Advantages of action chunks in a dense [T, N] rollout: by GAE, by groups, by returns."""

from dataclasses import dataclass

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


def discounted_returns(rewards: Tensor, valid: Tensor, gamma: float) -> Tensor:
    """Return G_t = r_t + gamma G_{t+1} where every slot plays one episode and then rests.

    Args:
        rewards: [T, N] of the chunks.
        valid: [T, N] bool, False behind the end of the episode.
        gamma: Discount per chunk.
    """
    rewards, returns = rewards.masked_fill(~valid, 0.0), torch.empty_like(rewards)
    following = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        following = rewards[t] + gamma * following
        returns[t] = following
    return returns


@dataclass(frozen=True)
class GroupEstimate:
    """Advantages of episodes beside the others of their group.

    Attributes:
        advantages: [T, N], the same for all chunks of an episode; 0 where not counted.
        counted: [T, N] bool, False where nothing can be learnt: the returns of the group are all
            equal, or the episode has not ended.
        num_groups: How many there are.
        num_useful: Of these, with returns that differ.
    """

    advantages: Tensor
    counted: Tensor
    num_groups: int
    num_useful: int


def group_advantages(
    episode_returns: Tensor, groups: Tensor, episodes: Tensor, valid: Tensor, *, scale: bool
) -> GroupEstimate:
    """Estimate advantages as GRPO does (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

        A_i = (R_i - mean(R)) / (std(R) + 1e-6)        over the G episodes of a group

    with the standard deviation of a sample (G - 1), as in trl. Without `scale` the denominator is
    1, as in Dr. GRPO (arXiv 2503.20783).

    Args:
        episode_returns: [T, N] of the chunk's episode, NaN where that has not ended.
        groups: [T, N] int64.
        episodes: [T, N] int64.
        valid: [T, N] bool; the others do not count.
        scale: See above.
    """
    told = (valid & ~episode_returns.isnan()).flatten()
    advantages = torch.zeros_like(episode_returns).flatten()
    _, episode = episodes.flatten()[told].unique(return_inverse=True)  # of each chunk, from 0 on
    num_episodes = int(episode.max()) + 1 if len(episode) else 0
    returns = advantages.new_zeros(num_episodes)
    returns[episode] = episode_returns.flatten()[told]
    group = torch.zeros(num_episodes, dtype=torch.int64, device=returns.device)
    group[episode] = groups.flatten()[told]
    _, group = group.unique(return_inverse=True)  # of each episode, from 0 on
    size = group.bincount().to(returns.dtype)
    centred = returns - (torch.zeros_like(size).index_add(0, group, returns) / size)[group]
    square = torch.zeros_like(size).index_add(0, group, centred.square())
    std = (square / (size - 1).clamp(min=1)).sqrt()
    least = torch.zeros_like(size).scatter_reduce(0, group, returns, "amin", include_self=False)
    most = torch.zeros_like(size).scatter_reduce(0, group, returns, "amax", include_self=False)
    is_useful = most > least
    relative = centred / (std[group] + 1e-6) if scale else centred
    counted = told.clone()
    counted[told] = is_useful[group[episode]]
    advantages[told] = torch.where(is_useful[group], relative, 0.0)[episode]
    shape = episode_returns.shape
    return GroupEstimate(
        advantages.view(shape), counted.view(shape), len(size), int(is_useful.sum())
    )


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """Return 1 - Var[returns - values] / Var[returns]; 1 is perfect, 0 is a constant guess.

    Returns:
        A number in (-inf, 1]; 0.0 where the returns are all equal and nothing is to be explained.
    """
    variance = returns.var(correction=0)
    if variance == 0:
        return 0.0
    return float(1 - (returns - values).var(correction=0) / variance)
