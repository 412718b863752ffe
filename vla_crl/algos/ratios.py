"""Probability ratios of chunks whose density falls into parts, and what each part weighs."""

from typing import Literal

from torch import Tensor

Ratio = Literal["chunk", "part", "sequence"]


def chunk_ratio(log_ratio: Tensor) -> Tensor:
    """Return one ratio a chunk [B, 1]: the product over its parts.

    Args:
        log_ratio: [B, P] log pi - log pi_old of each part, 0 where there is none.
    """
    return log_ratio.sum(dim=1, keepdim=True).exp()


def kl_estimate(log_ratio: Tensor) -> Tensor:
    """Return the mean over B chunks of k3, an estimate of KL(pi_old || pi), summed over the parts.

    Of Schulman's "Approximating KL divergence": unbiased and never negative.

    Args:
        log_ratio: [B, P], see `chunk_ratio`.
    """
    return (log_ratio.exp() - 1 - log_ratio).sum(dim=1).mean()


def part_weights(parts: Tensor) -> Tensor:
    """Return [B, P] so that a weighted sum is the mean over the parts of a chunk.

    Args:
        parts: [B, P] bool, where there is a part.
    """
    return parts / parts.sum(dim=1, keepdim=True)


def sequence_ratio(log_ratio: Tensor, parts: Tensor, episodes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ratio of GSPO for each part, and what the part weighs in a mean over B chunks.

    Group sequence policy optimisation, arXiv 2507.18071. With y_i all |y_i| parts of episode i:

        s_i     = exp(mean over y_i of log pi - log pi_old)                       (eq. 7)
        s_{i,t} = sg[s_i] pi(y_{i,t}) / sg[pi(y_{i,t})]                           (eq. 14)

    and the objective is a mean over the E episodes of the means over their parts (eq. 13). As all
    parts of an episode have one advantage, value and gradient are those of a ratio s_i for each
    episode (eq. 5).

    Args:
        log_ratio: [B, P], see `chunk_ratio`.
        parts: [B, P] bool, where there is a part.
        episodes: [B] int64, the number of each chunk's episode.

    Returns:
        s_{i,t} [B, P], and B / (E |y_i|) where there is a part [B, P].
    """
    _, episode = episodes.unique(return_inverse=True)
    zeros = log_ratio.new_zeros(int(episode.max()) + 1)
    length = zeros.index_add(0, episode, parts.sum(dim=1).to(zeros.dtype))
    total = zeros.index_add(0, episode, log_ratio.detach().sum(dim=1))
    of_sequence = (total / length).exp()[episode][:, None]
    weights = parts * (len(episodes) / (len(zeros) * length))[episode][:, None]
    return of_sequence * (log_ratio - log_ratio.detach()).exp(), weights
