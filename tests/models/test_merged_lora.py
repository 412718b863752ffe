import pytest
import torch
from peft.tuners.lora.layer import Linear

from vla_crl.models.adapters import add_lora
from vla_crl.models.lora import LoRAConfig
from vla_crl.models.merged_lora import MAX_MERGED_NUMBERS, MergedLinear


@pytest.fixture
def layer(policy) -> MergedLinear:
    add_lora(policy, LoRAConfig(rank=2, alpha=3))
    layer = policy.head.expert.layers[0].gate_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    return layer


def numbers(layer, x, forward):
    """Return the output and the gradients of the adapter and of the input."""
    adapter = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = x.clone().requires_grad_()
    output = forward(layer, x)
    return output, *torch.autograd.grad(output.square().sum(), (*adapter, x))


def test_output_and_gradients_equal_those_of_peft(layer):
    x = torch.randn(5, 3, layer.in_features)
    ours, theirs = numbers(layer, x, MergedLinear.forward), numbers(layer, x, Linear.forward)
    assert layer.is_narrow
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


def test_a_wide_layer_or_one_in_bfloat16_computes_as_peft_does(layer, monkeypatch):
    x = torch.randn(5, layer.in_features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), Linear.forward(layer, x))
    monkeypatch.setattr("vla_crl.models.merged_lora.MAX_MERGED_NUMBERS", 8)
    assert not layer.is_narrow
    assert torch.equal(layer(x), Linear.forward(layer, x))
    monkeypatch.undo()
    layer.base_layer.weight.data = layer.base_layer.weight.data.bfloat16()
    assert not layer.is_narrow
    assert layer.base_layer.weight.numel() < MAX_MERGED_NUMBERS
