"""Which parameters a gradient of the actions reaches, found out by a backward pass."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla_crl.models.context import Insulation

if TYPE_CHECKING:
    from vla_crl.models.policy import VLAPolicy


@torch.inference_mode(False)
def reached(
    policy: "VLAPolicy",
    parameters: Sequence[Tensor],
    *,
    insulation: Insulation | None = None,
    with_value: bool = False,
) -> list[bool]:
    """Tell which parameters the log-probability of sampled actions has a gradient for.

    One chunk is sampled for an example observation and evaluated; nothing is changed, and no
    randomness but of a generator's own is used.

    Args:
        policy: Any.
        parameters: Of the policy; whether they require gradients makes no difference.
        insulation: Other than the policy's own.
        with_value: Whether the gradient of the value counts too.
    """
    required = [parameter.requires_grad for parameter in parameters]
    config = policy.config
    generator = torch.Generator().manual_seed(0)
    try:
        if insulation is not None:
            policy.config = replace(config, insulation=insulation)
        for parameter in parameters:
            parameter.requires_grad_()
        # In this thread: those of the engine know only devices that were there when it started.
        with torch.enable_grad(), torch.autograd.set_multithreading_enabled(False):
            context = policy.encode(policy.example_observation())
            chunk = policy.act(context.detach(), deterministic=False, generator=generator)
            found = policy.evaluate_actions(context, chunk.trace)
            total = found.density.log_prob().sum()
            if with_value:
                total = total + found.value.sum()
            if not total.requires_grad:
                return [False] * len(parameters)
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    finally:
        policy.config = config
        for parameter, was_required in zip(parameters, required, strict=True):
            parameter.requires_grad_(was_required)
    return [gradient is not None for gradient in gradients]
