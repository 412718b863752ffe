"""Adapters folded into the weights that they adapt."""

from typing import Any, cast

import torch
from torch import nn

from vla_crl.errors import ConfigError
from vla_crl.models.merged_lora import MergedLinear
from vla_crl.models.policy import VLAPolicy


def merge_adapters(policy: VLAPolicy) -> None:
    """Make W + (alpha / rank) B A the weights themselves, and take the adapters away.

    The sum is formed in float64 and rounded once, so actions change by rounding alone. What is left
    is a policy as `save_policy` wrote it before it had adapters.

    Raises:
        ConfigError: It has no adapters, or some that are not such a sum; it is as it was.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: dict[str, Any] = {
        name: layer for name, layer in policy.named_modules() if isinstance(layer, BaseTunerLayer)
    }
    if policy.lora is None or not layers:
        raise ConfigError("the policy has no adapters to be merged")
    merged = {name: _merged_weight(name, layer) for name, layer in layers.items()}
    for name, weight in merged.items():
        place, _, attribute = name.rpartition(".")
        base = layers[name].base_layer
        base.weight.data = weight
        setattr(policy.get_submodule(place), attribute, base)
    policy.lora = policy.base = None
    policy.requires_grad_()


def _merged_weight(name: str, layer: nn.Module) -> torch.Tensor:
    """Return the weights of a layer with its adapter, [out, in] float32."""
    problem = _not_a_sum(layer)
    if problem:
        raise ConfigError(
            f"'{name}' {problem}, so its adapter cannot be merged; keep the adapters apart"
        )
    layer = cast(MergedLinear, layer)
    (adapter,) = layer.active_adapters
    base = cast(nn.Linear, layer.base_layer).weight
    down, up = (cast(nn.Linear, part[adapter]).weight for part in (layer.lora_A, layer.lora_B))
    with torch.no_grad():
        update = layer.scaling[adapter] * (up.double() @ down.double())
        weight = (base.double() + update).float()
    if not weight.isfinite().all():
        raise ConfigError(
            f"'{name}' would have numbers that are not finite, so its adapter cannot be merged; "
            "look at the training that made it"
        )
    return weight


def _not_a_sum(layer: nn.Module) -> str | None:
    """Say why a layer with adapters is not W + (alpha / rank) B A in float32, None if it is."""
    if not isinstance(layer, MergedLinear):
        return f"is a {type(layer).__name__}, which is none of `add_lora`"
    if layer.disable_adapters or len(layer.active_adapters) != 1:
        return f"has {0 if layer.disable_adapters else len(layer.active_adapters)} that act"
    if layer.lora_variant or any(layer.lora_bias.values()):
        return "has one that does more than to add a product"
    dtype = cast(nn.Linear, layer.base_layer).weight.dtype
    return None if dtype == torch.float32 else f"is held in {dtype}, in which the sum is rounded"
