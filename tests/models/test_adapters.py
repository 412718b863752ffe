import dataclasses

import pytest
import torch

from vla_crl import hardware
from vla_crl.errors import ConfigError, SpecError
from vla_crl.models.adapters import (
    adapter_state_dict,
    adapters_merged,
    add_lora,
    check_loss_paths,
    is_base_trained,
    load_adapter_state_dict,
    load_trained_state_dict,
    train_adapters,
    train_only,
    train_reached,
    trainable_parameters,
    trained_state_dict,
    trains_backbone,
)
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.routes import RouterRoute

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
    with policy.adapters.acting({}):
        assert all(map(torch.equal, before, outputs(policy, observation)))
    assert all(map(torch.equal, trained, outputs(policy, observation)))


@pytest.mark.parametrize(
    ("site", "groups"),
    [
        ("head", {"head", "value"}),
        ("action_expert", {"head", "value"}),
        ("backbone", {"backbone", "value"}),
        ("both", {"backbone", "head", "value"}),
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
        if type(module) is torch.nn.Linear and "lora_" not in name
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


def test_second_set_of_adapters_is_refused(policy):
    add_lora(policy, LoRAConfig())
    with pytest.raises(
        ConfigError, match="adapter 'default': there is one of that name, of rank 8"
    ):
        add_lora(policy, LoRAConfig())


def insulate(policy, insulation):
    policy.config = dataclasses.replace(policy.config, insulation=insulation)


@pytest.mark.parametrize("site", ["backbone", "both"])
def test_backbone_adapters_under_full_insulation_get_no_gradient(policy, site):
    add_lora(policy, LoRAConfig(site=site))
    message = (
        r"no gradient of .* reaches them: 'backbone\..*lora_A.*and \d+ more, .*insulation = 'full'"
    )
    with pytest.raises(ConfigError, match=message):
        check_loss_paths(policy)
    for insulation in ("none", 0.5):
        insulate(policy, insulation)
        check_loss_paths(policy)


def test_action_expert_adapters_have_a_loss_path_under_full_insulation(policy):
    add_lora(policy, LoRAConfig(site="action_expert"))
    before = {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
    config = policy.config
    check_loss_paths(policy)
    assert before == {name: p.requires_grad for name, p in policy.named_parameters()}
    assert policy.config is config
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_checking_loss_paths_draws_nothing_of_the_global_generator(policy):
    state = torch.get_rng_state()
    check_loss_paths_of_expert(policy)
    assert torch.equal(torch.get_rng_state(), state)


def check_loss_paths_of_expert(policy):
    train_only(policy, "head", "value")
    check_loss_paths(policy)


def test_trainable_token_heads_need_a_token_loss(policy):
    insulate(policy, "none")
    train_only(policy, "head", "auxiliary")
    with pytest.raises(ConfigError, match="the token and grounding heads are trainable, but no"):
        check_loss_paths(policy)


def test_single_parameters_that_no_gradient_reaches_are_named(policy):
    insulate(policy, "none")
    train_only(policy, "head")
    unused = [name for name, _ in policy.named_parameters() if "layers.1.mlp.up_proj" in name]
    policy.get_parameter(unused[-1]).requires_grad_()
    with pytest.raises(ConfigError, match=f"reaches them: '{unused[-1]}' .insulation = 'none'"):
        check_loss_paths(policy)


def test_nothing_trainable_is_refused(policy):
    train_only(policy)
    with pytest.raises(ConfigError, match="nothing is trainable"):
        check_loss_paths(policy)


def test_of_the_groups_of_a_full_fine_tuning_what_is_reached_is_trained(policy):
    insulate(policy, "none")
    train_reached(policy, "backbone", "head", "value")
    check_loss_paths(policy)
    assert trainable_parameters(policy).keys() == {"backbone", "head", "value"}
    frozen = {name for name, p in policy.named_parameters() if not p.requires_grad}
    assert any(name.startswith("backbone.") for name in frozen)
    assert not any(name.startswith("head.expert.") for name in frozen)
    insulate(policy, "full")
    with pytest.raises(
        ConfigError, match="reaches them: all parameters of 'backbone', as it stops"
    ):
        train_reached(policy, "backbone", "value")


def test_whether_contexts_change_in_training_is_told(policy):
    add_lora(policy, LoRAConfig(rank=2, site="both"))
    assert trains_backbone(policy)
    policy.adapters.add("other", LoRAConfig(rank=2), trained=False)
    train_adapters(policy, ["other"])
    assert not trains_backbone(policy)
    policy.adapters.route = RouterRoute(router="linear", names=("other",))
    assert not trains_backbone(policy)
    policy.adapters.route = RouterRoute(router="linear", names=("default", "other"))
    train_adapters(policy, ())
    assert trains_backbone(policy)


def test_what_training_may_have_changed_is_stored_and_loaded(make_policy, observation):
    source, target = make_policy(), make_policy()
    for policy in (source, target):
        train_only(policy, "head", "value")
        assert is_base_trained(policy)
    assert trained_state_dict(source).keys() == {
        name for name, p in source.named_parameters() if p.requires_grad
    }
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.01)  # also of what is frozen
    load_trained_state_dict(target, trained_state_dict(source))
    assert all(map(torch.equal, outputs(source, observation), outputs(target, observation)))


def test_a_weight_that_changed_and_changed_back_is_stored_too(make_policy):
    source, target = make_policy(), make_policy()
    for policy in (source, target):
        add_lora(policy, LoRAConfig(rank=2))
        assert not is_base_trained(policy)
        with torch.no_grad():
            policy.state_in.bias.add_(1.0)
        assert is_base_trained(policy)
    with torch.no_grad():
        source.state_in.bias.sub_(1.0)
    load_trained_state_dict(target, trained_state_dict(source))
    assert torch.equal(target.state_in.bias, source.state_in.bias)


def test_trained_weights_of_something_else_are_refused(make_policy):
    source, target = make_policy(), make_policy()
    train_only(source, "head", "value")
    train_only(target, "head", "value", "auxiliary")
    with pytest.raises(SpecError, match="trained weights: '.*' is missing .* of the same run"):
        load_trained_state_dict(target, trained_state_dict(source))
    with pytest.raises(SpecError, match="trained weights: 'strange' is unknown"):
        load_trained_state_dict(source, trained_state_dict(source) | {"strange": torch.ones(1)})


def test_every_parameter_belongs_to_a_group(policy):
    groups = trainable_parameters(policy)
    assert groups.keys() == {"backbone", "auxiliary", "head", "value"}
    assert sum(len(group) for group in groups.values()) == len(list(policy.parameters()))


@pytest.mark.parametrize("rank", [0, 10**6])
def test_a_rank_out_of_range_is_refused(rank):
    with pytest.raises(ConfigError, match=f"rank = {rank}, expected at least 1 and at most 4096"):
        LoRAConfig(rank=rank)


def test_adapters_that_the_memory_cannot_hold_are_refused_before_they_are_made(policy, monkeypatch):
    monkeypatch.setattr(hardware, "available_memory", lambda device="cpu": 2**20)
    message = "adapter 'default' of rank 4096 in 18 layers, .*: would .* a smaller lora.rank"
    with pytest.raises(ConfigError, match=message):
        add_lora(policy, LoRAConfig(rank=4096))
    assert policy.adapters.names == ()


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
