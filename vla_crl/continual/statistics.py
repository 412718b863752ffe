"""Confidence intervals for success rates, their sums and differences, and means over seeds.

Everything here is deterministic and keeps its width at 0 % and 100 % success, where the usual
p +- 1.96 sqrt(p (1 - p) / n) collapses to a point.

References:
    Wilson 1927, J. Am. Stat. Assoc. 22:209-212.
    Newcombe 1998, Stat. Med. 17:873-890 (differences of independent samples, method 10).
    Newcombe 1998, Stat. Med. 17:2635-2650 (differences of paired samples, method 10).
    McNemar 1947, Psychometrika 12:153-157; the exact test is that of the sign.
    Zou, Huang & Zhang 2009, Comput. Stat. Data Anal. 53:1080-1085 (linear functions, "MOVER").
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import bdtr, stdtrit

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


@dataclass(frozen=True)
class Pairs:
    """How often two attempts at the same things succeeded, thing by thing.

    Attributes:
        both: Things at which both attempts succeeded.
        gained: At which the second alone did.
        lost: At which the first alone did.
        neither: At which none did.
    """

    both: int
    gained: int
    lost: int
    neither: int

    @classmethod
    def count(cls, first: Sequence[bool], second: Sequence[bool]) -> "Pairs":
        """Count the outcomes of two attempts at the same things, in the same order."""
        counts = Counter((bool(a), bool(b)) for a, b in zip(first, second, strict=True))
        return cls(
            both=counts[True, True],
            gained=counts[False, True],
            lost=counts[True, False],
            neither=counts[False, False],
        )

    def __add__(self, other: "Pairs") -> "Pairs":
        return Pairs(
            self.both + other.both,
            self.gained + other.gained,
            self.lost + other.lost,
            self.neither + other.neither,
        )

    @property
    def num(self) -> int:
        """How many things there are."""
        return self.both + self.gained + self.lost + self.neither

    @property
    def first(self) -> float:
        """Success rate of the first attempts."""
        return (self.both + self.lost) / self.num

    @property
    def second(self) -> float:
        """Success rate of the second attempts."""
        return (self.both + self.gained) / self.num


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


def paired_interval(pairs: Pairs, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate by how much the second attempts succeed more often than the first.

    The interval is the tenth of Newcombe's for paired samples: Wilson's intervals of the two rates
    combined with their correlation phi, which is corrected towards 0 where it is positive.

    Raises:
        ValueError: There is no pair.
    """
    if pairs.num < 1:
        raise ValueError("paired_interval needs at least one pair")
    num, first = pairs.num, pairs.both + pairs.lost
    second = pairs.both + pairs.gained
    spread = first * (num - first) * second * (num - second)
    excess: float = pairs.both * pairs.neither - pairs.gained * pairs.lost
    if excess > 0:
        excess = max(excess - num / 2, 0.0)
    phi = excess / math.sqrt(spread) if spread else 0.0
    (low_1, high_1), (low_2, high_2) = (
        wilson_interval(count, num, confidence) for count in (first, second)
    )
    below, above = pairs.second - low_2, high_2 - pairs.second
    first_below, first_above = pairs.first - low_1, high_1 - pairs.first
    value = (pairs.gained - pairs.lost) / num
    return Estimate(
        value,
        value - math.sqrt(below**2 - 2 * phi * below * first_above + first_above**2),
        value + math.sqrt(above**2 - 2 * phi * above * first_below + first_below**2),
    )


def mcnemar(pairs: Pairs) -> float:
    """Return the two-sided p of McNemar's exact test that no attempt is better than the other.

    Then each of the things at which only one succeeded was gained or lost with a probability of
    1/2: p = min(1, 2 P[Binomial(gained + lost, 1/2) <= min(gained, lost)]).
    """
    changed = pairs.gained + pairs.lost
    return min(1.0, 2.0 * float(bdtr(min(pairs.gained, pairs.lost), changed, 0.5)))


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
