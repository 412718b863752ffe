from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal

from vla_crl.errors import ConfigError
from vla_crl.models.action_expert import ActionExpertConfig
from vla_crl.models.adapters import add_lora
from vla_crl.models.heads.flow import FlowConfig
from vla_crl.models.heads.noise import NoiseConfig
from vla_crl.models.lora import LoRAConfig

EXPERT = ActionExpertConfig(width=12, num_heads=2, mlp_width=16)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def policy(make_policy):
    policy = make_policy(head=NoiseConfig(num_steps=3, expert=EXPERT, noise_width=5))
    for parameter in policy.head.noise_network.parameters():
        torch.nn.init.normal_(parameter)  # at zero all deviations would be alike
    return policy


@pytest.fixture
def context(policy, observation):
    with torch.no_grad():
        return policy.insulate(policy.encode(observation))


def test_every_step_is_normal_around_the_euler_step(policy, context):
    head = policy.head
    with torch.no_grad():
        sampled = head.sample(context, deterministic=False, generator=seeded())
    x, memory = sampled.trace.x, head.expert.remember(context)
    assert x.shape == (4, 4, 8, 7)
    assert not x[:, 0].any()
    assert torch.equal(x[:, -1], sampled.actions)
    log_probs = []
    for index, t in enumerate((1.0, 2 / 3, 1 / 3)):
        here = x[:, index, None]
        features = head.expert.features(memory, here, torch.full((4, 1), t))
        velocity = (here - head.expert.chunks(features)) / t
        # tanh in [-1, 1] is log sigma between log .08 and log .16
        tanh = head.noise_network(features).reshape(4, 1, 8, 7)
        std = 0.08 * 2.0 ** ((tanh + 1) / 2)
        normal = Normal(here - velocity / 3, std)
        log_probs.append(normal.log_prob(x[:, index + 1, None])[:, :, :4].sum(dim=(2, 3)))
    expected = torch.cat(log_probs, dim=1)
    assert expected.shape == (4, 3)
    for density in (sampled.density, head.density(context, sampled.trace)):
        torch.testing.assert_close(density.log_prob(), expected, rtol=1e-5, atol=1e-4)


def test_deviations_begin_at_the_geometric_mean_of_their_bounds(make_policy, observation):
    policy = make_policy(head=NoiseConfig(min_std=0.1, max_std=0.4, expert=EXPERT))
    with torch.no_grad():
        chunk = policy.act(policy.encode(observation), deterministic=False, generator=seeded())
        evaluation = policy.evaluate_actions(policy.encode(observation), chunk.trace)
    std = evaluation.density.parameters["std"]
    assert std.shape == (4, 4, 4, 7)
    torch.testing.assert_close(std, torch.full_like(std, 0.2))  # sqrt(.1 * .4)


def test_deterministic_actions_are_those_of_a_flow_with_the_same_expert(
    policy, make_policy, observation
):
    flow = make_policy(head=FlowConfig(num_steps=3, expert=EXPERT))
    found = flow.load_state_dict(policy.state_dict(), strict=False)
    assert all("noise_network" in name for name in found.unexpected_keys)
    policy.explore({"initial_noise": "normal"})
    with torch.no_grad():
        ours, theirs = (
            p.act(p.encode(observation), deterministic=True).actions for p in (policy, flow)
        )
    torch.testing.assert_close(ours, theirs)


def test_a_start_of_normal_noise_is_in_the_trace_and_in_no_part(policy, context):
    policy.explore({"initial_noise": "normal"})
    with torch.no_grad():
        sampled = policy.head.sample(context, deterministic=False, generator=seeded())
    assert sampled.trace.x[:, 0].std() == pytest.approx(1.0, abs=0.2)
    assert sampled.density.log_prob().shape == (4, 3)


def test_adapters_leave_the_noise_network_itself_to_be_trained(policy):
    add_lora(policy, LoRAConfig(rank=2))
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    noise = {name for name in trained if "noise_network" in name}
    assert noise == {
        f"head.noise_network.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }
    assert not any(".base_layer." in name for name in trained)


def test_reward_teaches_the_noise_network_and_demonstrations_do_not(policy, context):
    parameters = list(policy.head.noise_network.parameters())
    loss = policy.head.imitation(context, torch.zeros(4, 8, 7), seeded()).sum()
    assert torch.autograd.grad(loss, parameters, allow_unused=True) == (None,) * 4
    with torch.no_grad():
        trace = policy.head.sample(context, deterministic=False, generator=seeded()).trace
    log_prob = policy.head.density(context, trace).log_prob().sum()
    assert all(gradient.any() for gradient in torch.autograd.grad(log_prob, parameters))


def test_bounds_in_the_wrong_order_are_refused(policy):
    with pytest.raises(ConfigError, match=r"min_std = 0.3 is above max_std = 0.2; give the small"):
        replace(policy.config.head, min_std=0.3, max_std=0.2)
    with pytest.raises(ConfigError, match=r"exploration of the head 'noise'.*min_std = 0.3"):
        policy.explore({"min_std": 0.3})


def test_settings_of_another_head_are_refused(policy):
    with pytest.raises(ConfigError, match="'noise'.*unknown setting 'noise_level'"):
        policy.explore({"noise_level": 0.5})
