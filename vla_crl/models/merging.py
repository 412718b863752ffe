"""Adapters folded into the weights that they adapt."""

import torch
from torch import Tensor

from vla_crl.errors import ConfigError
from vla_crl.models.adapted_linear import AdaptedLinear
from vla_crl.models.policy import VLAPolicy
from vla_crl.models.routes import FixedRoute
from vla_crl.models.sites import linear_layers


def merge_adapters(policy: VLAPolicy) -> None:
    """Make W + sum_k c_k B_k A_k the weights themselves, and take all adapters away.

    The sum is over the adapters that act; it is formed in float64 and rounded once, so actions
    change by rounding alone. What is left is a policy as `save_policy` wrote it before it had
    adapters.

    Raises:
        ConfigError: None acts, what acts depends on the task or the input, or a sum would be
            rounded; the policy is as it was.
    """
    bank = policy.adapters
    if not bank.names:
        raise ConfigError("the policy has no adapters to be merged")
    if not isinstance(bank.route, FixedRoute):
        what = "task" if bank.route.kind == "task" else "input"
        raise ConfigError(
            f"the policy's adapters {', '.join(bank.names)} are chosen by {bank.route.kind}, so "
            f"no single sum acts as they do for every {what}, and they cannot be merged; keep them "
            "apart, or set a fixed route first"
        )
    if not bank.scales:
        raise ConfigError(
            f"none of the policy's adapters {', '.join(bank.names)} acts, so there is nothing to "
            "be merged; activate some, or take the base policy"
        )
    layers = linear_layers(policy)
    merged = {
        name: _merged_weight(name, layer)
        for name, layer in layers.items()
        if isinstance(layer, AdaptedLinear) and layer.acting
    }
    for name, weight in merged.items():
        layers[name].weight.data = weight
    bank.clear()
    policy.base = None
    policy.requires_grad_()


@torch.no_grad()
def _merged_weight(name: str, layer: AdaptedLinear) -> Tensor:
    """Return the weights of a layer with what acts of its adapters, [out, in] float32."""
    if layer.weight.dtype != torch.float32:
        raise ConfigError(
            f"'{name}' is held in {layer.weight.dtype}, in which the sum is rounded, so its "
            "adapters cannot be merged; load the policy in float32"
        )
    weight = layer.weight.double()
    for adapter, scale in layer.acting.items():
        down, up = layer.matrices(adapter)
        weight = weight + scale * (up.double() @ down.double())
    if not (weight := weight.float()).isfinite().all():
        raise ConfigError(
            f"'{name}' would have numbers that are not finite, so its adapters cannot be merged; "
            "look at the training that made them"
        )
    return weight
