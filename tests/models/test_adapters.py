import pytest
import torch

from vla_crl import hardware
from vla_crl.errors import ConfigError, SpecError
from vla_crl.models.adapters import (
    adapter_disabled,
    adapter_layout,
    adapter_state_dict,
    adapters_merged,
    add_lora,
    check_checkpoint_holds,
    check_loss_paths,
    load_adapter_state_dict,
    train_only,
    trainable_parameters,
)
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.merged_lora import MergedLinear

SITES = ["action_expert", "backbone", "both"]


def outputs(policy, observation):
    chunk = policy.act(policy.encode(observation), deterministic=True)
    return chunk.trace.x_next.clone(), chunk.value.clone()


def randomize_adapters(policy) -> None:
    for name, parameter in policy.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)


@pytest.mark.parametrize("site", SITES)
def test_adding_adapters_leaves_the_output_unchanged(policy, observation, site):
    before = outputs(policy, observation)
    add_lora(policy, LoRAConfig(rank=2, site=site))
    assert all(map(torch.equal, before, outputs(policy, observation)))


@pytest.mark.parametrize("site", SITES)
def test_disabled_trained_adapters_give_the_base_bit_for_bit(policy, observation, site):
    before = outputs(policy, observation)
    add_lora(policy, LoRAConfig(rank=2, site=site))
    randomize_adapters(policy)
    trained = outputs(policy, observation)
    assert not torch.equal(trained[0], before[0])
    with adapter_disabled(policy):
        assert all(map(torch.equal, before, outputs(policy, observation)))
    assert all(map(torch.equal, trained, outputs(policy, observation)))


def test_disabling_keeps_what_is_trainable_even_after_an_error(policy):
    add_lora(policy, LoRAConfig())
    before = {name: p.requires_grad for name, p in policy.named_parameters()}
    with pytest.raises(KeyError), adapter_disabled(policy):
        raise KeyError
    assert before == {name: p.requires_grad for name, p in policy.named_parameters()}


@pytest.mark.parametrize(
    ("site", "groups"),
    [
        ("action_expert", {"action_expert", "value"}),
        ("backbone", {"backbone", "value"}),
        ("both", {"backbone", "action_expert", "value"}),
    ],
)
def test_only_adapters_and_value_head_are_trainable(policy, site, groups):
    add_lora(policy, LoRAConfig(site=site))
    assert trainable_parameters(policy).keys() == groups
    for name, parameter in policy.named_parameters():
        assert parameter.requires_grad == ("lora_" in name or name.startswith("value_head."))


def test_every_linear_layer_of_the_action_expert_has_an_adapter(policy):
    add_lora(policy, LoRAConfig(site="action_expert"))
    plain = [
        name
        for name, module in policy.head.expert.named_modules()
        if type(module) is torch.nn.Linear and "lora_" not in name and "base_layer" not in name
    ]
    assert plain == []


def test_every_adapter_on_the_action_expert_receives_a_gradient_from_ppo(policy, observation):
    add_lora(policy, LoRAConfig(rank=2, site="action_expert"))
    randomize_adapters(policy)
    with torch.no_grad():
        context = policy.encode(observation)
    chunk = policy.act(context, deterministic=False, generator=torch.Generator().manual_seed(0))
    found = policy.evaluate_actions(context, chunk.trace)
    (found.density.log_prob().sum() + found.value.sum()).backward()
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert (parameter.grad != 0).any(), name


def test_ratio_is_exactly_one_with_adapters(policy, observation):
    add_lora(policy, LoRAConfig(rank=2))
    randomize_adapters(policy)
    with torch.no_grad():
        context = policy.encode(observation)
    chunk = policy.act(context, deterministic=False)
    assert torch.equal(
        policy.evaluate_actions(context, chunk.trace).density.log_prob(), chunk.log_prob
    )


def test_adapter_state_moves_to_another_copy_of_the_base(make_policy, observation):
    source, target = make_policy(), make_policy()
    for policy in (source, target):
        add_lora(policy, LoRAConfig(rank=2, site="both"))
    randomize_adapters(source)
    load_adapter_state_dict(target, adapter_state_dict(source))
    assert all(map(torch.equal, outputs(source, observation), outputs(target, observation)))


def test_adapter_state_of_another_site_is_refused(make_policy):
    source, target = make_policy(), make_policy()
    add_lora(source, LoRAConfig(site="backbone"))
    add_lora(target, LoRAConfig(site="action_expert"))
    with pytest.raises(SpecError, match="adapters: 'backbone.*lora_A.*' is unknown"):
        load_adapter_state_dict(target, adapter_state_dict(source))


