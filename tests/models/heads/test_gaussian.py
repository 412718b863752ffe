import pytest
import torch
from torch.distributions import Normal

from vla_crl.errors import ConfigError
from vla_crl.models.action_expert import ActionExpertConfig
from vla_crl.models.adapters import add_lora
from vla_crl.models.checkpoint import load_policy, save_adapter, save_policy
from vla_crl.models.heads.gaussian import GaussianConfig
from vla_crl.models.lora import LoRAConfig

EXPERT = ActionExpertConfig(width=12, num_heads=2, mlp_width=16)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def policy(make_policy):
    return make_policy(head=GaussianConfig(std=0.2, expert=EXPERT))


@pytest.fixture
def context(policy, observation):
    with torch.no_grad():
        return policy.insulate(policy.encode(observation))


def sample(policy, context, *, deterministic: bool = False):
    with torch.no_grad():
        return policy.head.sample(context, deterministic=deterministic, generator=seeded())


def test_density_is_that_of_torch_around_the_deterministic_actions(policy, context):
    factor = torch.linspace(0.5, 2.0, 7)
    policy.head.log_factor.data = factor.log()
    mean, sampled = sample(policy, context, deterministic=True).actions, sample(policy, context)
    normal = Normal(mean, 0.2 * factor.expand_as(mean))
    expected = normal.log_prob(sampled.actions)[:, :4].sum(dim=(1, 2))[:, None]
    found = policy.head.density(context, sampled.trace)
    torch.testing.assert_close(found.log_prob(), expected)
    torch.testing.assert_close(sampled.density.log_prob(), expected)
    torch.testing.assert_close(found.entropy(), normal.entropy()[:, :4].sum(dim=(1, 2)))


def test_learnt_deviations_agree_with_the_gaussian_of_stable_baselines3(policy, context):
    distributions = pytest.importorskip("stable_baselines3.common.distributions")
    policy.head.log_factor.data = torch.linspace(-1.0, 1.0, 7)
    sampled, mean = sample(policy, context), sample(policy, context, deterministic=True).actions
    log_std = (policy.head.log_factor + torch.tensor(0.2).log()).expand(4, 7).flatten()
    theirs = distributions.DiagGaussianDistribution(28).proba_distribution(
        mean[:, :4].flatten(1), log_std
    )
    expected = theirs.log_prob(sampled.actions[:, :4].flatten(1))
    torch.testing.assert_close(
        policy.head.density(context, sampled.trace).log_prob()[:, 0], expected
    )


def test_supervised_loss_is_the_mean_absolute_error_of_the_deterministic_actions(policy, context):
    actions = torch.randn(4, 8, 7, generator=seeded())
    mean = sample(policy, context, deterministic=True).actions
    expected = (mean - actions).abs().sum(dim=2) / 7
    torch.testing.assert_close(policy.head.imitation(context, actions, None), expected)


def test_another_deviation_scales_what_was_learnt(policy, context):
    policy.head.log_factor.data = torch.full((7,), 0.5).log()
    policy.explore({"std": 0.6})
    std = sample(policy, context).density.parameters["std"]
    torch.testing.assert_close(std, torch.full_like(std, 0.3))


def test_deviations_are_trained_beside_adapters_and_lie_in_their_checkpoint(
    policy, tmp_path, observation
):
    save_policy(policy, tmp_path / "base")
    policy = load_policy(tmp_path / "base")
    add_lora(policy, LoRAConfig(rank=2))
    assert policy.head.log_factor.requires_grad
    policy.head.log_factor.data = torch.linspace(-1.0, 1.0, 7)
    policy.explore({"std": 0.4})
    save_adapter(policy, tmp_path / "stage", str(tmp_path / "base"))
    loaded = load_policy(tmp_path / "stage")
    assert loaded.exploration == {"std": 0.4}
    with torch.no_grad():
        ours, theirs = (
            p.act(p.encode(observation), deterministic=False, generator=seeded())
            for p in (policy, loaded)
        )
    torch.testing.assert_close(ours.actions, theirs.actions)
    torch.testing.assert_close(ours.log_prob, theirs.log_prob)


def test_a_deviation_of_zero_is_refused(policy):
    with pytest.raises(ConfigError, match=r"the head 'gaussian': std = 0\.0, expected more than 0"):
        policy.explore({"std": 0.0})


def test_settings_of_another_head_are_refused_with_those_it_has(policy):
    with pytest.raises(ConfigError, match="'gaussian'.*unknown setting 'noise_level'.*std"):
        policy.explore({"noise_level": 0.5})
