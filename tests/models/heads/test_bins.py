"""The heads that choose bins: parallel ones and those that follow one another."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from vla_crl.errors import ConfigError
from vla_crl.models.adapters import (
    add_lora,
)
from vla_crl.models.checkpoint import load_policy, save_policy
from vla_crl.models.heads.bins import BinTrace, choose, to_actions
from vla_crl.models.heads.parallel import ParallelConfig
from vla_crl.models.heads.tokens import TokensConfig
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.token_heads import to_bins
from vla_crl.rollout.contexts import plan_contexts
from vla_crl.testing.strict_device import strict_device

KINDS = {"parallel": ParallelConfig(num_bins=9), "tokens": TokensConfig(num_bins=9)}
EXECUTED, PLANNED = 2, 4
ROUNDING = 1e-5
"""What a log-probability may differ by where numbers are summed in another order."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def policy(make_policy, kind):
    """One that is not indifferent, but has something to say of each bin."""
    policy = make_policy(
        head=KINDS[kind],
        insulation="none",
        action_horizon=PLANNED,
        execution_horizon=EXECUTED,
    )
    with torch.no_grad():
        for parameter in policy.head.parameters():
            parameter.normal_(generator=seeded(1))
    return policy


@pytest.fixture
def context(policy, observation):
    with torch.no_grad():
        return policy.encode(observation)


def sampled(policy, context, *, deterministic: bool = False) -> Any:
    return policy.act(context, deterministic=deterministic, generator=seeded())


def test_sampled_bins_have_the_log_probability_of_the_pass_that_evaluates_them(policy, context):
    chunk = sampled(policy, context)
    assert chunk.trace.bins.shape == (4, PLANNED, 7)
    assert chunk.log_prob.shape == (4, EXECUTED * 7)
    found = policy.evaluate_actions(context, chunk.trace).density.log_prob()
    # Of one pass over all tokens, and of one token after another.
    torch.testing.assert_close(found, chunk.log_prob, rtol=0, atol=ROUNDING)
    assert chunk.log_prob.std() > 0.1


def test_density_is_that_of_torch_distributions(policy, context):
    trace = sampled(policy, context).trace
    density = policy.head.density(context, trace)
    policy.explore({"temperature": 2.5})
    other = policy.head.density(context, trace)
    logits = policy.head.logits(context, trace.bins[:, :EXECUTED]).flatten(1, 2)
    own, theirs = Categorical(logits=logits), Categorical(logits=logits / 2.5)
    bins = trace.bins[:, :EXECUTED].flatten(1)
    torch.testing.assert_close(density.log_prob(), own.log_prob(bins))
    torch.testing.assert_close(other.log_prob(), theirs.log_prob(bins))
    torch.testing.assert_close(density.entropy(), own.entropy().sum(dim=1))
    torch.testing.assert_close(density.kl(other), kl_divergence(own, theirs).sum(dim=1))


def test_only_executed_actions_are_in_the_density(policy, context):
    chunk = sampled(policy, context)
    others = chunk.trace.bins.clone()
    others[:, EXECUTED:] = (others[:, EXECUTED:] + 3) % 9
    found = policy.evaluate_actions(context, BinTrace(others)).density.log_prob()
    expected = policy.evaluate_actions(context, chunk.trace).density.log_prob()
    assert torch.equal(found, expected)
    others[:, EXECUTED - 1] = (others[:, EXECUTED - 1] + 3) % 9
    found = policy.evaluate_actions(context, BinTrace(others)).density.log_prob()
    assert (found[:, -7:] != expected[:, -7:]).all()


def test_deterministic_actions_are_the_likeliest_bins(policy, context):
    chunk = sampled(policy, context, deterministic=True)
    logits = policy.head.logits(context, chunk.trace.bins)
    assert torch.equal(logits.argmax(dim=-1), chunk.trace.bins)
    assert torch.equal(chunk.actions, to_actions(chunk.trace.bins, 9))
    policy.explore({"temperature": 50.0})
    assert torch.equal(sampled(policy, context, deterministic=True).actions, chunk.actions)


def test_a_low_temperature_samples_what_is_likeliest_and_a_high_one_anything(policy, context):
    likeliest = sampled(policy, context, deterministic=True).trace.bins
    policy.explore({"temperature": 1e-3})
    assert torch.equal(sampled(policy, context).trace.bins, likeliest)
    policy.explore({"temperature": 100.0})
    bins = sampled(policy, context).trace.bins
    # 112 numbers are 9 bins each about 12 times.
    assert torch.bincount(bins.flatten(), minlength=9).min() > 3


