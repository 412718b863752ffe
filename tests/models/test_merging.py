import pytest
import torch

from vla_crl.errors import ConfigError
from vla_crl.models.adapters import add_lora
from vla_crl.models.checkpoint import load_policy, save_policy
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.merging import merge_adapters
from vla_crl.models.routes import RouterRoute, TaskRoute


def outputs(policy, observation):
    with torch.no_grad():
        chunk = policy.act(policy.encode(observation), deterministic=True)
    return chunk.actions, chunk.value


@pytest.fixture
def adapted(policy):
    """A policy with adapters everywhere, as after a training."""
    add_lora(policy, LoRAConfig(rank=2, alpha=3, site="both"))
    for name, parameter in policy.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return policy


def test_a_merged_policy_acts_as_with_its_adapters_up_to_rounding(adapted, observation):
    before = outputs(adapted, observation)
    base = outputs_of_base(adapted, observation)
    merge_adapters(adapted)
    after = outputs(adapted, observation)
    assert (before[0] - base[0]).abs().max() > 0.01  # the adapters do something
    for own, other in zip(after, before, strict=True):
        torch.testing.assert_close(own, other, rtol=0.0, atol=1e-5)


def outputs_of_base(policy, observation):
    with policy.adapters.acting({}):
        return outputs(policy, observation)


def test_merged_weights_are_the_sum_by_its_formula(adapted):
    layer = adapted.head.expert.layers[0].gate_proj
    down, up = layer.matrices("default")
    expected = layer.weight + 3 / 2 * up @ down  # as get_delta_weight of peft
    merge_adapters(adapted)
    torch.testing.assert_close(
        adapted.head.expert.layers[0].gate_proj.weight, expected, rtol=1e-6, atol=1e-7
    )


def test_a_merged_policy_is_one_without_adapters_on_disk_too(
    adapted, make_policy, observation, tmp_path
):
    merge_adapters(adapted)
    assert adapted.state_dict().keys() == make_policy().state_dict().keys()
    assert all(parameter.requires_grad for parameter in adapted.parameters())
    save_policy(adapted, tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.adapters.names == ()
    for own, other in zip(outputs(loaded, observation), outputs(adapted, observation), strict=True):
        assert torch.equal(own, other)
    add_lora(loaded, LoRAConfig())  # and may be trained again


def test_a_policy_without_adapters_is_not_merged(policy):
    with pytest.raises(ConfigError, match="has no adapters to be merged"):
        merge_adapters(policy)


def test_of_several_adapters_what_acts_is_merged(adapted, observation):
    bank = adapted.adapters
    for name in ("second", "resting"):
        bank.add(name, LoRAConfig(rank=3, site="both"), trained=False)
        for _, up in bank.matrices(name).values():
            torch.nn.init.normal_(up, std=0.1)
    bank.activate({"default": 0.5, "second": -0.25})
    before = outputs(adapted, observation)
    merge_adapters(adapted)
    for own, other in zip(outputs(adapted, observation), before, strict=True):
        torch.testing.assert_close(own, other, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(
    ("route", "said"),
    [
        (TaskRoute(tasks={"a": {"default": 1.0}}), "chosen by task, so no single .* every task,"),
        (RouterRoute(router="linear", names=("default",)), "chosen by router, so .* every input,"),
    ],
)
def test_adapters_that_are_chosen_anew_are_not_merged(adapted, route, said):
    adapted.adapters.route = route
    with pytest.raises(ConfigError, match=f"the policy's adapters default are {said}.*keep them"):
        merge_adapters(adapted)
    assert adapted.adapters.names == ("default",)


def test_where_no_adapter_acts_there_is_nothing_to_merge(adapted):
    adapted.adapters.activate({})
    with pytest.raises(ConfigError, match="none of the policy's adapters default acts"):
        merge_adapters(adapted)


def damage_dtype(layer):
    layer.weight.data = layer.weight.data.bfloat16()


def damage_numbers(layer):
    layer.lora_B["default"].weight.data[0, 0] = float("inf")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (damage_dtype, "is held in torch.bfloat16, in which the sum is rounded"),
        (damage_numbers, "would have numbers that are not finite"),
    ],
)
def test_what_is_no_sum_is_refused_by_name_and_nothing_is_merged(adapted, change, said):
    layer = adapted.head.expert.layers[1].up_proj
    change(layer)
    names = list(adapted.state_dict())
    with pytest.raises(ConfigError, match=f"'head.expert.layers.1.up_proj' {said}"):
        merge_adapters(adapted)
    assert list(adapted.state_dict()) == names
    assert adapted.adapters.names == ("default",)