def test_adapter_state_of_another_rank_is_refused(make_policy):
    source, target = make_policy(), make_policy()
    add_lora(source, LoRAConfig(rank=2))
    add_lora(target, LoRAConfig(rank=4))
    with pytest.raises(SpecError, match=r"has shape \(2, 28\), expected \(4, 28\)"):
        load_adapter_state_dict(target, adapter_state_dict(source))


def test_adapters_that_act_otherwise_than_they_are_loaded_are_told(policy):
    add_lora(policy, LoRAConfig(rank=2, alpha=2))
    layout = adapter_layout(policy)
    check_checkpoint_holds(policy, layout, "here")
    randomize_adapters(policy)
    check_checkpoint_holds(policy, layout, "here")
    message = r"here: adapters were changed: '.*' is \(\['default'\], \{'default': 3.0\}\), exp"
    layer = next(module for module in policy.modules() if isinstance(module, MergedLinear))
    layer.scaling["default"] = 3.0
    with pytest.raises(ConfigError, match=message):
        check_checkpoint_holds(policy, layout, "here")
    layer.scaling["default"] = 1.0
    layer.enable_adapters(False)
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"is \('switched off', .*; a checkpoint could not"):
        check_checkpoint_holds(policy, layout, "here")


def test_second_set_of_adapters_is_refused(policy):
    add_lora(policy, LoRAConfig())
    with pytest.raises(ConfigError, match="already has adapters"):
        add_lora(policy, LoRAConfig())


@pytest.mark.parametrize("site", ["backbone", "both"])
def test_backbone_adapters_under_full_insulation_need_a_token_loss(policy, site):
    add_lora(policy, LoRAConfig(site=site))
    with pytest.raises(ConfigError, match="no gradient reaches them: .*insulation = 'full'"):
        check_loss_paths(policy, "full")
    check_loss_paths(policy, "full", has_token_losses=True)
    check_loss_paths(policy, "none")
    check_loss_paths(policy, 0.5)


def test_action_expert_adapters_have_a_loss_path_under_full_insulation(policy):
    add_lora(policy, LoRAConfig(site="action_expert"))
    check_loss_paths(policy, "full")


def test_trainable_token_heads_need_a_token_loss(policy):
    train_only(policy, "action_expert", "heads")
    with pytest.raises(ConfigError, match="no token loss is trained"):
        check_loss_paths(policy, "none")


def test_nothing_trainable_is_refused(policy):
    train_only(policy)
    with pytest.raises(ConfigError, match="nothing is trainable"):
        check_loss_paths(policy, "none")


def test_every_parameter_belongs_to_a_group(policy):
    groups = trainable_parameters(policy)
    assert groups.keys() == {"backbone", "heads", "action_expert", "value"}
    assert sum(len(group) for group in groups.values()) == len(list(policy.parameters()))


@pytest.mark.parametrize("rank", [0, 10**6])
def test_a_rank_out_of_range_is_refused(rank):
    with pytest.raises(ConfigError, match=f"rank = {rank}, expected at least 1 and at most 4096"):
        LoRAConfig(rank=rank)


def test_adapters_that_the_memory_cannot_hold_are_refused_before_they_are_made(policy, monkeypatch):
    monkeypatch.setattr(hardware, "available_memory", lambda device="cpu": 2**20)
    with pytest.raises(ConfigError, match="adapters of rank 4096: would .* a smaller lora.rank"):
        add_lora(policy, LoRAConfig(rank=4096))
    assert policy.lora is None


@pytest.mark.parametrize("site", SITES)
def test_merged_adapters_act_as_they_do(policy, observation, site):
    add_lora(policy, LoRAConfig(rank=2, site=site))
    randomize_adapters(policy)
    before = outputs(policy, observation)
    with adapters_merged(policy):
        assert all(map(torch.equal, before, outputs(policy, observation)))
        randomize_adapters(policy)
        assert all(map(torch.equal, before, outputs(policy, observation)))  # what it is told not to
    assert not torch.equal(before[0], outputs(policy, observation)[0])


def test_merged_adapters_are_let_go_of_after_an_error(policy, observation):
    with adapters_merged(policy):
        pass  # without adapters there is nothing to do
    add_lora(policy, LoRAConfig(rank=2))
    randomize_adapters(policy)
    before = outputs(policy, observation)
    with pytest.raises(KeyError), adapters_merged(policy):
        raise KeyError
    randomize_adapters(policy)
    assert not torch.equal(before[0], outputs(policy, observation)[0])