def test_bins_are_drawn_as_often_as_they_are_likely():
    logits = torch.tensor([2.0, -1.0, 0.5, -40.0])
    uniform = torch.rand(100_000, generator=seeded())
    bins = choose(logits.expand(100_000, -1), 2.0, uniform)
    found = torch.bincount(bins, minlength=4) / 100_000
    # One standard error is at most sqrt(.25 / 100,000) = .0016.
    torch.testing.assert_close(found, (logits / 2.0).softmax(dim=0), rtol=0, atol=0.007)


def test_the_ends_of_what_is_drawn_are_bins_that_can_be():
    logits = torch.tensor([-200.0, 0.0, 0.0, -200.0])
    ends = torch.tensor([0.0, 1.0 - 2.0**-24])
    assert choose(logits.expand(2, -1), 1.0, ends).tolist() == [1, 2]


def test_imitation_is_the_cross_entropy_of_the_bins(policy, context):
    actions = torch.rand(4, PLANNED, 7, generator=seeded()) * 2 - 1
    actions[0, 0] = torch.tensor([-1.0, 1.0, 0.0, -0.12, 0.12, -0.34, 0.99])
    # Nine bins of width 2/9 from -1: the fifth is -.111 to .111, the fourth -.333 to -.111.
    bins = to_bins((actions + 1) / 2, 9)
    assert bins[0, 0].tolist() == [0, 8, 4, 3, 5, 2, 8]
    log_probs = policy.head.logits(context, bins).log_softmax(dim=-1)
    expected = torch.stack([-log_probs[..., b] for b in range(9)], dim=-1)
    expected = (expected * torch.nn.functional.one_hot(bins, 9)).sum(dim=-1).mean(dim=-1)
    policy.explore({"temperature": 3.0})  # of sampling alone
    found = policy.head.imitation(context, actions, None)
    torch.testing.assert_close(found, expected)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    rows = policy.imitation(context, actions, mask)
    torch.testing.assert_close(rows[1], expected[1, 0])
    torch.testing.assert_close(rows[2], expected[2, :2].mean())
    assert rows[3] == 0


def test_an_action_is_the_centre_of_its_bin_and_zero_is_one():
    centres = to_actions(torch.arange(9), 9)
    torch.testing.assert_close(centres, torch.arange(-8, 9, 2) / 9)
    assert centres[4] == 0.0
    assert torch.equal(to_bins((centres + 1) / 2, 9), torch.arange(9))


def test_an_even_number_of_bins_is_refused():
    with pytest.raises(ConfigError, match="num_bins = 256 has no bin for 0.* such as 257"):
        TokensConfig(num_bins=256)


def test_a_bin_depends_on_those_before_it_alone_or_on_none(policy, context, kind):
    bins = sampled(policy, context).trace.bins
    changed = bins.clone()
    changed[:, 1, 3] = (changed[:, 1, 3] + 1) % 9
    before, after = (policy.head.logits(context, b).flatten(1, 2) for b in (bins, changed))
    differs = (before - after).abs().amax(dim=(0, 2)) > ROUNDING
    assert differs.tolist() == [kind == "tokens" and number > 10 for number in range(28)]


def test_tokens_of_a_parallel_head_see_those_behind_them(make_policy, observation):
    policy = make_policy(head=KINDS["parallel"], insulation="none")
    context = policy.encode(observation)
    before = policy.head.logits(context, torch.zeros(4, 8, 7).long())
    with torch.no_grad():
        policy.head.queries[-1] += 1.0
    after = policy.head.logits(context, torch.zeros(4, 8, 7).long())
    assert ((before - after).abs().amax(dim=(0, 2, 3)) > ROUNDING).all()


def backbone_gradients(policy, observation) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    context = policy.encode(observation)
    trace = sampled(policy, context).trace
    policy.evaluate_actions(context, trace).density.log_prob().sum().backward()
    named = policy.backbone.named_parameters()
    return {name: p.grad for name, p in named if p.grad is not None and p.grad.any()}


