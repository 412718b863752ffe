"""Intervals against published examples, closed forms and exact coverage."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from vla_crl.continual.statistics import (
    Pairs,
    linear_interval,
    mcnemar,
    paired_interval,
    summarize_seeds,
    wilson_interval,
)

Z = 1.959963984540054


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [  # Newcombe 1998, Stat. Med. 17:857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_examples(
    successes: int, episodes: int, low: float, high: float
) -> None:
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=5e-5)


def test_wilson_at_the_edges_is_z2_over_n_plus_z2() -> None:
    # p_hat = 0: the centre equals the half width, so high = z^2 / (n + z^2) and low = 0.
    assert wilson_interval(0, 50) == (0.0, pytest.approx(Z**2 / (50 + Z**2)))
    assert wilson_interval(50, 50) == (pytest.approx(50 / (50 + Z**2)), 1.0)


@pytest.mark.parametrize(("successes", "episodes"), [(1, 7), (50, 100), (99, 100), (3, 3000)])
def test_wilson_ends_solve_the_score_equation(successes: int, episodes: int) -> None:
    rate = successes / episodes
    for end in wilson_interval(successes, episodes):
        assert abs(rate - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / episodes))


@pytest.mark.parametrize(("successes", "episodes"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_rate(successes: int, episodes: int) -> None:
    with pytest.raises(ValueError, match="are not a success rate"):
        wilson_interval(successes, episodes)


@pytest.mark.parametrize(
    ("after", "before", "low", "high"),
    [  # Newcombe 1998, Stat. Med. 17:873-890, table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((5, 56), (0, 29), -0.0381, 0.1926),
    ],
)
def test_differences_give_the_published_examples(
    after: tuple[int, int], before: tuple[int, int], low: float, high: float
) -> None:
    successes, episodes = zip(after, before, strict=True)
    value = linear_interval([1.0, -1.0], successes, episodes)
    assert value.value == pytest.approx(after[0] / after[1] - before[0] / before[1])
    assert (value.low, value.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("pairs", "low", "high"),
    [
        # an example of Newcombe 1998, Stat. Med. 17:2635-2650, method 10
        (Pairs(both=36, gained=12, lost=2, neither=0), 0.0569, 0.3404),
        # Altman et al. 2000, Statistics with Confidence, table 6.2: 0.011 to 0.226
        (Pairs(both=14, gained=5, lost=0, neither=22), 0.0115, 0.2265),
        # Bentur et al. 2009, as in Fagerland et al. 2017, Statistical Analysis of Contingency
        # Tables, chapter 8: -0.507 to -0.026
        (Pairs(both=1, gained=1, lost=7, neither=12), -0.5069, -0.0256),
    ],
)
def test_paired_differences_give_the_published_examples(
    pairs: Pairs, low: float, high: float
) -> None:
    value = paired_interval(pairs)
    assert value.value == pytest.approx(pairs.second - pairs.first)
    assert (value.low, value.high) == pytest.approx((low, high), abs=5e-5)
    mirrored = paired_interval(Pairs(pairs.both, pairs.lost, pairs.gained, pairs.neither))
    assert (mirrored.low, mirrored.high) == pytest.approx((-high, -low), abs=5e-5)


def test_pairs_without_a_change_still_leave_a_difference_possible() -> None:
    # Both rates are 1 with Wilson's l = n / (n + z^2), phi = 0: +-(1 - l).
    value = paired_interval(Pairs(both=50, gained=0, lost=0, neither=0))
    assert (value.value, value.low) == (0.0, pytest.approx(-(Z**2) / (50 + Z**2)))
    assert value.high == -value.low


def test_pairs_are_narrower_than_the_same_rates_of_different_states() -> None:
    paired = paired_interval(Pairs(both=55, gained=10, lost=2, neither=33))
    independent = linear_interval([1, -1], [65, 57], [100, 100])
    assert paired.value == pytest.approx(independent.value)
    assert paired.high - paired.low < 0.65 * (independent.high - independent.low)


def test_paired_intervals_cover_about_as_often_as_they_claim() -> None:
    generator = np.random.default_rng(0)
    chances = {"both": 0.5, "gained": 0.15, "lost": 0.05, "neither": 0.3}
    draws = generator.multinomial(100, [*chances.values()], size=2000)
    intervals = [paired_interval(Pairs(*map(int, draw))) for draw in draws]
    covered = np.mean([item.low <= 0.1 <= item.high for item in intervals])
    assert 0.93 < covered < 0.97


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (5, 0, 2 / 2**5),
        (1, 7, 2 * (1 + 8) / 2**8),
        (10, 3, 2 * (1 + 13 + 78 + 286) / 2**13),
    ],
)
def test_mcnemar_counts_the_ways_in_which_the_changed_split(
    gained: int, lost: int, p: float
) -> None:
    assert mcnemar(Pairs(both=9, gained=gained, lost=lost, neither=4)) == pytest.approx(p)


def test_mcnemar_is_the_test_of_scipy_for_many_pairs_too() -> None:
    for gained, lost in ((410, 350), (20_300, 19_700), (0, 2000)):
        expected = binomtest(gained, gained + lost).pvalue
        assert mcnemar(Pairs(0, gained, lost, 0)) == pytest.approx(expected, rel=1e-6)


def test_pairs_are_counted_and_added() -> None:
    pairs = Pairs.count([True, True, False, False, False], [True, False, True, True, False])
    assert pairs == Pairs(both=1, gained=2, lost=1, neither=1)
    assert (pairs.num, pairs.first, pairs.second) == (5, 0.4, 0.6)
    assert pairs + Pairs(1, 1, 0, 3) == Pairs(both=2, gained=3, lost=1, neither=4)
    with pytest.raises(ValueError, match="at least one pair"):
        paired_interval(Pairs(0, 0, 0, 0))


def test_one_weight_gives_the_wilson_interval() -> None:
    value = linear_interval([1.0, 0.0], [7, 0], [9, 0])  # weight 0: the cell need not exist
    assert (value.low, value.high) == pytest.approx(wilson_interval(7, 9))


def test_linear_intervals_cover_about_as_often_as_they_claim() -> None:
    generator = np.random.default_rng(0)
    rates, weights = np.array([0.97, 0.6, 0.3]), np.array([0.5, 0.5, -1.0])
    draws = generator.binomial(100, rates, size=(2000, 3))
    intervals = [linear_interval(weights, draw, [100] * 3) for draw in draws]
    truth = float(weights @ rates)
    covered = np.mean([item.low <= truth <= item.high for item in intervals])
    assert 0.93 < covered < 0.97


def test_seeds_are_summarised_with_their_number() -> None:
    summary = summarize_seeds([0.2, 0.3, 0.4])
    # sd = .1, standard error = .1 / sqrt(3) = .057735, half width = 4.3027 * .057735 = .24841
    assert summary.mean == pytest.approx(0.3)
    assert summary.standard_error == pytest.approx(0.057735, abs=1e-6)
    assert (summary.low, summary.high) == pytest.approx((0.05159, 0.54841), abs=1e-5)
    assert summary.num_seeds == 3


def test_one_seed_has_no_error_bar() -> None:
    summary = summarize_seeds([0.2])
    assert (summary.mean, summary.num_seeds) == (0.2, 1)
    assert summary.standard_error is summary.low is summary.high is None
    with pytest.raises(ValueError, match="at least one run"):
        summarize_seeds([])
