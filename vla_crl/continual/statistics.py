"""Confidence intervals for success rates, their sums and differences, and means over seeds.

Everything here is deterministic and keeps its width at 0 % and 100 % success, where the usual
p +- 1.96 sqrt(p (1 - p) / n) collapses to a point.

References:
    Wilson 1927, J. Am. Stat. Assoc. 22:209-212.
    Newcombe 1998, Stat. Med. 17:873-890 (independent samples, method 10) and 17:2635-2650
    (paired samples, method 10).
    Zou, Huang & Zhang 2009, Comput. Stat. Data Anal. 53:1080-1085 (linear functions, "MOVER").
    Abramowitz & Stegun 1964, 26.7.3-4 (Student's t for whole degrees of freedom).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

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


def difference_interval(
    before: tuple[int, int], after: tuple[int, int], confidence: float = CONFIDENCE
) -> Estimate:
    """Estimate rate(after) - rate(before) of independent episodes (Newcombe 1998, method 10).

    Args:
        before: (successes, episodes).
        after: (successes, episodes).
        confidence: Coverage.
    """
    successes, episodes = zip(after, before, strict=True)
    return linear_interval((1.0, -1.0), successes, episodes, confidence)


def paired_difference_interval(
    before: Sequence[bool] | np.ndarray,
    after: Sequence[bool] | np.ndarray,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Estimate rate(after) - rate(before) on the same initial states (Newcombe 1998, method 10).

    Narrower than `difference_interval` where both policies fail on the same states.

    Args:
        before: [n] success of the first policy on each initial state.
        after: [n] success of the second policy on the same states in the same order.
        confidence: Coverage.

    Raises:
        ValueError: The two differ in length, or are empty.
    """
    first, second = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(f"paired outcomes need equal lengths, got {first.shape}, {second.shape}")
    num = first.size
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    rate_1, rate_2 = first.mean(), second.mean()
    low_1, high_1 = wilson_interval(int(first.sum()), num, confidence)
    low_2, high_2 = wilson_interval(int(second.sum()), num, confidence)
    # phi correlation of the two outcomes, positive values continuity corrected
    covariance = both * neither - only_first * only_second
    if covariance > 0:
        covariance = max(covariance - num / 2, 0.0)
    margins = first.sum() * (~first).sum() * second.sum() * (~second).sum()
    phi = covariance / math.sqrt(margins) if margins else 0.0
    down, up = rate_2 - low_2, high_2 - rate_2
    down_1, up_1 = rate_1 - low_1, high_1 - rate_1
    value = float(rate_2 - rate_1)
    return Estimate(
        value,
        value - math.sqrt(down**2 - 2 * phi * down * up_1 + up_1**2),
        value + math.sqrt(up**2 - 2 * phi * up * down_1 + down_1**2),
    )


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
    half = student_t_quantile((1 + confidence) / 2, num - 1) * error
    return SeedSummary(mean, error, mean - half, mean + half, num)


def student_t_quantile(probability: float, degrees: int) -> float:
    """Return the `probability` quantile (0.5 <= probability < 1) of Student's t.

    Bisection on theta = atan(t / sqrt(degrees)) in the closed form for whole degrees of freedom.
    """
    if not 0.5 <= probability < 1 or degrees < 1:
        raise ValueError(f"no t quantile for probability {probability}, {degrees} degrees")
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        theta = (low + high) / 2
        if 0.5 + _t_central_area(theta, degrees) / 2 < probability:
            low = theta
        else:
            high = theta
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _t_central_area(theta: float, degrees: int) -> float:
    """Return P(|t| < sqrt(degrees) tan(theta)), Abramowitz & Stegun 26.7.3 (odd), 26.7.4 (even)."""
    odd = degrees % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for order in range(1, degrees // 2 + 1):
        total += term
        # odd: cos + (2/3) cos^3 + (2*4)/(3*5) cos^5 ...; even: 1 + (1/2) cos^2 + (1*3)/(2*4) ...
        step = 2 * order / (2 * order + 1) if odd else (2 * order - 1) / (2 * order)
        term *= step * math.cos(theta) ** 2
    if odd:
        return 2 / math.pi * (theta + math.sin(theta) * total)
    return math.sin(theta) * total