def test_the_gradient_reaches_the_backbone_before_and_behind_the_context(policy, observation):
    reached = backbone_gradients(policy, observation)
    layer = "text_model.layers.1."  # the last one, whose queries and MLP no context depends on
    behind = [
        name for name in reached if f"{layer}self_attn.q_proj" in name or f"{layer}mlp" in name
    ]
    assert len(behind) == 4
    assert "image_position" in reached
    assert any("vision_model" in name for name in reached)


def test_full_insulation_stops_the_gradient_at_the_context_only(policy, observation):
    joint = backbone_gradients(policy, observation)
    policy.config = replace(policy.config, insulation="full")
    reached = backbone_gradients(policy, observation)
    text = {name for name in joint if ".text_model.layers." in name}
    assert reached.keys() - {"model.text_model.norm.weight"} == text


@pytest.mark.parametrize("site", ["backbone", "both"])
def test_every_adapter_gets_a_gradient_and_layers_behind_the_context_have_one(
    policy, observation, site
):
    add_lora(policy, LoRAConfig(rank=2, site=site))
    for name, parameter in policy.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, generator=seeded())
    backbone_gradients(policy, observation)
    adapters = {name: p for name, p in policy.named_parameters() if "lora_" in name}
    assert all(p.grad is not None and p.grad.any() for p in adapters.values())
    assert any("layers.1.mlp.down_proj" in name for name in adapters)
    assert any(name.startswith("head.output.") for name in adapters) == (site == "both")


def test_stored_contexts_are_refused_where_the_backbone_is_trained(policy):
    add_lora(policy, LoRAConfig(rank=2, site="backbone"))
    with pytest.raises(ConfigError, match="contexts is 'stored', but weights of the backbone are"):
        plan_contexts(policy, 8, "stored", 1.0)
    assert plan_contexts(policy, 8, None, 1.0).contexts == "every_epoch"


def test_a_checkpoint_acts_as_what_was_saved(policy, context, observation, tmp_path, kind):
    policy.explore({"temperature": 0.5})
    save_policy(policy, tmp_path / "base")
    loaded = load_policy(tmp_path / "base")
    assert loaded.config.head == replace(KINDS[kind], temperature=0.5)
    chunk, again = sampled(policy, context), sampled(loaded, loaded.encode(observation))
    assert torch.equal(chunk.trace.bins, again.trace.bins)
    assert torch.equal(chunk.log_prob, again.log_prob)


def test_settings_of_another_head_are_refused(policy, kind):
    message = f"exploration of the head '{kind}': unknown setting 'noise_level'.*temperature"
    with pytest.raises(ConfigError, match=message):
        policy.explore({"noise_level": 0.5})
    with pytest.raises(ConfigError, match=r"temperature = 0.0, expected more than 0"):
        policy.explore({"temperature": 0.0})


def test_log_probabilities_are_float32_on_a_bfloat16_backbone(policy, observation, tmp_path):
    save_policy(policy, tmp_path / "base")
    rounded = load_policy(tmp_path / "base", dtype="bfloat16")
    with torch.no_grad():
        context = rounded.encode(observation)
        chunk = sampled(rounded, context)
        found = rounded.evaluate_actions(context, chunk.trace).density.log_prob()
        exact = policy.evaluate_actions(policy.encode(observation), chunk.trace).density.log_prob()
    assert context.keys.dtype == torch.bfloat16
    assert found.dtype == chunk.log_prob.dtype == torch.float32
    # Numbers of bfloat16 have 8 bits, logits here are up to 15.
    torch.testing.assert_close(found, chunk.log_prob, rtol=0, atol=0.3)
    torch.testing.assert_close(found, exact, rtol=0, atol=1.0)


def test_the_same_is_drawn_and_learnt_on_a_device(policy, context, observation, tmp_path):
    save_policy(policy, tmp_path / "base")
    chunk = sampled(policy, context)
    with strict_device() as device:
        other = load_policy(tmp_path / "base", device=device)
        seen = other.encode(observation)
        again = sampled(other, seen.detach())
        assert torch.equal(again.trace.bins.cpu(), chunk.trace.bins)
        actions = torch.zeros(4, PLANNED, 7, device=device)
        loss = other.head.imitation(other.insulate(seen), actions, seeded()).sum()
        loss -= other.evaluate_actions(seen, again.trace).density.log_prob().sum()
        loss.backward()
        for name, parameter in other.head.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
