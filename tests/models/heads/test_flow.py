import math

import pytest
import torch

from vla_crl.models.heads import flow
from vla_crl.models.heads.flow import FlowDraws, FlowTrace


def random_step(num_rows: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, 8, 7, generator=generator)
    return x, torch.randn(num_rows, 8, 7, generator=generator)


def euler(clean_of, x: torch.Tensor, num_steps: int) -> torch.Tensor:
    for index in range(num_steps):
        t = 1.0 - index / num_steps
        velocity = (x - clean_of(x, t)) / t
        x = x - velocity / num_steps
    return x


def test_time_grid_runs_from_one_to_zero_in_equal_steps():
    assert flow.time_grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [
        (3, [0.500, 0.408, 0.204]),
        (4, [0.500, 0.433, 0.250, 0.144]),
        (5, [0.500, 0.447, 0.274, 0.183, 0.112]),
    ],
)
def test_standard_deviations_are_the_published_schedule(num_steps: int, expected: list[float]):
    x, clean = random_step(num_steps)
    grid = flow.time_grid(num_steps)
    _, std = flow.step_mean_std(x, clean, grid[:-1], grid[1:], 0.5)
    assert std.flatten().tolist() == pytest.approx(expected, abs=6e-4)


def test_mean_equals_the_velocity_form_of_flow_grpo():
    # Flow-GRPO eq. 9: mu = x (1 + s^2/(2t) dt) + v (1 + s^2 (1-t)/(2t)) dt with dt = -delta.
    x, clean = random_step(1)
    t, delta, level = 0.5, 0.25, 0.6
    sigma = level * math.sqrt(t / (1 - t))
    velocity = (x - clean) / t
    expected = x * (1 - sigma**2 / (2 * t) * delta)
    expected = expected - velocity * (1 + sigma**2 * (1 - t) / (2 * t)) * delta
    mean, _ = flow.step_mean_std(x, clean, torch.tensor([t]), torch.tensor([t - delta]), level)
    torch.testing.assert_close(mean, expected)


def test_step_without_noise_is_the_euler_step():
    x, clean = random_step(1)
    mean, std = flow.step_mean_std(x, clean, torch.tensor([0.75]), torch.tensor([0.5]), 0.0)
    torch.testing.assert_close(mean, x - 0.25 * (x - clean) / 0.75)
    assert std.item() == 0.0


def test_last_step_has_the_clean_chunk_as_mean_unless_the_published_formula_is_asked_for():
    x, clean = random_step(1)
    t, end = torch.tensor([0.25]), torch.tensor([0.0])
    mean, _ = flow.step_mean_std(x, clean, t, end, 0.6)
    assert torch.equal(mean, clean)
    # sigma^2 = .36 * .25/.75 = .12, weight of x1_hat = -.12 * .25 / .5 = -.06
    published, _ = flow.step_mean_std(x, clean, t, end, 0.6, clamp_noise_weight=False)
    noise_estimate = x + 0.75 * (x - clean) / 0.25
    torch.testing.assert_close(published, clean - 0.06 * noise_estimate)


def test_deterministic_sample_is_the_euler_solution():
    x, target = random_step()

    def clean_of(x, t):
        return 0.3 * x + target * t

    actions, trace, _ = flow.sample(
        lambda x, t: 0.3 * x + target * t[:, None, None],
        FlowDraws(x),
        num_steps=4,
        noise_level=0.6,
    )
    torch.testing.assert_close(actions, euler(clean_of, x, 4))
    assert trace.step.tolist() == [3] * 5
    assert torch.equal(trace.x_next, actions)


def test_sample_with_noise_level_zero_equals_the_ode_exactly():
    x, target = random_step()
    stochastic = FlowDraws(x, torch.tensor([0, 1, 2, 3, 1]), torch.randn(x.shape))
    ode, _, _ = flow.sample(
        lambda x, t: 0.3 * x + target, FlowDraws(x), num_steps=4, noise_level=0.6
    )
    sde, _, _ = flow.sample(lambda x, t: 0.3 * x + target, stochastic, num_steps=4, noise_level=0.0)
    assert torch.equal(ode, sde)


def test_only_the_chosen_step_of_each_row_is_stochastic():
    x, _ = random_step(4)
    noise = torch.randn(4, 8, 7, generator=torch.Generator().manual_seed(1))
    actions, trace, _ = flow.sample(
        lambda x, t: torch.zeros_like(x),
        FlowDraws(x, torch.tensor([0, 1, 2, 3]), noise),
        num_steps=4,
        noise_level=0.5,
    )
    # Towards a clean chunk of zeros, every Euler step scales x by (t - 1/4)/t.
    torch.testing.assert_close(trace.x[2], x[2] * 0.5)
    std = [0.5, 0.4330127, 0.25, 0.1443376]
    means, _ = flow.step_mean_std(
        trace.x, torch.zeros_like(x), *flow.trace_times(trace, 4), noise_level=0.5
    )
    for row in range(4):
        torch.testing.assert_close(trace.x_next[row], means[row] + std[row] * noise[row])
    assert torch.equal(actions[3], trace.x_next[3])


def test_log_prob_equals_torch_distributions_over_the_executed_actions():
    x, clean = random_step(4)
    trace = FlowTrace(x, x + 0.1, torch.tensor([0, 1, 2, 3]))
    result = flow.step_density(
        trace, clean, num_steps=4, noise_level=0.6, execution_horizon=4
    ).log_prob()
    mean, std = flow.step_mean_std(x, clean, *flow.trace_times(trace, 4), noise_level=0.6)
    normal = torch.distributions.Normal(mean, std.expand_as(mean))
    expected = normal.log_prob(trace.x_next)[:, :4].sum(dim=(1, 2))
    torch.testing.assert_close(result, expected[:, None])


def test_flow_time_follows_beta_three_halves_one():
    times = flow.sample_flow_time((100_000,), torch.Generator().manual_seed(0))
    assert times.min() >= 0.001
    assert times.max() <= 1.0
    # E[b] = 1.5/2.5 = .6; t = .001 + .999 b
    assert times.mean().item() == pytest.approx(0.6004, abs=0.003)
    # P(b < .25) = .25^1.5 = .125
    assert ((times - 0.001) / 0.999 < 0.25).float().mean().item() == pytest.approx(0.125, abs=0.005)


def test_interpolation_is_noise_at_one_and_actions_at_zero():
    actions, noise = random_step(2)
    mixed = flow.interpolate(actions, noise, torch.tensor([1.0, 0.0]))
    assert torch.equal(mixed[0], noise[0])
    assert torch.equal(mixed[1], actions[1])


def test_flow_loss_weighs_by_inverse_time_capped_at_three():
    prediction = torch.ones(1, 2, 2, 7)
    prediction[:, :, 1] = 2.0
    # (min(1/.5, 3) + min(1/.1, 3)) / 2 draws = (2 + 3) / 2, times the squared error 1 or 4
    loss = flow.flow_loss(prediction, torch.zeros(1, 2, 7), torch.tensor([[0.5, 0.1]]))
    torch.testing.assert_close(loss, torch.tensor([[2.5, 10.0]]))
