import copy
import warnings
from typing import Any

import peft
import pytest
import torch
from torch import nn

from vla_crl.models.adapted_linear import MAX_MERGED_NUMBERS, AdaptedLinear
from vla_crl.models.adapters import add_lora
from vla_crl.models.lora import LoRAConfig


def both(rank=2, alpha=3, *, bias=True, names=("default",)) -> tuple[AdaptedLinear, Any]:
    """Return a layer of ours and one of peft with the same numbers; B is not zero."""
    torch.manual_seed(0)
    base = nn.Linear(7, 5, bias=bias)
    theirs: Any = nn.ModuleDict({"layer": copy.deepcopy(base)})
    ours: Any = AdaptedLinear(base, "layer")
    for name in names:
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["layer"])
        torch.manual_seed(1)
        with warnings.catch_warnings(action="ignore"):  # peft asks whether several are wanted
            peft.inject_adapter_in_model(config, theirs, name)
        torch.manual_seed(1)
        ours.add(name, rank)
        for part in ("lora_A", "lora_B"):
            own, other = (getattr(x, part)[name].weight for x in (ours, theirs["layer"]))
            assert torch.equal(own, other)
        nn.init.normal_(ours.lora_B[name].weight)
        theirs["layer"].lora_B[name].weight.data.copy_(ours.lora_B[name].weight)
    theirs["layer"].set_adapter([*names])
    ours.set_acting(dict.fromkeys(names, alpha / rank))
    return ours, theirs["layer"]


def numbers(layer, x, name="default"):
    """Return the output and the gradients of the adapter and of the input."""
    adapter = layer.lora_A[name].weight, layer.lora_B[name].weight
    x = x.clone().requires_grad_()
    output = layer(x)
    return output, *torch.autograd.grad(output.square().sum(), (*adapter, x))


def assert_alike(ours, theirs, **tolerance):
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, **tolerance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("is_narrow", [True, False])
def test_output_and_gradients_are_those_of_peft(monkeypatch, bias, is_narrow):
    ours, theirs = both(bias=bias)
    if not is_narrow:
        monkeypatch.setattr("vla_crl.models.adapted_linear.MAX_MERGED_NUMBERS", 8)
    assert ours.is_merged == is_narrow
    x = torch.randn(5, 3, 7)
    assert_alike(numbers(ours, x), numbers(theirs, x), rtol=1e-5, atol=1e-5)
    if not is_narrow:
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("is_narrow", [True, False])
def test_several_adapters_add_up_as_those_of_peft_do(monkeypatch, is_narrow):
    ours, theirs = both(names=("a", "b"))
    if not is_narrow:
        monkeypatch.setattr("vla_crl.models.adapted_linear.MAX_MERGED_NUMBERS", 8)
    ours.set_acting({"a": 1.5, "b": 0.75})
    theirs.set_scale("b", 0.5)
    x = torch.randn(5, 7)
    for name in ("a", "b"):
        assert_alike(numbers(ours, x, name), numbers(theirs, x, name), rtol=1e-4, atol=1e-4)


def test_where_numbers_are_short_outputs_are_added_as_in_peft():
    ours, theirs = both()
    x = torch.randn(5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), theirs(x))
    for layer in (ours, theirs.base_layer):
        layer.weight.data, layer.bias.data = layer.weight.bfloat16(), layer.bias.bfloat16()
    assert ours.weight.numel() < MAX_MERGED_NUMBERS
    assert not ours.is_merged
    assert torch.equal(ours(x.bfloat16()), theirs(x.bfloat16()))


def test_without_what_acts_it_is_the_base_bit_for_bit():
    ours, theirs = both()
    x = torch.randn(5, 7)
    ours.set_acting({})
    assert torch.equal(ours(x), theirs.base_layer(x))
    base = ours.base()
    assert base.weight is ours.weight
    assert torch.equal(base(x), theirs.base_layer(x))


def test_kept_weights_are_let_go_of_when_something_else_acts():
    ours, _ = both(names=("a", "b"))
    x = torch.randn(5, 7)
    expected = ours(x)
    ours.keep()
    assert torch.equal(ours(x), expected)
    ours.set_acting({"a": 1.5})
    assert ours.kept is None
    assert not torch.equal(ours(x), expected)


def test_gates_weigh_what_each_adapter_adds_to_each_input():
    ours, _ = both(names=("a", "b"))
    x, gates = torch.randn(5, 7), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    ours.set_acting({"a": 1.5, "b": 1.5}, lambda name, x: gates, ("a", "b"))
    found, plain = ours(x[:3]), nn.functional.linear(x[:3], ours.weight, ours.bias)
    torch.testing.assert_close(found[0], plain[0])
    for row, name in ((1, "a"), (2, "b")):
        down, up = ours.matrices(name)
        torch.testing.assert_close(found[row], plain[row] + 1.5 * (up @ (down @ x[row])))


def test_it_keeps_the_name_and_the_weights_of_the_layer_in_a_policy(policy):
    layer = policy.head.expert.layers[0].gate_proj
    weight = layer.weight
    before = set(policy.state_dict())
    add_lora(policy, LoRAConfig(rank=2))
    adapted = policy.head.expert.layers[0].gate_proj
    assert isinstance(adapted, AdaptedLinear)
    assert adapted.weight is weight
    assert before < set(policy.state_dict())
