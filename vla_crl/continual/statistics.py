"""Confidence intervals for success rates, their sums and differences, and means over seeds.

Everything here is deterministic and keeps its width at 0 % and 100 % success, where the usual
p +- 1.96 sqrt(p (1 - p) / n) collapses to a point.

References:
    Wilson 1927, J. Am. Stat. Assoc. 22:209-212.
    Newcombe 1998, Stat. Med. 17:873-890 (differences of independent samples, method 10).
    Zou, Huang & Zhang 2009, Comput. Stat. Data Anal. 53:1080-1085 (linear functions, "MOVER").
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SeedSummary:
    """A number measured in several independent training runs.

    Attributes:
        mean: Mean over runs.
        standard_error: Sample standard deviation / sqrt(num_seeds); None for a single run.
        low: Lower end of Student's t interval; None for a single run.
        high: Upper end.
        num_seeds: How many runs.
    """

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None
    num_seeds: int


def wilson_interval(
    successes: int, episodes: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return Wilson's score interval of a success rate.

    The ends are the p that solve (p_hat - p)^2 = z^2 p (1 - p) / n.

    Raises:
        ValueError: Not 0 <= successes <= episodes, or no episode.
    """
    if episodes < 1 or not 0 <= successes <= episodes:
        raise ValueError(f"{successes} successes in {episodes} episodes are not a success rate")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, scale = successes / episodes, 1 + z**2 / episodes
    centre = (rate + z**2 / (2 * episodes)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / episodes + (z / (2 * episodes)) ** 2)
    # At 0 and n successes the formula gives exactly 0 and 1; rounding must not spoil that.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == episodes else min(1.0, centre + half)
    return low, high


def linear_interval(
    weights: Sequence[float] | np.ndarray,
    successes: Sequence[int] | np.ndarray,
    episodes: Sequence[int] | np.ndarray,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Estimate sum_i w_i p_i from independent binomial counts (Zou et al. 2009, eq. 3).

    With p_hat_i the rates and [l_i, u_i] their Wilson intervals,
    low = sum w p_hat - sqrt(sum max(w (p_hat - l), w (p_hat - u))^2), and high likewise. One
    weight 1 gives Wilson's interval, weights (1, -1) Newcombe's for a difference.
    """
    value, below, above = 0.0, 0.0, 0.0
    for weight, num_successes, num_episodes in zip(weights, successes, episodes, strict=True):
        if weight == 0:
            continue
        low, high = wilson_interval(int(num_successes), int(num_episodes), confidence)
        rate = num_successes / num_episodes
        value += weight * rate
        below += max(weight * (rate - low), weight * (rate - high)) ** 2
        above += max(weight * (low - rate), weight * (high - rate)) ** 2
    return Estimate(float(value), float(value - math.sqrt(below)), float(value + math.sqrt(above)))


def summarize_seeds(values: Sequence[float], confidence: float = CONFIDENCE) -> SeedSummary:
    """Average a number over independent training runs: the unit of replication is the run.

    The interval is mean +- t(num_seeds - 1) * standard error, so it is honest for 3 seeds
    (t = 4.30, not 1.96), provided that the runs scatter about normally.

    Raises:
        ValueError: No value.
    """
    if not values:
        raise ValueError("summarize_seeds needs the value of at least one run")
    mean, num = float(np.mean(values)), len(values)
    if num == 1:
        return SeedSummary(mean, None, None, None, num)
    error = float(np.std(values, ddof=1)) / math.sqrt(num)
    half = float(stdtrit(num - 1, (1 + confidence) / 2)) * error
    return SeedSummary(mean, error, mean - half, mean + half, num)
