import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vla_crl.algos.advantages import (
    explained_variance,
    generalized_advantages,
    normalize_advantages,
)


def column(*numbers: float) -> Tensor:
    """One slot over time."""
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def flags(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.bool)[:, None]


def brute_force(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    *,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Sum (gamma lambda)^k delta_{t+k} forward from each chunk to the end of its episode."""
    num_steps, num_slots = rewards.shape
    advantages = torch.zeros_like(values)
    for n in range(num_slots):
        for t in range(num_steps):
            for k in range(num_steps - t):
                alive = 0.0 if terminated[t + k, n] else 1.0
                target = rewards[t + k, n] + gamma * alive * next_values[t + k, n]
                advantages[t, n] += (gamma * gae_lambda) ** k * (target - values[t + k, n])
                if terminated[t + k, n] or truncated[t + k, n]:
                    break
    return advantages


def test_advantages_carry_over_within_an_episode():
    # gamma = 0.5, lambda = 0.5, nothing ends; the last chunk bootstraps from V' = 4.
    # delta_2 = 1 + 0.5 * 4 - 3 = 0           A_2 = 0
    # delta_1 = 0 + 0.5 * 3 - 2 = -0.5        A_1 = -0.5 + 0.25 * 0    = -0.5
    # delta_0 = 2 + 0.5 * 2 - 1 = 2           A_0 = 2    + 0.25 * -0.5 = 1.875
    advantages, returns = generalized_advantages(
        column(2, 0, 1),
        column(1, 2, 3),
        column(2, 3, 4),
        terminated=flags(0, 0, 0),
        truncated=flags(0, 0, 0),
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert advantages[:, 0].tolist() == [1.875, -0.5, 0.0]
    assert returns[:, 0].tolist() == [2.875, 1.5, 3.0]


def test_a_final_state_ends_bootstrap_and_carry():
    # The middle chunk succeeds (reward 1): what follows is another episode.
    # delta_2 = 0 + 0.5 * 4 - 3 = -1          A_2 = -1
    # delta_1 = 1 + 0 - 2 = -1                A_1 = -1, without 0.25 * A_2
    # delta_0 = 0 + 0.5 * 2 - 1 = 0           A_0 = 0 + 0.25 * -1 = -0.25
    advantages, _ = generalized_advantages(
        column(0, 1, 0),
        column(1, 2, 3),
        column(2, float("nan"), 4),
        terminated=flags(0, 1, 0),
        truncated=flags(0, 0, 0),
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert advantages[:, 0].tolist() == [-0.25, -1.0, -1.0]


def test_a_time_limit_bootstraps_but_does_not_carry():
    # The middle chunk runs out of time; its own last observation is worth 8, while the next
    # episode's first one (V_2 = 3) must play no part.
    # delta_1 = 0 + 0.5 * 8 - 2 = 2           A_1 = 2, without 0.25 * A_2
    # delta_0 = 0 + 0.5 * 2 - 1 = 0           A_0 = 0 + 0.25 * 2 = 0.5
    advantages, _ = generalized_advantages(
        column(0, 0, 0),
        column(1, 2, 3),
        column(2, 8, 4),
        terminated=flags(0, 0, 0),
        truncated=flags(0, 1, 0),
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert advantages[:, 0].tolist() == [0.5, 2.0, -1.0]


def test_success_in_the_last_moment_counts_as_final():
    # The bootstrap of 9 is ignored: the advantage is 1 - 0.25 = 0.75.
    advantages, _ = generalized_advantages(
        column(1),
        column(0.25),
        column(9),
        terminated=flags(1),
        truncated=flags(1),
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert advantages.item() == 0.75


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), gamma=st.floats(0, 1), gae_lambda=st.floats(0, 1))
def test_recursion_equals_the_sum_over_each_episode(seed: int, gamma: float, gae_lambda: float):
    generator = torch.Generator().manual_seed(seed)
    rewards, values, next_values = torch.randn(3, 9, 4, generator=generator, dtype=torch.float64)
    terminated, truncated = torch.rand(2, 9, 4, generator=generator) < 0.2
    advantages, returns = generalized_advantages(
        rewards,
        values,
        next_values,
        terminated=terminated,
        truncated=truncated,
        gamma=gamma,
        gae_lambda=gae_lambda,
    )
    expected = brute_force(
        rewards,
        values,
        next_values,
        terminated=terminated,
        truncated=truncated,
        gamma=gamma,
        gae_lambda=gae_lambda,
    )
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected + values)


def test_normalised_over_the_whole_rollout():
    # mean 3, variance (4 + 4 + 4 + 4) / 4 = 4
    normalized = normalize_advantages(
        torch.tensor([[1.0, 5.0], [5.0, 1.0]]), torch.ones(2, 2, dtype=torch.bool)
    )
    torch.testing.assert_close(normalized, torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))


def test_equal_advantages_normalise_to_zero():
    assert normalize_advantages(torch.full((2, 3), 0.25), torch.ones(2, 3) > 0).abs().max() == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 2.0, 4.0], 1.0),  # exact
        ([5.0, 7.0, 9.0], 1.0),  # a constant error is not variance
        ([2.0, 2.0, 2.0], 0.0),  # a constant guess
        ([4.0, 2.0, 0.0], -3.0),  # errors -4, 0, 4: 1 - (32/3) / (8/3)
    ],
)
def test_explained_variance(values: list[float], expected: float):
    returns = torch.tensor([0.0, 2.0, 4.0])
    assert explained_variance(torch.tensor(values), returns) == pytest.approx(expected)


def test_explained_variance_of_equal_returns_is_zero():
    assert explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0])) == 0.0


def test_slots_that_rest_do_not_count_in_the_normalisation():
    # Mean 3 and standard deviation 2 of 1, 5, 5 and 1; the fifth and sixth number are void.
    advantages = torch.tensor([[1.0, 5.0, 5.0], [1.0, 1e9, float("nan")]])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    normalized = normalize_advantages(advantages, valid)
    torch.testing.assert_close(normalized[valid], torch.tensor([-1.0, 1.0, 1.0, -1.0]))
